"""Lines of JSON between the driver and one rank process, and signals to that process. Used by group.py only."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any


class Failed(Exception):
    """A rank or a group did not do what it was told: it says why, as far as it is known."""


class Rank:
    """The driver's end of the line to one rank, from the first words that the rank says."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8")
        self._process = -1
        try:
            self.hello = self.receive(deadline)  #: "rank", "pid" and, of programs that run once, "span"
            self.number: int = self.hello["rank"]
        except BaseException:
            self.close()
            raise
        with contextlib.suppress(ProcessLookupError):  # it may be a program that only reports
            self._process = os.pidfd_open(self.hello["pid"])

    def send(self, command: dict[str, Any]) -> None:
        """Gives it a command."""
        try:
            self._connection.sendall((json.dumps(command) + "\n").encode())
        except OSError as error:
            raise Failed(f"a rank has ended: {error}") from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """Its next answer. Raises Failed if it has ended, reports an error or does not answer in time."""
        # An answer is one line, and the next comes only after the next command: nothing lies in the buffer.
        if not select.select([self._connection], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Failed("a rank did not answer in time")
        try:
            line = self._lines.readline()
        except OSError as error:
            raise Failed(f"a rank has ended: {error}") from None
        if not line:
            raise Failed("a rank has ended")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(found["error"].strip())
        return found

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal, if it is still there."""
        if self._process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def close(self) -> None:
        """Gives up the line; the process is left alone."""
        self._lines.close()
        self._connection.close()
        if self._process >= 0:
            os.close(self._process)
            self._process = -1
