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
    QUANT_BOUNDS,
    Check,
    check_balance,
    check_bits,
    check_difference,
    check_logits,
    check_moved,
    check_split,
    check_tokens,
    check_traffic,
    logit_tolerance,
)
from difference import agreement, difference, perplexity_of
from display import Answer, Board, StepProgress
from errors import DemoError
from gguf_file import GgufModel, find_model
from job import COLOCATED, GENERATE, TEACHER_FORCED, Form, Job, Request, read_stats
from launcher import run_ranks
from report import Summary, save_picture, table
from tokenizer import ChatTokenizer
from truth import Truth, perplexity

PARAGRAPH = Path(__file__).resolve().parent / "texts" / "paragraph.txt"
CHECKED_SIZES = (1, 2, 4)
# So few tokens in a step, when experts move while texts are read, that there are steps before, during and after.
STEP_WHILE_MOVING = 4


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
    form: Form = COLOCATED

    @property
    def ranks_in_words(self) -> str:
        """Of the form that serves."""
        return ranks_in_words(self.ranks, self.form)


def ranks_in_words(ranks: int, form: Form) -> str:
    """Such as "3 attention and 5 expert ranks"."""
    if form.attention is not None:
        return f"{form.attention} attention and {ranks - form.attention} expert ranks"
    return f"{ranks} rank{'s' * (ranks > 1)}{' with moving experts' * form.rebalance}"


@dataclass(frozen=True)
class Setup:
    """What the stages share."""

    options: Options
    model: GgufModel
    tokenizer: ChatTokenizer
    prepared: Path
    truth: Truth

    def job(
        self,
        mode: str,
        topks: list[int],
        requests: list[Request],
        quant: str | None = None,
        form: Form = COLOCATED,
    ) -> Job:
        options = self.options
        moving = mode == TEACHER_FORCED and options.form.rebalance
        return Job(
            mode=mode,
            prepared=str(self.prepared),
            topks=topks,
            max_tokens=min(options.max_tokens, STEP_WHILE_MOVING) if moving else options.max_tokens,
            end_token=self.tokenizer.end_id,
            requests=requests,
            broken_expert=options.broken_expert,
            quant=quant,
            form=form,
        )


def run(options: Options) -> int:
    """The whole demo; returns the exit code. The last line printed says how it went."""
    setup = set_up(options)
    quality = show_quality(setup)
    questions = read_prompts(options.prompts)
    answers, requests, summary = serve(setup, questions)
    picture = show_report(setup, summary)
    checks = check(setup, requests, answers, summary)
    failed = [result for result in checks if not result.ok]
    facts = (
        f"{options.ranks_in_words}, {options.experts} experts, top-{options.topk}, {setup.model.config.layers} layers; "
        f"{summary.new_tokens} tokens, {summary.tokens_per_second:.1f} tokens/s; {quality}; "
        f"{len(checks) - len(failed)} of {len(checks)} checks passed, largest logit difference "
        f"{max(result.difference for result in checks):.1e}; picture {picture}"
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
    options = setup.options
    size, topk, quant, form = options.ranks, options.topk, options.quant, options.form
    print(
        f"{len(requests)} prompts on {options.ranks_in_words}, {topk} of {options.experts} experts per token"
        f"{f', rows travel as {quant}' if quant else ''}\n",
        flush=True,
    )
    board = Board(answers)
    with job_folder(setup.options.cache) as folder:
        try:
            run_ranks(setup.job(GENERATE, [topk], requests, quant, form), size, folder, board)
        finally:
            board.close()
        stats = read_stats(folder, size)
    return answers, requests, Summary(stats, setup.model.config.hidden, quant, form)


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


def check(setup: Setup, requests: list[Request], answers: list[Answer], summary: Summary) -> list[Check]:
    """Compare the ranks with one process, on the prompts and the text just generated."""
    truth, options = setup.truth, setup.options
    print("checks:")
    if options.quant is None:
        tolerance = logit_tolerance(options.topk, options.experts).largest
    else:
        tolerance = QUANT_BOUNDS[options.quant].logit
    results = [shown(check_tokens(truth, requests, answers, options.topk, tolerance))]
    texts = [
        Request(request.id, request.tokens + answer.tokens)
        for request, answer in zip(requests, answers, strict=True)
    ]
    results.append(shown(check_split(truth, texts)))
    if options.form == COLOCATED:
        results += check_sizes(setup, texts)
    else:
        results += check_form(setup, texts, summary)
    if options.quant is not None:
        results += check_quantised(setup, options.quant, requests, texts)
    print(flush=True)
    return results


def check_sizes(setup: Setup, texts: list[Request]) -> list[Check]:
    """Any number of ranks, against one process."""
    options, results = setup.options, []
    topks = list(dict.fromkeys([options.experts, options.topk]))
    for size in sorted({*CHECKED_SIZES, options.ranks}):
        with job_folder(options.cache) as folder:
            run_ranks(setup.job(TEACHER_FORCED, topks, texts), size, folder)
            ranks = ranks_in_words(size, COLOCATED)
            results += [shown(check_logits(setup.truth, texts, k, ranks, folder)) for k in topks]
    return results


def check_form(setup: Setup, texts: list[Request], summary: Summary) -> list[Check]:
    """The form that serves, against one process and against the colocated form; and what it says of itself."""
    options, ranks = setup.options, setup.options.ranks_in_words
    # With all experts for every token all have the same load, and none would move.
    topks = [options.topk] if options.form.rebalance else list(dict.fromkeys([options.experts, options.topk]))
    with job_folder(options.cache) as formed, job_folder(options.cache) as colocated:
        run_ranks(setup.job(TEACHER_FORCED, topks, texts, form=options.form), options.ranks, formed)
        run_ranks(setup.job(TEACHER_FORCED, topks, texts), token_ranks(options), colocated)
        results = [shown(check_logits(setup.truth, texts, k, ranks, formed)) for k in topks]
        results += [shown(check_bits(texts, k, ranks, formed, colocated)) for k in topks]
        if options.form.rebalance:
            results.append(shown(check_moved(read_stats(formed, options.ranks), "texts were read")))
    if options.form.rebalance:
        results.append(shown(check_moved(summary.stats, "texts were written")))
        results.append(shown(check_balance(summary.stats)))
    else:
        results += [shown(result) for result in check_traffic(summary.stats, options.form)]
    return results


def token_ranks(options: Options) -> int:
    """Of a colocated run in which every rank has the tokens that one has here."""
    return options.form.token_ranks(options.ranks)


def check_quantised(setup: Setup, quant: str, prompts: list[Request], texts: list[Request]) -> list[Check]:
    """The same ranks read the answers and the paragraph with float32 rows and with quantised ones."""
    options, results = setup.options, []
    size, topk, form = token_ranks(options), options.topk, options.form
    page = Request(len(texts), paragraph(setup))
    with job_folder(options.cache) as plain, job_folder(options.cache) as quantised:
        run_ranks(setup.job(TEACHER_FORCED, [topk], [*texts, page]), size, plain)
        run_ranks(setup.job(TEACHER_FORCED, [topk], [*texts, page], quant), size, quantised)
        found = difference([*texts, page], topk, plain, quantised)
        before, after = (perplexity_of(page, topk, folder) for folder in (plain, quantised))
        agreed = agreement(texts, topk, plain, prompts)
        if form != COLOCATED:
            with job_folder(options.cache) as formed:
                run_ranks(
                    setup.job(TEACHER_FORCED, [topk], [*texts, page], quant, form), options.ranks, formed
                )
                ranks = f"{options.ranks_in_words}, {quant}"
                results.append(shown(check_bits([*texts, page], topk, ranks, formed, quantised)))
    print(
        f"\n{quant} rows beside float32 rows, {ranks_in_words(size, COLOCATED)}, k = {topk}, after each of "
        f"{found.tokens} tokens:\n"
        f"    logits differ by {found.mean:.4f} in the mean, {found.largest:.3f} at most\n"
        f"    predictions diverge by {found.divergence:.2e} nats (KL); the likeliest token is the same after "
        f"{found.same_choice}\n"
        f"    perplexity of the paragraph {before:.3f} -> {after:.3f}\n"
        f"    {sum(same == length for same, length in agreed)} of {len(agreed)} answers are what float32 rows write; "
        f"the same tokens before the first other one: {', '.join(f'{same} of {length}' for same, length in agreed)}\n"
    )
    return results + [shown(result) for result in check_difference(quant, found, before, after)]


def shown(result: Check) -> Check:
    """Print a check as soon as it is known."""
    print(f"    {result}", flush=True)
    return result


@contextmanager
def job_folder(cache: Path) -> Iterator[Path]:
    """A folder for one launch, on the disk of the cache: logits are too large for a small /tmp."""
    with tempfile.TemporaryDirectory(prefix="job-", dir=cache) as name:
        yield Path(name).resolve()
