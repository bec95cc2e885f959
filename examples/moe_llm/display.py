"""What the user sees while waiting: progress of the preparation, and texts that grow in parallel.

Called by demo.py. On a terminal the running texts and a progress bar are redrawn in place; otherwise there are
plain lines now and then and no control characters. Not here: the final table and the picture (report.py).
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from job import Event

BAR_CELLS = 24
REDRAW_S = 0.1
PLAIN_LINE_S = 2.0
TAIL_CHARACTERS = 40

Decode = Callable[[list[int]], str]


def bar(done: int, total: int) -> str:
    """A progress bar in ASCII."""
    filled = BAR_CELLS * done // max(total, 1)
    return "[" + "#" * filled + "." * (BAR_CELLS - filled) + "]"


class StepProgress:
    """Progress of a task in a known number of steps, such as the layers of the preparation."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._live = sys.stdout.isatty()
        self._start = time.monotonic()
        self._next_line = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        line = f"{self._what}: {bar(done, total)} {done} of {total} layers, {now - self._start:.0f} s"
        if self._live:
            print(f"\r{line}", end="\n" if done == total else "", flush=True)
        elif now >= self._next_line or done == total:
            self._next_line = now + PLAIN_LINE_S
            print(line, flush=True)


@dataclass
class Answer:
    """One prompt and what has been generated for it so far."""

    request: int
    question: str
    max_new: int
    decode: Decode
    tokens: list[int] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    finished: bool = False

    @property
    def text(self) -> str:
        # A character of several tokens shows as U+FFFD until its last token is there.
        return self.decode(self.tokens).rstrip("\ufffd")


class Board:
    """The answers while they grow."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = {answer.request: answer for answer in answers}
        self._live = sys.stdout.isatty()
        self._start = time.monotonic()
        self._next_draw = 0.0
        self._drawn = 0  # lines of the redrawn area that are on the screen

    def __call__(self, events: list[Event]) -> None:
        """Take in what the ranks have written, and show it when it is time."""
        finished = [answer for event in events if (answer := self._take(event)).finished]
        if finished:
            self._erase()
            for answer in finished:
                print_answer(answer)
        if finished or time.monotonic() >= self._next_draw:
            self._draw()

    def close(self) -> None:
        """Leave the terminal as other output expects it, also after Ctrl-C."""
        self._erase()

    def _take(self, event: Event) -> Answer:
        answer = self.answers[event.request]
        answer.tokens.append(event.token)
        answer.logits.append(event.logit)
        answer.finished = event.last
        return answer

    def _progress(self) -> str:
        seconds = time.monotonic() - self._start
        written = sum(len(answer.tokens) for answer in self.answers.values())
        # An answer that ended by itself is complete, however many tokens it was allowed.
        most = sum(len(a.tokens) if a.finished else a.max_new for a in self.answers.values())
        running = sum(not answer.finished for answer in self.answers.values())
        return (
            f"{bar(written, most)} {written} of {most} tokens, {written / max(seconds, 1e-9):.1f} tokens/s, "
            f"{running} of {len(self.answers)} texts growing"
        )

    def _draw(self) -> None:
        growing = [answer for answer in self.answers.values() if not answer.finished]
        if self._live:
            self._erase()
            width = shutil.get_terminal_size().columns - 1
            lines = [_tail(answer, width) for answer in growing] + [self._progress()[:width]]
            print("\n".join(lines), flush=True)
            self._drawn = len(lines)
            self._next_draw = time.monotonic() + REDRAW_S
        elif growing:
            longest = max(growing, key=lambda answer: len(answer.tokens))
            print(f"{self._progress()}; {_tail(longest, TAIL_CHARACTERS)}", flush=True)
            self._next_draw = time.monotonic() + PLAIN_LINE_S

    def _erase(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="", flush=True)
            self._drawn = 0


def _tail(answer: Answer, width: int) -> str:
    head = f"#{answer.request}: "
    text = " ".join(answer.text.split())
    room = max(width - len(head), 8)
    return head + (text if len(text) <= room else "..." + text[3 - room :])


def print_answer(answer: Answer) -> None:
    """A finished answer, with its question."""
    print(f"#{answer.request}: {answer.question}  ({len(answer.tokens)} tokens)")
    for paragraph in answer.text.splitlines() or [""]:
        print(textwrap.fill(paragraph, 100, initial_indent="    ", subsequent_indent="    "))
    print(flush=True)
