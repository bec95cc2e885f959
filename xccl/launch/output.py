"""What ranks write, passed on as whole lines: two ranks never share one.

Used by `run` only. A `Merger` knows nothing of processes; it is fed bytes and writes to file descriptors.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, field

# A line that has been growing for this long is shown before it ends, if a person is watching.
_PATIENCE_S = 0.1

# A "line" of more than this is not text, and is passed on in pieces rather than held.
_LONGEST_LINE = 1 << 20

_TAIL_BYTES = 8192


@dataclass(eq=False)
class Stream:
    """One output of one rank: where it goes, what stands before its lines, what was written last."""

    target: int
    prefix: bytes = b""
    tail: bytearray = field(default_factory=bytearray)
    pending: bytearray = field(default_factory=bytearray)
    pending_since: float = 0.0


class Merger:
    """Writes the lines of many streams, each line in one piece.

    On a terminal (`live`), text that waits for its end of line is shown as it grows (a prompt, the words of a
    model), until another rank has a line to show: then it is broken off. Elsewhere only whole lines are
    written.
    """

    def __init__(self, live: bool) -> None:
        self._live = live
        self._growing: Stream | None = None  # its unfinished line is on the terminal now
        self._held: set[Stream] = set()  # streams with an unfinished line that is not shown

    def feed(self, stream: Stream, data: bytes) -> None:
        """Takes what a rank wrote and passes on the lines that are complete."""
        stream.tail += data
        if len(stream.tail) > 2 * _TAIL_BYTES:
            del stream.tail[:-_TAIL_BYTES]
        stream.pending += data
        self._show(stream, _end_of_last_line(stream.pending))
        if stream.pending and stream not in self._held:
            stream.pending_since = time.monotonic()
            self._held.add(stream)

    def finish(self, stream: Stream) -> None:
        """The rank will write no more: a last line without an end gets one."""
        if stream.pending or self._growing is stream:
            stream.pending += b"\n"
            self._show(stream, len(stream.pending))

    def show_growing(self) -> float | None:
        """Shows the line that has grown for longest. Returns in how many seconds to call again, None if never."""
        self._held = {stream for stream in self._held if stream.pending}
        if not (self._live and self._held):
            return None
        oldest = min(self._held, key=lambda stream: stream.pending_since)
        left = oldest.pending_since + _PATIENCE_S - time.monotonic()
        if left > 0:
            return left
        self._show(oldest, len(oldest.pending))
        return _PATIENCE_S

    def _show(self, stream: Stream, count: int) -> None:
        """Writes the first `count` bytes of what is pending."""
        if count == 0:
            return
        text = bytes(stream.pending[:count])
        del stream.pending[:count]
        continues = self._growing is stream
        breaks_off = self._growing is not None and not continues
        self._growing = None if text.endswith((b"\n", b"\r")) else stream
        if stream.prefix:
            text = _with_prefix(text, stream.prefix, continues)
        write_all(stream.target, b"\n" + text if breaks_off else text)


def write_all(target: int, data: bytes) -> None:
    """Writes everything, however little the descriptor takes at a time, blocking or not."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            select.select([], [target], [])


def last_lines(stream: Stream, count: int = 30) -> str:
    """The last lines that a rank wrote there, as text."""
    return "\n".join(stream.tail[-_TAIL_BYTES:].decode(errors="replace").splitlines()[-count:])


def _end_of_last_line(text: bytearray) -> int:
    if len(text) > _LONGEST_LINE:
        return len(text)
    # A carriage return ends a line, too: progress bars write nothing else. At the very end it may be the
    # first half of "\r\n", so there it waits for what follows.
    return max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1


def _with_prefix(text: bytes, prefix: bytes, continues: bool) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join(line if continues and i == 0 else prefix + line for i, line in enumerate(lines))
