"""What every rank process runs, whatever library it measures: it joins, then obeys the driver until told to end.

Started by driver/group.py in the environment of the library. The library itself is in a part (parts/), a module with a
class `Part`. Needs only the standard library. Commands and answers are lines of JSON over a Unix socket:

    {"do": "case", "case": {...}}   make ready for it                 -> {}
    {"do": "run", "variant": "...", "iterations": k, "seed": s}
                                    take a sample                     -> {"spans": {metric: [[start, end, count]...]}}
    {"do": "check"}                 was the last run's result right?  -> {"wrong": text or null}
    {"do": "end"}                   leave

A span says when something began and ended, in ns of CLOCK_MONOTONIC, and how many times it was done meanwhile.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Joins with the library, tells the driver, obeys."""
    spec: dict[str, Any] = json.loads(os.environ["BENCH_RANK_SPEC"])
    # A stopped process would not notice that the driver has gone, and stay for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    driver = socket.socket(socket.AF_UNIX)
    driver.connect(spec["socket"])
    lines = driver.makefile("rw", encoding="utf-8")

    def tell(answer: dict[str, Any]) -> None:
        lines.write(json.dumps(answer) + "\n")
        lines.flush()

    try:
        part = importlib.import_module(f"parts.{spec['part']}").Part(spec)
        if spec["pinned"]:  # only now: a library that looks at the cores when it starts shall see all of them
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[part.rank % len(cores)]})
        tell({"rank": part.rank, "pid": os.getpid()})
        gc.disable()
        while (command := json.loads(lines.readline() or '{"do": "end"}'))["do"] != "end":
            tell(answer(part, command))
        part.close()
    except BaseException:
        tell({"error": traceback.format_exc(), "pid": os.getpid()})
        sys.exit(1)


def answer(part: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Does what is asked."""
    gc.collect()
    if command["do"] == "case":
        part.take(command["case"])
        return {}
    if command["do"] == "run":
        return {"spans": part.run(command["variant"], command["iterations"], command["seed"])}
    return {"wrong": part.check()}


if __name__ == "__main__":
    main()
