"""The crash matrix: at every named step of the native code a rank is killed, stopped for a second, or made to fail.

Each case starts the ranks as processes (native/crash_rank.cpp), and holds what the others report to what
docs/reliability.md promises: which error, naming whom, and soon; or success; that they go on without that rank;
and that nothing is left. `make crash-matrix` runs all cases, tests/test_crash_matrix.py some. Not here: what a
scenario does, and whether the contents are right (native/crash_rank.cpp checks that, and says what is wrong).

    crash_matrix.py PROGRAM [--write] [--jobs N] [--only TEXT] [--detection]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "crash-matrix.md"
PROGRAM = ROOT / "build" / "debug" / "tests" / "native" / "crash_rank"

ACTIONS = ("kill", "stop", "error")
SOON_S = 5.0  # until the others know: generous, since machines are busy; `--detection` measures
LIMIT_S = 40.0  # for a case
STOPPED_S = 1.0

# What the others experience, apart from "completed". What is raised names the rank, and only it.
LOST, FAILED, CLOSED, COMPLETED = "PeerLost", "PeerFailed", "Closed", "completed"
LATE, REFUSED, MISMATCH = "Timeout", "Failure", "Mismatch"
NOT = "cannot fail"  # nothing there can raise


@dataclasses.dataclass(frozen=True)
class Row:
    """A step in a scenario, the rank that comes to grief there, and what the others may experience."""

    step: str
    scenario: str
    victim: int
    occurrence: int = 1
    kill: tuple[str, ...] = (LOST,)
    stop: tuple[str, ...] = (COMPLETED,)
    error: tuple[str, ...] = (FAILED,)
    # Ranks that have joined go on without those that have not: whom the error names, and who is left, depend on how
    # far the meeting had come.
    halfway: bool = False


def rows() -> list[Row]:
    def each(scenario: str, victim: int, *steps: str, **others) -> list[Row]:
        return [Row(step, scenario, victim, **others) for step in steps]

    found = [
        Row("bootstrap.listening", "init", 0, kill=(LOST, LATE), error=(LOST, LATE)),
        Row("bootstrap.gathered", "init", 0, error=(REFUSED,)),
        Row("bootstrap.giving", "init", 0, error=(REFUSED,)),
        Row("bootstrap.giving", "init", 0, 2, (LOST, CLOSED), error=(REFUSED, CLOSED), halfway=True),
        Row("bootstrap.connected", "init", 1, kill=(LATE,), error=(LATE,)),
        Row("bootstrap.greeted", "init", 1, error=(LOST, CLOSED)),
        Row("attach.met", "init", 1, error=(CLOSED,)),
        Row("attach.accepted", "init", 1, 2, error=(CLOSED,)),
        Row("attach.checked", "init", 0, error=(CLOSED,)),
    ]

    # --- Messages: rank 0 sends, rank 1 receives.
    for step, occurrence in [("buffered", 1), ("posting", 1)]:
        found.append(Row(f"p2p.{step}", "inlined", 0, occurrence))
    found += each("inlined", 1, "p2p.drained", "p2p.preparing", "p2p.unpacking")
    found += each("eager", 0, "p2p.buffered", "p2p.posting")
    found += each("eager", 1, "p2p.preparing", "p2p.unbuffered")
    found += each("streamed", 0, "p2p.offering", "p2p.offered", "p2p.ahead", "p2p.answered", "p2p.chunk")
    found.append(Row("p2p.chunk", "streamed", 0, 40))
    found += each("streamed", 1, "p2p.preparing", "p2p.granting", "p2p.posting", "p2p.granted", "p2p.taken")
    found += each("helped", 0, "p2p.offered", "p2p.ahead", "p2p.answered", "p2p.chunk")
    found += each("helped", 1, "p2p.granting", "p2p.granted", "p2p.taken")
    found += each("pulled", 0, "p2p.offering", "p2p.offered", "p2p.answered")
    found += each("pulled", 1, "p2p.preparing", "p2p.pulling", "p2p.pulled", "p2p.done")
    found += each("view", 0, "p2p.offered", "p2p.answered")
    found.append(Row("p2p.answered", "view", 0, 2))
    found += each("view", 1, "p2p.preparing", "p2p.lending", "p2p.lent", "p2p.returning")
    found += each("eager view", 1, "p2p.lending", "p2p.returning")
    found += each("withdrawn", 0, "p2p.withdrawing", "p2p.verdict", "p2p.withdrawn")
    found += each("withdrawn", 1, "p2p.taking_back")
    found += each("detached", 0, "p2p.detaching")
    found += each("kept", 1, "p2p.keeping")

    # --- Collectives.
    found += each("barrier", 1, "barrier.come", "barrier.signalled", "barrier.passed")
    collectives = ["all_gather", "all_gather_v", "all_to_all", "all_to_all_v", "broadcast", "all_reduce"]
    collectives += ["reduce_scatter", "reduce_scatter_v", "all_gather lent"]
    for name in collectives:
        found += each(name, 1, "exchange.staging")
        found.append(Row("exchange.posting", name, 1, 2))  # the record is with some, not with all
        found += each(
            name, 1, "exchange.published", "exchange.arrived", "exchange.pulled", "exchange.finished"
        )
    found += each("broadcast", 0, "exchange.published", "exchange.pulled")
    found += each(
        "disagreement",
        1,
        "exchange.mismatch",
        kill=(MISMATCH, LOST),
        stop=(MISMATCH,),
        error=(MISMATCH, FAILED),
    )
    found += each("all_gather lent", 1, "exchange.concluding")
    found += each("split", 1, "split.met", "split.made", "split.connecting")

    # --- Experts.
    found += each("moe", 1, "ep.made", "ep.met", "dispatch.staged")
    found.append(Row("ep.posting", "moe", 1, 2))
    found += each(
        "moe", 1, "ep.published", "ep.arrived", "dispatch.listed", "dispatch.pulled", "dispatch.finished"
    )
    found += each(
        "moe", 1, "combine.staged", "combine.based", "combine.summed", "combine.finished", "ep.closing"
    )

    # The same in two halves, with tokens on rank 0 and experts on the others.
    found.append(Row("ep.posting", "moe apart", 0, 2))
    found += each("moe apart", 0, "dispatch.staged", "ep.arrived", "dispatch.listed", "combine.summed")
    found += each("moe apart", 1, "ep.posting", "ep.published", "ep.arrived", "dispatch.pulled")
    found += each("moe apart", 1, "dispatch.finished", "combine.staged", "combine.finished", "ep.closing")

    # --- Survivors, and the end.
    left_out = {"kill": (COMPLETED, LOST), "error": (COMPLETED, CLOSED)}
    found += each("shrink", 0, "shrink.arrived", "shrink.deciding", **left_out)
    found += each("shrink", 1, "shrink.arrived", "shrink.decided", "shrink.made", "shrink.joined", **left_out)
    found += each("shrink", 1, "shrink.connecting", **left_out)
    closes = {"stop": (CLOSED,), "error": (CLOSED,)}
    found += each("close", 1, "p2p.closing", stop=(CLOSED,))
    found += each("close", 1, "p2p.abandoned", stop=(CLOSED,), error=(NOT,))
    found += each("close", 1, "close.begun", "close.drained", **closes)
    found += each("close", 1, "close.left", kill=(CLOSED, LOST), stop=(CLOSED,), error=(NOT,))
    return found


ROWS = rows()


@dataclasses.dataclass(frozen=True)
class Case:
    row: Row
    action: str
    size: int = 3

    def __str__(self) -> str:
        row = self.row
        return (
            f"{row.step}#{row.occurrence} in {row.scenario}, rank {row.victim} of {self.size}, {self.action}"
        )

    @property
    def expected(self) -> tuple[str, ...]:
        return getattr(self.row, self.action)


def all_cases() -> list[Case]:
    """All steps and actions at 3 ranks, every step in one way at 2 or at 5."""
    cases = [Case(row, action) for row in ROWS for action in ACTIONS]
    for number, row in enumerate(ROWS):
        case = Case(row, ACTIONS[number % 3], 2 if number % 2 else 5)
        # With two ranks there is only one other to be posted to, or given to.
        if case.size == 2 and row.step in ("exchange.posting", "ep.posting", "bootstrap.giving"):
            case = dataclasses.replace(case, size=5)
        cases.append(case)
    return [case for case in cases if NOT not in case.expected]


def sample() -> list[Case]:
    """What the normal tests run: every action, at some step of every kind."""
    wanted = {
        "bootstrap.gathered": "kill",
        "attach.accepted": "error",
        "p2p.posting": "kill",
        "p2p.chunk": "error",
        "p2p.pulled": "kill",
        "p2p.lent": "error",
        "p2p.withdrawing": "kill",
        "barrier.signalled": "stop",
        "exchange.posting": "kill",
        "exchange.pulled": "error",
        "split.made": "kill",
        "ep.posting": "error",
        "combine.based": "kill",
        "shrink.decided": "kill",
        "shrink.joined": "error",
        "close.begun": "kill",
    }
    first = {}
    for row in ROWS:
        first.setdefault(row.step, row)
    return [Case(first[step], action) for step, action in wanted.items()]


# --- Running a case ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """What a rank has said, and how it ended."""

    reached_ns: int | None = None
    op: str = ""
    status: str = COMPLETED
    named: list[int] = dataclasses.field(default_factory=list)
    error_ns: int = 0
    text: str = ""
    members: list[int] | None = None
    ended: bool = False
    code: int | None = None
    complaint: str = ""


class Rank:
    """A process of a case, with a thread that reads what it says."""

    def __init__(self, program: Path, case: Case, job: str, rank: int):
        startup = 1.2 if case.action != "stop" else 20
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "XCCL_TEST_CRASH": f"{case.row.victim}:{case.row.step}:{case.row.occurrence}:{case.action}",
            "XCCL_TIMEOUT": "20",
            "XCCL_STARTUP_TIMEOUT": str(startup if case.row.scenario == "init" else 20),
        }
        for name, value in os.environ.items():
            if name.startswith("STARTED_BY") or name.endswith("SAN_OPTIONS"):
                environment[name] = value
        self.report = Report()
        self.reached = threading.Event()
        self.process = subprocess.Popen(
            [program, case.row.scenario, job, str(rank), str(case.size)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._hear(line.rstrip("\n"))
        self.report.complaint = self.process.stderr.read().strip()

    def _hear(self, line: str) -> None:
        report = self.report
        word, _, rest = line.partition(" ")
        if word == "ready":
            self.reached.set()
        elif word == "reached":
            report.reached_ns = int(rest)
            self.reached.set()
        elif word == "error":
            report.op, report.status, named, nanoseconds, report.text = rest.split(" ", 4)
            report.named = [int(rank) for rank in named.split(",") if rank != "-"]
            report.error_ns = int(nanoseconds)
        elif word == "members":
            report.members = [int(rank) for rank in rest.split(",")]
        elif word == "ended":
            report.ended = True

    def finish(self, deadline: float) -> None:
        try:
            self.report.code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


def stop_for_a_while(victim: Rank) -> str:
    """Continues the rank that has stopped itself. Tells what went wrong."""
    if not victim.reached.wait(LIMIT_S / 2):
        return ""  # reported as a step that is not reached
    time.sleep(STOPPED_S)
    state = Path(f"/proc/{victim.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    os.kill(victim.process.pid, signal.SIGCONT)
    return "" if state == "T" else f"the stopped rank was in state {state}"


def leftovers(job: str) -> list[str]:
    """What a job has left on this machine: names of shared memory, and of sockets."""
    found = [name for name in os.listdir("/dev/shm") if "xccl" in name.lower() and job in name]
    sockets = Path("/proc/net/unix").read_text().splitlines()
    return found + [line.split()[-1] for line in sockets if job in line]


def run_case(program: Path, case: Case) -> str:
    """Empty, or what went wrong."""
    job = f"crash-{uuid.uuid4().hex[:12]}"
    ranks = [Rank(program, case, job, rank) for rank in range(case.size)]
    deadline = time.monotonic() + LIMIT_S
    wrong = stop_for_a_while(ranks[case.row.victim]) if case.action == "stop" else ""
    for rank in ranks:
        rank.finish(deadline)
    wrong = wrong or judge(case, [rank.report for rank in ranks])
    left = leftovers(job)
    return wrong or (f"left behind: {', '.join(left)}" if left else "")


def judge(case: Case, reports: list[Report]) -> str:
    row, victim = case.row, reports[case.row.victim]
    for rank, report in enumerate(reports):
        if report.complaint:
            return f"rank {rank}: {report.complaint}"
        if report.code is None:
            return f"rank {rank} was still running after {LIMIT_S:.0f} s ({report.status})"
    if victim.reached_ns is None:
        return "the step was not reached"
    for rank, report in enumerate(reports):
        killed = case.action == "kill" and rank == row.victim
        if report.code != (-signal.SIGKILL if killed else 0) or report.ended == killed:
            return f"rank {rank} ended with code {report.code}"
    if case.action == "error" and f"made to fail at {row.step}" not in victim.text:
        return f"the rank made to fail says {victim.status} {victim.text!r}"
    if case.action == "stop" and victim.status != (MISMATCH if MISMATCH in case.expected else COMPLETED):
        return f"the stopped rank says {victim.status} {victim.text!r}"
    others = [rank for rank in range(case.size) if rank != row.victim]
    for rank in others:
        if wrong := judge_other(case, rank, reports[rank], victim, others):
            return f"rank {rank} {wrong}"
    return ""


def judge_other(case: Case, rank: int, report: Report, victim: Report, others: list[int]) -> str:
    row = case.row
    if report.status not in case.expected:
        return f"says {report.status} {report.text!r}, expected {' or '.join(case.expected)}"
    if report.status != COMPLETED:
        if report.named != [row.victim] and not row.halfway and report.status != REFUSED:
            return f"names {report.named} in {report.text!r}"
        if report.status in (FAILED, REFUSED) and f"made to fail at {row.step}" not in report.text:
            return f"does not say why: {report.text!r}"
        took = (report.error_ns - victim.reached_ns) / 1e9
        if took > SOON_S + (STOPPED_S if case.action == "stop" else 0):
            return f"knew it only after {took:.1f} s"
    if report.op == "init":
        return "" if report.members is None else "works without having joined"
    if report.members is None:
        return "has no communicator that works"
    if row.halfway and case.action != "stop":
        return (
            "" if rank in report.members and row.victim not in report.members else f"is with {report.members}"
        )
    stays = case.action == "stop" and row.scenario != "close"
    expected = sorted([*others, row.victim]) if stays else others
    return "" if report.members == expected else f"goes on with {report.members}, expected {expected}"


# --- The whole matrix ----------------------------------------------------------------------------------


def run_all(program: Path, cases: list[Case], jobs: int) -> dict[Case, str]:
    results: dict[Case, str] = {}
    begun = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(lambda case: (case, run_case(program, case)), cases)
        for case, wrong in outcomes:
            results[case] = wrong
            if wrong:
                print(f"\r\033[KFAILED {case}: {wrong}", flush=True)
            if sys.stdout.isatty() or len(results) % 50 == 0 or len(results) == len(cases):
                end = "\r" if sys.stdout.isatty() else "\n"
                print(
                    f"{len(results)} of {len(cases)} cases, {time.monotonic() - begun:.0f} s",
                    end=end,
                    flush=True,
                )
    print()
    return results


INTRODUCTION = """\
# Crash matrix

Written by `make crash-matrix CRASH_ARGS=--write`; what the words mean and why: [reliability.md](reliability.md).

Every step at which the native code can be interfered with (`XCCL_TEST_POINT`), in the scenarios that come there
(`tests/native/crash_rank.cpp`), among three ranks. At the step, one rank, a process, is killed, stopped for a second,
or made to raise an error, and then aborts the communicator, as an exception does that leaves `with comm:`. The cell
is what each of the other ranks experiences, in that call or in the barrier after it: the error, which names that rank
and no other, or success. In all cases, what was returned has the right contents; the ranks that are left make a
communicator by `shrink` in which collectives and messages of several paths work; all processes end; no shared memory
and no socket is left. A cell that does not hold says so. "#2": the second time that the rank comes to this step.

* *init*: `PeerLost` or `Timeout` of `init`, as far as the ranks had come, and then there is nothing to shrink. Who
  fails there has joined nothing, and is only gone: the others see its connection end, or that it has closed. Rank 0
  tells why it fails (`Failure`). "giving #2": one rank has joined, and finds that it is alone.
* *shrink*: "completed": in a communicator without that rank. If it goes when it has joined, the others may have it in
  the new communicator, whose first call raises the error; they shrink that.
* *disagreement*: the rank gives another size than the others. All of them find it, that rank too.
* *close*: the rank closes while the others wait for it in a barrier: `Closed` is its orderly end.
* "cannot fail": nothing there raises errors.

"""


def document(results: dict[Case, str]) -> str:
    lines = ["| step | in | rank | SIGKILL | SIGSTOP 1 s | error |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        step = row.step + (f" #{row.occurrence}" if row.occurrence > 1 else "")
        cells = []
        for action in ACTIONS:
            case = Case(row, action)
            wrong = results.get(case, "")
            cells.append(f"**FAILED**: {wrong}" if wrong else " or ".join(case.expected))
        lines.append(f"| {step} | {row.scenario} | {row.victim} | {' | '.join(cells)} |")
    others = [f"{case}: **FAILED**: {wrong}" for case, wrong in results.items() if wrong and case.size != 3]
    more = sum(case.size != 3 for case in results)
    text = INTRODUCTION + "\n".join(lines) + f"\n\n{len(results)} cases, {more} of them with 2 and 5 ranks.\n"
    return text + "".join(f"\n* {line}" for line in others) + ("\n" if others else "")


def steps_in_sources() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "csrc").rglob("*.[ch]pp"):
        if path.name != "test_point.hpp":
            found |= set(re.findall(r'XCCL_TEST_POINT\("([\w.]+)"\)', path.read_text()))
    return found


def steps_in_document() -> set[str]:
    return set(re.findall(r"^\| (\w+\.\w+)", DOCUMENT.read_text(), re.MULTILINE))


# --- How soon the others know --------------------------------------------------------------------------


def detection_ms(program: Path, size: int, seed: int) -> list[float]:
    """Kills a rank at a random moment, busy with everything; the milliseconds until each of the others has raised."""
    dice = random.Random(seed)
    victim = dice.randrange(size)
    case = Case(Row("nowhere", "busy", victim), "kill", size)
    job = f"crash-{uuid.uuid4().hex[:12]}"
    ranks = [Rank(program, case, job, rank) for rank in range(size)]
    for rank in ranks:
        rank.reached.wait(LIMIT_S)
    time.sleep(dice.uniform(0.01, 0.1))
    killed_ns = time.monotonic_ns()
    ranks[victim].process.kill()
    for rank in ranks:
        rank.finish(time.monotonic() + LIMIT_S)
    reports = [rank.report for number, rank in enumerate(ranks) if number != victim]
    for report in reports:
        if report.status != LOST or report.named != [victim] or report.members is None:
            raise RuntimeError(f"seed {seed}: {report}")
    return [(report.error_ns - killed_ns) / 1e6 for report in reports]


def measure_detection(program: Path, size: int, kills: int = 200) -> None:
    worst = sorted(max(detection_ms(program, size, seed)) for seed in range(kills))
    p99 = worst[min(len(worst) - 1, int(0.99 * len(worst)))]
    cores = len(os.sched_getaffinity(0))
    print(
        f"{kills} kills, {size} ranks on {cores} cores: the last of the others knows after "
        f"{statistics.median(worst):.1f} ms (median), {p99:.1f} ms (p99), {worst[-1]:.1f} ms (most)",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program", type=Path, help="crash_rank, built with the native tests")
    parser.add_argument("--write", action="store_true", help="write docs/crash-matrix.md")
    parser.add_argument("--jobs", type=int, default=4, help="cases at a time")
    parser.add_argument("--only", default="", help="cases that have this text in their name")
    parser.add_argument(
        "--detection", action="store_true", help="measure how soon a death is known, nothing else"
    )
    options = parser.parse_args()
    if options.detection:
        # The bounds are stated for two cores.
        os.sched_setaffinity(0, set(itertools.islice(os.sched_getaffinity(0), 2)))
        for size in (2, 8):
            measure_detection(options.program, size)
        return 0
    cases = [case for case in all_cases() if options.only in str(case)]
    results = run_all(options.program, cases, options.jobs)
    failed = sum(bool(wrong) for wrong in results.values())
    print(f"{len(results)} cases of {len({case.row.step for case in results})} steps, {failed} failed")
    if options.write and not options.only:
        DOCUMENT.write_text(document(results))
    elif not options.only:
        print(document(results))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
