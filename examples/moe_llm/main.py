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
EXPERTS, TOPK = 32, 28  # chosen by perplexity: see the README


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as that needs no model."""
    parser = argparse.ArgumentParser(
        description="SmolLM2-135M with its feed-forward layers split into experts, served by several ranks."
    )
    add = parser.add_argument
    add("--ranks", type=int, default=4, metavar="N", help="processes that generate the text (default: 4)")
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
    add("--break-expert", metavar="LAYER:EXPERT",
        help="let one expert return zeros, to see that the checks notice: the demo must end with FAILED")  # fmt: skip
    options = parser.parse_args(argv)
    if options.topk is None:
        options.topk = max(1, options.experts * TOPK // EXPERTS)
    if options.ranks < 1 or options.max_tokens < 1:
        parser.error("--ranks and --max-tokens must be at least 1")
    if not 1 <= options.topk <= options.experts:
        parser.error(f"--topk {options.topk} must be between 1 and --experts {options.experts}")
    if options.break_expert is not None:
        options.break_expert = _layer_and_expert(parser, options.break_expert)
    return options


def _layer_and_expert(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    layer, colon, expert = text.partition(":")
    if not (colon and layer.isdecimal() and expert.isdecimal()):
        parser.error(f"--break-expert {text}: expected LAYER:EXPERT, such as 3:17")
    return int(layer), int(expert)


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
            )
        )
    except DemoError as error:
        print(f"demo: FAILED {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
