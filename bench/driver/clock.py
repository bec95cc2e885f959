"""A clock for pytest-benchmark that moves only as far as the samples that were taken by the driver.

pytest-benchmark reads its clock before and after each round. Here a round is `clock.advance`, so that its tables,
JSON and comparisons hold exactly the driver's samples, which no function called in one process could produce.
"""

from __future__ import annotations

from collections.abc import Iterator


class RecordedClock:
    """Call it for the time; `advance` puts it forward by the next sample of `play`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._next: Iterator[float] = iter(())
        self.__name__ = "recorded"

    def __call__(self) -> float:
        return self._now

    def play(self, samples: list[float]) -> None:
        """The samples to come, in seconds."""
        self._now = 0.0
        self._next = iter(samples)

    def advance(self) -> None:
        """One round."""
        self._now += next(self._next)


clock = RecordedClock()
