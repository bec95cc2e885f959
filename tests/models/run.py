"""Checks the models of this folder with spin: as they stand nothing may be found, in every broken variant something.

    python tests/models/run.py                        # all, as a table: `make model`
    python tests/models/run.py doorbell               # one model and its variants
    python tests/models/run.py doorbell:NO_RECHECK    # one case, and step by step how it goes wrong

What a model says about itself stands in the comments at its beginning, and is read from there:

    // Models <file>: <function>, ...     what it stands for; tests/test_models.py holds this to the sources
    // Sizes <NAME>=<number> ...          one instance of the model; several lines, several instances
    // Broken <NAME> <what is wrong>      a variant, made by defining NAME, that spin must find fault with

Needs nothing but Python, spin and a C compiler. docs/model-checking.md explains what is modelled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# One search ends before; far above what is needed.
SECONDS = 120
MEGABYTES = 2048


@dataclass(frozen=True)
class Model:
    path: Path
    stands_for: dict[str, list[str]]  # file: functions
    sizes: list[str]
    broken: dict[str, str]  # name: what is wrong

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Case:
    model: Model
    variant: str  # "": as it stands
    size: str  # "": the only one, or for a variant whichever shows the fault

    def __str__(self) -> str:
        return ":".join(filter(None, (self.model.name, self.variant, self.size.replace(" ", ","))))


@dataclass
class Outcome:
    fault: str = ""  # "": none found
    states: int = 0
    seconds: float = 0.0
    steps: list[str] = field(default_factory=list)  # that lead to the fault
    never_reached: list[str] = field(default_factory=list)


class CannotCheck(Exception):
    """spin or the compiler is missing, or did not do its work; the message says what to do."""


def read_model(path: Path) -> Model:
    text = path.read_text()
    stands_for: dict[str, list[str]] = {}
    for file, functions in re.findall(r"^// Models (\S+): (.*)$", text, re.MULTILINE):
        stands_for.setdefault(file, []).extend(functions.split(", "))
    broken = dict(re.findall(r"^// Broken (\w+) +(.*)$", text, re.MULTILINE))
    return Model(path, stands_for, re.findall(r"^// Sizes (.*)$", text, re.MULTILINE), broken)


def models() -> list[Model]:
    found = [read_model(path) for path in sorted(FOLDER.glob("*.pml"))]
    return [model for model in found if model.stands_for]  # the rest is included by them


def cases(model: Model) -> Iterator[Case]:
    for size in model.sizes or [""]:
        yield Case(model, "", size)
    for variant in model.broken:
        yield Case(model, variant, "")


def missing_tools() -> str:
    """What is not there, and how to get it; "": everything is there."""
    absent = [tool for tool in ("spin", compiler()) if not shutil.which(tool)]
    if not absent:
        return ""
    return (
        f"checking the models needs {' and '.join(absent)}: install spin (https://spinroot.com) and a C compiler, "
        "on Debian and Ubuntu with `apt-get install spin gcc`"
    )


def compiler() -> str:
    return os.environ.get("CC", "cc").split()[0]


def run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotCheck(f"`{' '.join(command)}` did not end within {SECONDS} s") from None
    if done.returncode != 0:
        raise CannotCheck(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def search(case: Case, size: str, folder: Path) -> Outcome:
    """Looks through every state of one instance, until the first fault."""
    start = time.monotonic()
    macros = [f"-D{macro}" for macro in [*size.split(), *filter(None, [case.variant])]]
    told = run(["spin", "-a", *macros, str(case.model.path)], folder)
    if not (folder / "pan.c").exists():
        raise CannotCheck(f"spin refused {case.model.path}:\n{told}")
    optimise = "-O0" if case.variant else "-O2"  # a fault is found at once, and that none is there after long
    run(
        [compiler(), optimise, "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c"],
        folder,
    )
    report = run(["./pan", "-m100000"], folder)
    counted = re.search(r"(\d+) states, stored", report)
    errors = re.search(r"errors: (\d+)", report)
    if (
        not counted
        or not errors
        or "error: max search depth too small" in report
        or "out of memory" in report
    ):
        raise CannotCheck(f"{case}: the search was cut short:\n{report}")
    outcome = Outcome(states=int(counted[1]), seconds=time.monotonic() - start)
    if int(errors[1]):
        cause = re.search(r"pan:\d+: (.*?) \(at depth", report)
        outcome.fault = cause[1] if cause else "a fault"
        trail = next(folder.glob("*.trail"))
        outcome.steps = steps(
            run(["spin", "-k", trail.name, "-p", "-g", *macros, str(case.model.path)], folder)
        )
    else:
        outcome.never_reached = unreached(report)
    return outcome


def steps(replay: str) -> list[str]:
    """What a reader wants of spin's account: the ranks' statements as they stand in the model, and what they change."""
    kept: list[str] = []
    values: dict[str, str] = {}
    stored_in = ""
    for line in replay.splitlines():
        if "trail ends" in line:
            break
        variable = re.match(r"^\s+([\w.\[\]]+) = (-?\d+)$", line)
        statement = re.match(
            r"^\s*\d+:\s+proc\s+\d+ \((\w+):\d+\) \S*?([\w.]+):(\d+) \(state \d+\)\s*\[(.*)\]", line
        )
        if variable:
            name, value = variable.groups()
            if values.get(name, "0") != value:
                values[name] = value
                seen = re.sub(r"memory\[(\d+)\]", r"seen by all: word \1", name)
                kept.append(f"{'':<38}{seen} = {value}")
        elif statement and statement[2] == "memory.pml":
            process, _, _, text = statement.groups()
            if cell := re.match(r"buffer\[\w+\]\.cell\[buffer.*\] = (.*)", text):
                stored_in = cell[1]
            elif what := re.match(r"buffer\[\w+\]\.value\[buffer.*\] = (.*)", text):
                kept.append(f"{process:<38}stores, not yet seen by others: word {stored_in} = {what[1]}")
        elif statement and statement[1] != "store_buffer":
            process, file, number, _ = statement.groups()
            source = (FOLDER / file).read_text().splitlines()[int(number) - 1].strip()
            step = f"{process:<14}{file + ':' + number:<20}    {source}"
            if not kept or kept[-1] != step:
                kept.append(step)
        elif "Error:" in line or "failed assertion" in line:
            kept.append(line)
    return kept


def unreached(report: str) -> list[str]:
    """Statements of a right model that no run comes to: it would then show less than it seems to."""
    lines = re.findall(r"^\t\S*?([\w.]+:\d+), state \d+, (\".*\")$", report, re.MULTILINE)
    # A store buffer has no end.
    return [
        f"{place} {what}" for place, what in lines if not (place.startswith("memory.pml") and "-end-" in what)
    ]


def check(case: Case) -> Outcome:
    """A variant is found when any instance of its model shows the fault."""
    if lacking := missing_tools():
        raise CannotCheck(lacking)
    outcome = Outcome()
    for size in [case.size] if case.size or not case.model.sizes else case.model.sizes:
        with tempfile.TemporaryDirectory() as folder:
            one = search(case, size, Path(folder))
        outcome = Outcome(
            one.fault,
            outcome.states + one.states,
            outcome.seconds + one.seconds,
            one.steps,
            one.never_reached,
        )
        if outcome.fault:
            break
    return outcome


def checked(chosen: list[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Each case with what was found: in turn, though as many are searched at once as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from zip(chosen, pool.map(check, chosen), strict=True)


def surprise(case: Case, outcome: Outcome) -> str:
    """Why this is not what was expected; "": it is."""
    if case.variant and not outcome.fault:
        return (
            f"{case}: {case.model.broken[case.variant]}, and spin found nothing: the model does not show it"
        )
    if not case.variant and outcome.fault:
        return "\n".join([f"{case}: {outcome.fault}", *outcome.steps])
    if outcome.never_reached:  # what no run comes to is shown by none
        return "\n".join([f"{case}: no run comes to", *outcome.never_reached])
    return ""


def select(words: list[str]) -> list[Case]:
    everything = [case for model in models() for case in cases(model)]
    if not words:
        return everything
    chosen = []
    for word in words:
        name, _, variant = word.partition(":")
        some = [
            case
            for case in everything
            if case.model.name == name and (not variant or case.variant == variant)
        ]
        if not some:
            names = ", ".join(model.name for model in models())
            raise CannotCheck(f"{word}: expected <model> or <model>:<variant>; the models are {names}")
        chosen += some
    return chosen


def main(words: list[str]) -> int:
    try:
        chosen = select(words)
        print(
            f"{'model':<12} {'variant':<24} {'expected':<9} {'found':<36} {'states':>9} {'seconds':>8}",
            flush=True,
        )
        complaints = []
        for case, outcome in checked(chosen):
            expected = "a fault" if case.variant else "nothing"
            print(
                f"{case.model.name:<12} {case.variant or case.size or 'as it stands':<24} {expected:<9} "
                f"{(outcome.fault or 'nothing')[:36]:<36} {outcome.states:>9} {outcome.seconds:>8.1f}",
                flush=True,
            )
            if wrong := surprise(case, outcome):
                complaints.append(wrong)
            elif len(chosen) == 1:
                print("", *outcome.steps, sep="\n")
    except CannotCheck as problem:
        print(problem, file=sys.stderr)
        return 2
    for wrong in complaints:
        print(f"\n{wrong}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
