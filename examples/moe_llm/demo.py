"""The demo from beginning to end: prepare, measure perplexity, serve, report, check.

Called by main.py with the parsed command line. Each stage is a function here that calls one other file; a way of
serving, such as quantised rows, is a field of Job.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import prepare
from checks import (
    LOGIT_TOLERANCE,
    QUANT_BOUNDS,
    Check,
    check_difference,
    check_logits,
    check_split,
    check_tokens,
)
from difference import agreement, difference, perplexity_of
from display import Answer, Board, StepProgress
from errors import DemoError
from gguf_file import GgufModel, find_model
from job import GENERATE, TEACHER_FORCED, Job, Request, read_stats
from launcher import run_ranks
from report import Summary, save_picture, table
from tokenizer import ChatTokenizer
from truth import Truth, perplexity

PARAGRAPH = Path(__file__).resolve().parent / "texts" / "paragraph.txt"
CHECKED_SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Options:
    """The command line."""

    ranks: int
    experts: int
    topk: int
    prompts: Path
    cache: Path
    max_tokens: int
    broken_expert: tuple[int, int] | None
    quant: str | None = None


@dataclass(frozen=True)
class Setup:
    """What the stages share."""

    options: Options
    model: GgufModel
    tokenizer: ChatTokenizer
    prepared: Path
    truth: Truth

    def job(self, mode: str, topks: list[int], requests: list[Request], quant: str | None = None) -> Job:
        options = self.options
        return Job(
            mode=mode,
            prepared=str(self.prepared),
            topks=topks,
            max_tokens=options.max_tokens,
            end_token=self.tokenizer.end_id,
            requests=requests,
            broken_expert=options.broken_expert,
            quant=quant,
        )


def run(options: Options) -> int:
    """The whole demo; returns the exit code. The last line printed says how it went."""
    setup = set_up(options)
    quality = show_quality(setup)
    questions = read_prompts(options.prompts)
    answers, requests, summary = serve(setup, questions)
    picture = show_report(setup, summary)
    checks = check(setup, requests, answers)
    failed = [result for result in checks if not result.ok]
    facts = (
        f"{options.ranks} ranks, {options.experts} experts, top-{options.topk}, {setup.model.config.layers} layers; "
        f"{summary.new_tokens} tokens, {summary.tokens_per_second:.1f} tokens/s; {quality}; "
        f"{len(checks) - len(failed)} of {len(checks)} checks passed, largest logit difference "
        f"{max(result.difference for result in checks):.1e} (tolerance {LOGIT_TOLERANCE:g}); picture {picture}"
    )
    print(f"demo: {'FAILED' if failed else 'OK'} {facts}")
    return 1 if failed else 0


def set_up(options: Options) -> Setup:
    """Read the model, split it if that has not been done yet."""
    print("reading the model", flush=True)
    model = GgufModel(find_model())
    tokenizer = ChatTokenizer(model)
    _check_broken_expert(options, model.config.layers)
    progress = StepProgress(f"splitting every layer into {options.experts} experts")
    folder = prepare.find_or_prepare(model, tokenizer, options.experts, options.cache, progress)
    print(f"prepared model: {folder}\n")
    return Setup(options, model, tokenizer, folder, Truth(model, prepare.load(folder)))


def _check_broken_expert(options: Options, layers: int) -> None:
    if options.broken_expert is None:
        return
    layer, expert = options.broken_expert
    if layer >= layers or expert >= options.experts:
        raise DemoError(
            f"--break-expert {layer}:{expert}: layers are 0 to {layers - 1}, experts 0 to {options.experts - 1}"
        )


def paragraph(setup: Setup) -> list[int]:
    """Tokens of a text that nothing was fitted to."""
    return setup.tokenizer.encode(" ".join(PARAGRAPH.read_text(encoding="utf-8").split()))


def show_quality(setup: Setup) -> str:
    """Perplexity on a paragraph nobody was fitted to: dense, k = E and the chosen k."""
    tokens = paragraph(setup)
    truth, topk = setup.truth, setup.options.topk
    measured = {"dense": perplexity(truth.dense_logits(tokens), tokens)}
    for k in dict.fromkeys([truth.experts, topk]):
        measured[f"k={k}"] = perplexity(truth.moe_logits(tokens, k), tokens)
    print(f"perplexity on a paragraph of {len(tokens)} tokens (one process):")
    for name, value in measured.items():
        print(f"    {name:6} {value:.2f}")
    print(flush=True)
    return "perplexity " + ", ".join(f"{name} {value:.1f}" for name, value in measured.items())


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """(most new tokens, question) of each line "N | question"; empty lines and # comments are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DemoError(f"cannot read the prompts: {error}; give another file with --prompts") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        limit, bar, question = line.partition("|")
        if not bar or not limit.strip().isdecimal() or int(limit) < 1 or not question.strip():
            raise DemoError(
                f"{path}:{number}: expected 'most new tokens | question', such as '40 | Who are you?'"
            )
        prompts.append((int(limit), question.strip()))
    if not prompts:
        raise DemoError(f"{path} has no prompts; write lines such as '40 | Who are you?'")
    return prompts


def serve(setup: Setup, questions: list[tuple[int, str]]) -> tuple[list[Answer], list[Request], Summary]:
    """Generate all answers with the ranks, showing the text as it grows."""
    requests = [
        Request(index, setup.tokenizer.encode_chat(question), limit)
        for index, (limit, question) in enumerate(questions)
    ]
    _check_lengths(requests, setup.model.config.context)
    answers = [
        Answer(index, question, limit, setup.tokenizer.decode)
        for index, (limit, question) in enumerate(questions)
    ]
    size, topk, quant = setup.options.ranks, setup.options.topk, setup.options.quant
    print(
        f"{len(requests)} prompts on {size} ranks, {topk} of {setup.options.experts} experts per token"
        f"{f', rows travel as {quant}' if quant else ''}\n",
        flush=True,
    )
    board = Board(answers)
    with job_folder(setup.options.cache) as folder:
        try:
            run_ranks(setup.job(GENERATE, [topk], requests, setup.options.quant), size, folder, board)
        finally:
            board.close()
        stats = read_stats(folder, size)
    config, quant = setup.model.config, setup.options.quant
    return answers, requests, Summary(stats, config.layers, setup.options.experts, config.hidden, quant)


def _check_lengths(requests: list[Request], context: int) -> None:
    for request in requests:
        if len(request.tokens) + request.max_new > context:
            raise DemoError(
                f"prompt #{request.id} and its answer exceed the model's {context} tokens; shorten it"
            )


def show_report(setup: Setup, summary: Summary) -> Path:
    """Print the table, save the picture."""
    print(table(summary))
    path = setup.options.cache / "expert-load.png"
    save_picture(summary, path)
    print(f"picture        {path}\n", flush=True)
    return path


def check(setup: Setup, requests: list[Request], answers: list[Answer]) -> list[Check]:
    """Compare the ranks with one process, on the prompts and the text just generated."""
    truth, options = setup.truth, setup.options
    print(f"checks (tolerance {LOGIT_TOLERANCE:g} for each logit of float32 rows):")
    tolerance = LOGIT_TOLERANCE if options.quant is None else QUANT_BOUNDS[options.quant].logit
    results = [shown(check_tokens(truth, requests, answers, options.topk, tolerance))]
    texts = [
        Request(request.id, request.tokens + answer.tokens)
        for request, answer in zip(requests, answers, strict=True)
    ]
    results.append(shown(check_split(truth, texts)))
    topks = list(dict.fromkeys([options.experts, options.topk]))
    for size in sorted({*CHECKED_SIZES, options.ranks}):
        with job_folder(options.cache) as folder:
            run_ranks(setup.job(TEACHER_FORCED, topks, texts), size, folder)
            results += [shown(check_logits(truth, texts, topk, size, folder)) for topk in topks]
    if options.quant is not None:
        results += check_quantised(setup, options.quant, requests, texts)
    print(flush=True)
    return results


def check_quantised(setup: Setup, quant: str, prompts: list[Request], texts: list[Request]) -> list[Check]:
    """The same ranks read the answers and the paragraph with float32 rows and with quantised ones."""
    size, topk = setup.options.ranks, setup.options.topk
    page = Request(len(texts), paragraph(setup))
    with job_folder(setup.options.cache) as plain, job_folder(setup.options.cache) as quantised:
        run_ranks(setup.job(TEACHER_FORCED, [topk], [*texts, page]), size, plain)
        run_ranks(setup.job(TEACHER_FORCED, [topk], [*texts, page], quant), size, quantised)
        found = difference([*texts, page], topk, plain, quantised)
        before, after = (perplexity_of(page, topk, folder) for folder in (plain, quantised))
        agreed = agreement(texts, topk, plain, prompts)
    print(
        f"\n{quant} rows beside float32 rows, {size} ranks, k = {topk}, after each of {found.tokens} tokens:\n"
        f"    logits differ by {found.mean:.4f} in the mean, {found.largest:.3f} at most\n"
        f"    predictions diverge by {found.divergence:.2e} nats (KL); the likeliest token is the same after "
        f"{found.same_choice}\n"
        f"    perplexity of the paragraph {before:.3f} -> {after:.3f}\n"
        f"    {sum(same == length for same, length in agreed)} of {len(agreed)} answers are what float32 rows write; "
        f"the same tokens before the first other one: {', '.join(f'{same} of {length}' for same, length in agreed)}\n"
    )
    return [shown(result) for result in check_difference(quant, found, before, after)]


def shown(result: Check) -> Check:
    """Print a check as soon as it is known."""
    print(f"    {result}", flush=True)
    return result


@contextmanager
def job_folder(cache: Path) -> Iterator[Path]:
    """A folder for one launch, on the disk of the cache: logits are too large for a small /tmp."""
    with tempfile.TemporaryDirectory(prefix="job-", dir=cache) as name:
        yield Path(name).resolve()
