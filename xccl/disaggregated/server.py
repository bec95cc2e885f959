"""The persistent loop of an expert rank: a thread for each lane, so that receiving, computing and sending overlap."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from xccl.disaggregated.lane import Batch, Lane

FOR_EVER = 1e9  # seconds: a server waits for work as long as nobody is missing


class Server:
    """The loop of an expert rank: a thread for each lane, one of which computes."""

    def __init__(self, lanes: list[Lane], compute: Callable[[Batch], Any]) -> None:
        self._lanes = lanes
        self._compute = compute
        self._computing, self._failing = threading.Lock(), threading.Lock()
        self._served = 0
        self._failure: BaseException | None = None

    def run(self) -> int:
        if len(self._lanes) == 1:
            self._serve(self._lanes[0])
        else:
            threads = [threading.Thread(target=self._serve, args=(lane,)) for lane in self._lanes]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException as error:  # Ctrl-C
                self._fail(error)
                for thread in threads:
                    thread.join()
                raise
        if self._failure is not None:
            raise self._failure
        return self._served

    def _serve(self, lane: Lane) -> None:
        try:
            while (batch := lane.receive(FOR_EVER)) is not None:
                with self._computing:
                    rows = self._compute(batch)
                    self._served += 1
                lane.send(batch, rows, FOR_EVER)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The first failure ends all lanes: the others' waits, here and on other ranks, end with its text."""
        with self._failing:
            if self._failure is not None:
                return
            self._failure = error
        for lane in self._lanes:
            lane.abort(f"{type(error).__name__}: {error}")
