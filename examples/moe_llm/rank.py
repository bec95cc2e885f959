"""What each rank runs: `python -m xccl run -n N rank.py FOLDER`, with a job in FOLDER (job.py).

Started by launcher.py. Takes its share of the requests, generates text or reads given text, and leaves events,
logits and statistics in the folder. Not here: the steps (serving.py), and anything about text; a rank knows
token ids only.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import numpy as np
import prepare
from clock import PhaseClock
from job import GENERATE, Event, Job, RankStats, Request, events_file, logits_file, write_stats
from llama import KvCache, Llama
from place import Place, open_place
from serving import LiveSequence, MoeLayer, Server, Steps, Work

import xccl


class Writer:
    """Lengthens each sequence by its likeliest next token and tells the main program."""

    def __init__(self, model: Llama, requests: list[Request], end_token: int, events: TextIO) -> None:
        self._model = model
        self._limits = {request.id: len(request.tokens) + request.max_new for request in requests}
        self._end_token = end_token
        self._events = events
        self.new_tokens = 0

    def __call__(self, work: Work, hidden: np.ndarray) -> None:
        last_rows = np.cumsum([count for _, count in work]) - 1
        ready = [(s, row) for (s, _), row in zip(work, last_rows, strict=True) if not s.pending]
        if not ready:
            return
        logits = self._model.logits(hidden[[row for _, row in ready]])
        for (sequence, _), scores in zip(ready, logits, strict=True):
            self._append(sequence, int(scores.argmax()), float(scores.max()))
        self._events.flush()

    def _append(self, sequence: LiveSequence, token: int, logit: float) -> None:
        sequence.tokens.append(token)
        sequence.finished = token == self._end_token or len(sequence.tokens) == self._limits[sequence.id]
        self.new_tokens += 1
        event = Event(sequence.id, token, logit, sequence.finished)
        self._events.write(json.dumps(asdict(event)) + "\n")


class LogitRecorder:
    """Keeps the logits after every token of the given sequences, in files."""

    new_tokens = 0

    def __init__(self, model: Llama, folder: Path, topk: int) -> None:
        self._model = model
        self._folder = folder
        self._topk = topk
        self._files: dict[int, np.memmap] = {}

    def __call__(self, work: Work, hidden: np.ndarray) -> None:
        start = 0
        for sequence, count in work:
            logits = self._model.logits(hidden[start : start + count])
            seen = sequence.cache.length
            self._file(sequence, logits.shape[1])[seen - count : seen] = logits
            sequence.finished = not sequence.pending
            start += count

    def _file(self, sequence: LiveSequence, vocabulary: int) -> np.memmap:
        if sequence.id not in self._files:
            path = logits_file(self._folder, self._topk, sequence.id)
            shape = (len(sequence.tokens), vocabulary)
            self._files[sequence.id] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        return self._files[sequence.id]


class Rank:
    """One rank's part of a job."""

    def __init__(self, comm: xccl.Communicator, job: Job, folder: Path) -> None:
        prepared = prepare.load(Path(job.prepared))
        self._comm = comm
        self._job = job
        self._folder = folder
        self._model = Llama(prepared.backbone)
        self._moe = prepared.moe
        tokens_at = job.form.token_ranks(comm.size)
        self._mine = job.requests[comm.rank :: tokens_at] if comm.rank < tokens_at else []

    def run(self) -> None:
        """The whole job, once for each topk."""
        for topk in self._job.topks:
            if self._job.mode == GENERATE:
                self._generate(topk)
            else:
                self._pass(topk, LogitRecorder(self._model, self._folder, topk))

    def _generate(self, topk: int) -> None:
        with events_file(self._folder, self._comm.rank).open("w") as events:
            self._pass(topk, Writer(self._model, self._mine, self._job.end_token, events))

    def _pass(self, topk: int, on_step: Writer | LogitRecorder) -> None:
        """Once through all texts."""
        clock = PhaseClock()
        place = open_place(self._comm, self._job, self._moe, topk, clock)
        self._comm.barrier()  # so that nobody's clock counts how long others took to start
        clock.restart()
        if place.token_ranks is None:
            steps = Steps(total=place.serve() // self._model.config.layers)
        else:
            steps = self._serve_texts(place, topk, clock, on_step)
        write_stats(self._folder, self._stats(place, clock, steps, on_step.new_tokens))
        place.close()

    def _serve_texts(
        self, place: Place, topk: int, clock: PhaseClock, on_step: Writer | LogitRecorder
    ) -> Steps:
        layer = MoeLayer(self._moe, topk, place, clock)
        server = Server(place.token_ranks, self._model, layer, self._job.max_tokens, clock)
        server.run([self._sequence(request) for request in self._mine], on_step)
        place.end()
        return server.steps

    def _sequence(self, request: Request) -> LiveSequence:
        cache = KvCache(self._model.config, len(request.tokens) + request.max_new)
        return LiveSequence(request.id, list(request.tokens), cache)

    def _stats(self, place: Place, clock: PhaseClock, steps: Steps, new_tokens: int) -> RankStats:
        clock.switch("agree")  # the phase that is running is counted to its end
        return RankStats(
            rank=self._comm.rank,
            seconds=sum(clock.seconds.values()),
            phases=clock.seconds,
            steps=steps.total,
            idle_steps=steps.idle,
            read_tokens=steps.tokens,
            new_tokens=new_tokens,
            bytes_moved=place.bytes_moved,
            own_memory=_own_memory(),
            loads=place.loads,
            traffic=place.traffic,
            moved=place.moved,
        )


def _own_memory() -> int:
    """Bytes of anonymous memory: not the mapped weights, which all ranks share, and not XCCL's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Joins the job, works, leaves."""
    folder = Path(sys.argv[1])
    job = Job.read(folder)
    with xccl.init() as comm:
        Rank(comm, job, folder).run()


if __name__ == "__main__":
    main()
