"""Where a rank's time goes. Called by serving.py and by the places where experts run; shown by report.py."""

from __future__ import annotations

import time

PHASES = ("attention", "routing", "dispatch", "experts", "combine", "moving", "output", "agree")


class PhaseClock:
    """Divides the time of a rank among phases: at every moment exactly one of them is running."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what has been measured."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "agree"
        self._since = time.perf_counter()

    def switch(self, phase: str) -> None:
        """From now on it is this phase's time."""
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
