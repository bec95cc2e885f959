"""A real language model whose experts are spread over processes: python examples/moe_llm/main.py

The command line and nothing else; the stages are in demo.py. The heavy imports wait until the number of BLAS
threads is decided, because numpy reads it only once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RANKS = 4
EXPERTS, TOPK = 32, 28  # chosen by perplexity: see the README


ROUTINGS = {"on": "trampoline", "off": "direct", "auto": "auto"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as that needs no model."""
    parser = argparse.ArgumentParser(
        description="SmolLM2-135M with its feed-forward layers split into experts, served by several ranks."
    )
    add = parser.add_argument
    add("--ranks", type=int, metavar="N", help=f"processes that generate the text (default: {RANKS})")
    add("--experts", type=int, default=EXPERTS, metavar="E", help=f"experts per layer (default: {EXPERTS})")
    add(
        "--topk",
        type=int,
        metavar="K",
        help=f"experts per token (default: {TOPK} of {EXPERTS}, in proportion)",
    )
    add("--prompts", type=Path, default=HERE / "texts" / "prompts.txt", metavar="FILE",
        help="lines 'most new tokens | question'")  # fmt: skip
    add("--cache", type=Path, default=HERE.parents[1] / "build" / "demo", metavar="DIR",
        help="where the prepared model and the picture go (default: build/demo in the repository)")  # fmt: skip
    add("--max-tokens", type=int, default=64, metavar="T", help="tokens of a rank in one step (default: 64)")
    add("--quant", choices=("int8", "fp8_e4m3"),
        help="rows travel quantised; measures what that does to logits and perplexity")  # fmt: skip
    add("--disaggregated", metavar="A:E",
        help="A ranks with attention and E other ranks with the experts, such as 3:5")  # fmt: skip
    add("--trampoline", choices=("on", "off", "auto"),
        help="with --disaggregated: attention writes to one expert rank, which forwards (default: auto)")  # fmt: skip
    add("--rebalance", action="store_true",
        help="experts move while the text is written; shows the load before and after")  # fmt: skip
    add("--break-expert", metavar="LAYER:EXPERT",
        help="let one expert return zeros, to see that the checks notice: the demo must end with FAILED")  # fmt: skip
    options = parser.parse_args(argv)
    if options.topk is None:
        options.topk = max(1, options.experts * TOPK // EXPERTS)
    attention = _disaggregation(parser, options)
    if options.ranks < 1 or options.max_tokens < 1:
        parser.error("--ranks and --max-tokens must be at least 1")
    if not 1 <= options.topk <= options.experts:
        parser.error(f"--topk {options.topk} must be between 1 and --experts {options.experts}")
    if options.rebalance:
        _require_balanceable(parser, options)
    options.form = {
        "attention": attention,
        "routing": ROUTINGS[options.trampoline or "auto"],
        "rebalance": options.rebalance,
    }
    if options.break_expert is not None:
        options.break_expert = _two_numbers(
            parser, "--break-expert", options.break_expert, "LAYER:EXPERT, such as 3:17"
        )
    return options


def _disaggregation(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int | None:
    """How many ranks have attention alone, if that is asked for; settles the number of ranks."""
    if options.disaggregated is None:
        if options.trampoline is not None:
            parser.error("--trampoline is about ranks without experts: give it with --disaggregated A:E")
        options.ranks = RANKS if options.ranks is None else options.ranks
        return None
    attention, experts = _two_numbers(parser, "--disaggregated", options.disaggregated, "A:E, such as 3:5")
    if attention < 1 or experts < 1:
        parser.error(f"--disaggregated {options.disaggregated}: expected at least one rank of each kind")
    if options.ranks is not None:
        parser.error(
            f"--ranks: --disaggregated says already that there are {attention + experts}; leave it out"
        )
    options.ranks = attention + experts
    return attention


def _require_balanceable(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.disaggregated is not None:
        parser.error(
            "--rebalance cannot be used with --disaggregated: the placement of DisaggregatedExperts is fixed"
        )
    if options.ranks < 2:
        parser.error("--rebalance needs at least 2 ranks, between which experts can move")
    if options.topk == options.experts:
        parser.error(
            f"--rebalance needs --topk below {options.experts}: if every token goes to every expert, all have the "
            "same load"
        )


def _two_numbers(parser: argparse.ArgumentParser, option: str, text: str, expected: str) -> tuple[int, int]:
    first, colon, second = text.partition(":")
    if not (colon and first.isdecimal() and second.isdecimal()):
        parser.error(f"{option} {text}: expected {expected}")
    return int(first), int(second)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0 fine, 1 failed, 2 wrong usage, 130 interrupted."""
    options = parse(argv)
    # Ending by `kill` or a closed terminal takes the same orderly way as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # One BLAS thread per process. The ranks are as many as the cores or more, and threads that spin for each
    # other on a busy machine cost more than they bring.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\ndemo: FAILED interrupted", flush=True)
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        import demo
        from errors import DemoError
        from job import Form
    except ModuleNotFoundError as error:
        print(
            f"demo: FAILED the Python package {error.name!r} is missing; pip install numpy, or run: make demo"
        )
        return 1
    try:
        return demo.run(
            demo.Options(
                ranks=options.ranks,
                experts=options.experts,
                topk=options.topk,
                prompts=options.prompts,
                cache=options.cache.resolve(),
                max_tokens=options.max_tokens,
                broken_expert=options.break_expert,
                quant=options.quant,
                form=Form(**options.form),
            )
        )
    except DemoError as error:
        print(f"demo: FAILED {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
