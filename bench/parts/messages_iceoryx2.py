"""iceoryx2's loaned samples from Python: the sender writes nothing and the receiver looks at nothing, at any size."""

from __future__ import annotations

import ctypes
from time import monotonic_ns
from typing import Any

import iceoryx2
import numpy as np

from parts.messages_work import Bytes, MessagesPart, Times


class Part(MessagesPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec["rank"], lambda: self.lend("", np.empty(1, np.uint8), 1))
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        self._job: str = spec["job"]
        self._node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)

    def take(self, case: dict[str, Any]) -> None:
        """See messages_work.py. When both ranks have taken the case, all ports are there."""
        if getattr(self, "_room", 0) != case["room"]:
            out = self._service(self.rank).publisher_builder()
            self._out = out.initial_max_slice_len(case["room"]).create()
            self._in = self._service(1 - self.rank).subscriber_builder().create()
        super().take(case)

    def _service(self, of_rank: int) -> Any:
        name = iceoryx2.ServiceName.new(f"{self._job}/{of_rank}")
        kind = iceoryx2.Slice[ctypes.c_uint8]
        return self._node.service_builder(name).publish_subscribe(kind).open_or_create()

    def _send(self, size: int) -> None:
        self._out.loan_slice_uninit(size).assume_init().send()

    def _receive(self) -> Any:
        while True:
            sample = self._in.receive()
            if sample is not None:
                return sample

    def lend(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        size, send, receive = data.nbytes, self._send, self._receive
        start = monotonic_ns()
        for _ in range(rounds):
            if self.rank == 0:
                send(size)
            receive().delete()
            if self.rank == 1:
                send(size)
        return start, monotonic_ns()

    def borrow_once(self, data: Bytes) -> Bytes:
        """See messages_work.py."""
        if self.rank == 0:
            sample = self._out.loan_slice_uninit(data.nbytes).assume_init()
            np.copyto(_as_array(sample), data)
            sample.send()
            return data
        sample = self._receive()
        seen = _as_array(sample).copy()
        sample.delete()
        return seen


def _as_array(sample: Any) -> Bytes:
    view: Bytes = np.frombuffer(sample.payload().as_memory_view(), np.uint8)
    return view
