"""The persistent loop of an expert rank: receiving, computing and sending overlap.

Each lane has a thread, which receives its micro-batches and sends their results; the caller's thread computes. So what
belongs to a thread, such as torch's modes, holds in `compute` as it does around `serve`. Used by experts.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from xccl.disaggregated.lane import Batch, Lane

FOR_EVER = 1e9  # seconds: a server waits for work as long as nobody is missing


class Server:
    """One call of `serve`."""

    def __init__(self, lanes: list[Lane], compute: Callable[[Batch], Any]) -> None:
        self._lanes = [lane for lane in lanes if not lane.ended]
        self._compute = compute
        self._failing = threading.Lock()
        self._failure: BaseException | None = None
        # Each lane tells of its micro-batches, and at last of None; and gets, in a list, the results to send, or None.
        self._received: SimpleQueue[tuple[Lane, Batch | None]] = SimpleQueue()
        self._computed: dict[Lane, SimpleQueue[list[Any] | None]] = {
            lane: SimpleQueue() for lane in self._lanes
        }

    def run(self) -> int:
        """How many micro-batches there were. Raises the first failure of any thread, once all have ended."""
        threads = [
            threading.Thread(target=self._tend, args=(lane,), name=f"xccl lane {number}")
            for number, lane in enumerate(self._lanes)
        ]
        served = 0
        try:
            for thread in threads:
                thread.start()
            served = self._compute_all()
        except BaseException as error:  # Ctrl-C among them
            self._fail(error)
        for results in self._computed.values():
            results.put(None)  # who still waits for results gets none
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if self._failure is not None:
            raise self._failure
        return served

    def _compute_all(self) -> int:
        served, going = 0, len(self._lanes)
        while going and self._failure is None:
            lane, batch = self._received.get()
            if batch is None:
                going -= 1
                continue
            self._computed[lane].put([self._compute(batch)])
            served += 1
        return served

    def _tend(self, lane: Lane) -> None:
        try:
            while (batch := lane.receive(FOR_EVER)) is not None:
                self._received.put((lane, batch))
                results = self._computed[lane].get()
                if results is None:
                    break
                lane.send(batch, results.pop(), FOR_EVER)
        except BaseException as error:
            self._fail(error)
        finally:
            self._received.put((lane, None))

    def _fail(self, error: BaseException) -> None:
        """The first failure ends all lanes: the others' waits, here and on other ranks, end with its text."""
        with self._failing:
            if self._failure is not None:
                return
            self._failure = error
        for lane in self._lanes:
            lane.abort(f"{type(error).__name__}: {error}")
