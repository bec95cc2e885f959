"""Signals as bytes in a pipe, so that a select loop can wait for them together with everything else.

Used by `run`. Only for the main thread, as Python's signal handlers are.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class SignalPipe:
    """While entered, `fd` becomes readable when one of the signals arrives, and they do nothing else.

    A signal that this process was started to ignore (nohup) stays ignored; those in `also` are watched
    anyway.
    """

    def __init__(self, *numbers: signal.Signals, also: tuple[signal.Signals, ...] = ()) -> None:
        self._numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN] + list(also)
        self.fd, self._write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write, False)

    def __enter__(self) -> SignalPipe:
        # A full pipe drops bytes, but then the reader is awake already, and looks at its children anyway.
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old_handlers = {n: signal.signal(n, _do_nothing) for n in self._numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self.fd)
        os.close(self._write)

    def read(self) -> bytes:
        """The numbers of the signals that have arrived, one byte each."""
        try:
            return os.read(self.fd, 4096)
        except BlockingIOError:
            return b""


def _do_nothing(number: int, frame: FrameType | None) -> None:
    # The wake-up descriptor has told already. SIG_IGN would not do: ignored signals are passed on to the
    # ranks.
    pass
