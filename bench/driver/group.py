"""A group: the rank processes of one team, started once, that take commands; stopped while others are measured.

Used by interleave.py and startup.py. The other side is rank.py. Not here: what is measured, and in which order.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driver.launch import Team
from driver.wire import Failed, Rank

__all__ = ["Failed", "Group"]

START_S = 180.0
ANSWER_S = 120.0
LEAVE_S = 30.0


class Group:
    """Started by its constructor; every method returns when all ranks have answered, or raises Failed."""

    def __init__(self, team: Team, size: int) -> None:
        self.team = team
        self.size = size
        self.ranks: list[Rank] = []
        self._folder = tempfile.TemporaryDirectory(prefix="xccl-bench-")
        self._output = Path(self._folder.name, "output")
        self._memory = os.memfd_create("xccl-bench")  # for parts whose ranks share memory by themselves
        self._launched: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except Failed as failure:
            told = self._told()
            self.kill()
            raise Failed(f"{failure}; it printed: {told}") from None
        except BaseException:
            self.kill()
            raise

    def _start(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            address = str(Path(self._folder.name, "socket"))
            listener.bind(address)
            listener.listen(self.size)
            spec = {
                "socket": address,
                "part": self.team.part,
                "size": self.size,
                "job": f"bench-{uuid.uuid4()}",
                "memory": self._memory,
                "cores": len(os.sched_getaffinity(0)),
                "pinned": self.team.pinned,
                "options": dict(self.team.options),
            }
            for rank in range(self.size) if self.team.one_process_each else [-1]:
                self._launched.append(self._launch({**spec, "rank": rank}))
            deadline = time.monotonic() + START_S
            for _ in range(self.size):
                self.ranks.append(Rank(self._accept(listener, deadline), deadline))
        self.ranks.sort(key=lambda rank: rank.number)
        if [rank.number for rank in self.ranks] != list(range(self.size)):
            raise Failed(f"ranks {[rank.number for rank in self.ranks]} have come instead of {self.size}")

    def _launch(self, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
        with self._output.open("ab") as output:
            return subprocess.Popen(
                self.team.command(self.size),
                env={**self.team.variables(self.size), "BENCH_RANK_SPEC": json.dumps(spec)},
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._memory],
                start_new_session=True,
                preexec_fn=_end_with_the_driver,
            )

    def _accept(self, listener: socket.socket, deadline: float) -> socket.socket:
        listener.settimeout(0.5)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection = listener.accept()[0]
                connection.setblocking(True)
                return connection
            if any(process.poll() for process in self._launched):
                raise Failed("a process ended before it joined")
        raise Failed(f"did not start within {START_S:.0f} s")

    def ask(self, **command: Any) -> list[dict[str, Any]]:
        """Gives every rank the command and returns their answers by rank."""
        deadline = time.monotonic() + ANSWER_S
        answers: list[dict[str, Any]] = []
        failures: list[str] = []
        for rank in self.ranks:
            with _collected(failures):
                rank.send(command)
        for rank in self.ranks:
            with _collected(failures):
                answers.append(rank.receive(deadline))
            if failures:  # the others will not wait for long either: their words may name the cause
                deadline = min(deadline, time.monotonic() + 2.0)
        if failures:
            raise Failed(f"{'; '.join(dict.fromkeys(failures))}; it printed: {self._told()}")
        return answers

    def stop(self) -> None:
        """The ranks stand still and use no core."""
        for rank in self.ranks:
            rank.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The opposite of stop."""
        for rank in self.ranks:
            rank.signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the ranks in an orderly way, so that the library cleans up; kills what does not end."""
        self.go_on()
        with contextlib.suppress(Failed):
            for rank in self.ranks:
                rank.send({"do": "end"})
        deadline = time.monotonic() + LEAVE_S
        for process in self._launched:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """Ends at once whatever is still there."""
        for process in self._launched:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for rank in self.ranks:  # those of a launcher are no children of ours: it should have ended them
            rank.signal(signal.SIGKILL)
            rank.close()
        self.ranks.clear()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        self._folder.cleanup()

    def _told(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines() if self._output.exists() else []
        return " | ".join(lines[-6:]) or "nothing"


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_the_driver() -> None:
    """Ranks that stand still would stay for ever if the driver were killed. rank.py says the same for itself."""
    _LIBC.prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL
    )  # a launcher asked politely would wait for ranks that cannot hear


@contextlib.contextmanager
def _collected(failures: list[str]) -> Iterator[None]:
    try:
        yield
    except Failed as failure:
        failures.append(str(failure))
