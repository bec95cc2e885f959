"""Makes each mutant of table.py in a copy of the tree and shows that its test, or its model, notices.

    python tests/mutants/run.py                       # all, as a table: `make mutants`
    python tests/mutants/run.py record-relaxed ...    # some

The checkout is not touched: the copy and its builds lie in build/mutants and are kept, so that a mutant compiles only
what its line is part of. A test must pass in the copy as it is before its failure means anything; a mutant that does
not compile is an error, not a success.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
COPY = ROOT / "build" / "mutants"
BUILT_FROM = ("csrc", "cmake", "tests/native", "bench/native", "CMakeLists.txt", "CMakePresets.json")
SECONDS = 200  # that a test may take as the sources are
HANGS = 10  # a mutant's test is over after so many times that, or never

sys.path.insert(0, str(FOLDER.parent))
from models import run as models  # noqa: E402
from mutants.table import MUTANTS, ModelVariant, Mutant, NativeTest  # noqa: E402


class CannotTell(Exception):
    """The mutant could not be made or judged; the message says why."""


def mutated(mutant: Mutant, source: str) -> str:
    found = source.count(mutant.text)
    if found != 1:
        raise CannotTell(
            f"{mutant.name}: its text is in {mutant.file} {found} times, expected once; the code has changed, "
            f"so tests/mutants/table.py must follow:\n{mutant.text}"
        )
    return source.replace(mutant.text, mutant.instead)


def surroundings(mutant: Mutant, source: str) -> str:
    """Name of the function that the text lies in."""
    before = source[: source.index(mutant.text)]
    functions = re.findall(
        r"^ *[\w:<>*& ]+[ &*](?:\w+::)?(\w+)\([^;{}]*\)(?: const| noexcept)* {", before, re.MULTILINE
    )
    keywords = {"if", "for", "while", "switch", "catch"}
    return next(name for name in reversed(functions) if name not in keywords)


def stands_for(mutant: Mutant, catch: ModelVariant) -> str:
    """Why the variant is not this mutant, as far as can be told from here; "": it may be."""
    model = next((one for one in models.models() if one.name == catch.model), None)
    if model is None or catch.variant not in model.broken:
        return f"{mutant.name}: there is no variant {catch.variant} of a model {catch.model}"
    function = surroundings(mutant, (ROOT / mutant.file).read_text())
    if function not in model.stands_for.get(mutant.file, []):
        return f"{mutant.name}: {model.path.name} does not say that it stands for {function} of {mutant.file}"
    return ""


def update_copy() -> None:
    """The tracked files as they are now; those that are the same keep their times, and what was built of them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *BUILT_FROM],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()}
    for name in names:
        source, copy = ROOT / name, COPY / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    for folder in ("csrc", "tests", "cmake", "bench"):
        for copy in (COPY / folder).rglob("*"):
            if copy.is_file() and str(copy.relative_to(COPY)) not in names:
                copy.unlink()


def build(test: NativeTest) -> None:
    def step(*command: str) -> None:
        done = subprocess.run(command, cwd=COPY, capture_output=True, text=True)
        if done.returncode:
            raise CannotTell(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-4000:]}")

    if not shutil.which("cmake"):
        raise CannotTell("cmake is missing: run `make mutants`, which installs it, or put it on the PATH")
    if not (COPY / "build" / test.preset / "build.ninja").exists():
        step("cmake", "--preset", test.preset)
    step("cmake", "--build", "--preset", test.preset, "--target", f"test_{test.name}")


def fails(test: NativeTest, seconds: float) -> str:
    """How the test fails; "": it passes."""
    command = [str(COPY / "build" / test.preset / "tests" / "native" / f"test_{test.name}")]
    if test.preset == "tsan":
        # ThreadSanitizer of older compilers cannot live with the address randomisation of newer kernels.
        fixed = ["setarch", platform.machine(), "-R"]
        if shutil.which("setarch") and subprocess.run([*fixed, "true"], capture_output=True).returncode == 0:
            command = [*fixed, *command]
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return "" if test.says else f"hangs: not over after {seconds:.0f} s"
    output = done.stdout + done.stderr
    if done.returncode == 0 or (test.says and test.says not in output):
        return ""
    telling = re.search(r"[^/\n]*: CHECK\(.*|ThreadSanitizer: [\w ]+|^rank \d+: .*", output, re.MULTILINE)
    return telling[0].strip() if telling else f"ends with status {done.returncode}"


def usual_seconds(test: NativeTest, known: dict[NativeTest, float]) -> float:
    """What the test takes without a mutant. Fails where the test does."""
    plain = NativeTest(test.name, test.preset)
    if plain not in known:
        build(plain)
        start = time.monotonic()
        if how := fails(plain, SECONDS):
            raise CannotTell(f"{test.name} ({test.preset}) fails without any mutant: {how}")
        known[plain] = time.monotonic() - start
    return known[plain]


def catch(mutant: Mutant, known: dict[NativeTest, float]) -> str:
    """How the mutant is noticed; "": it survives."""
    catcher = mutant.caught_by
    if isinstance(catcher, ModelVariant):
        mutated(mutant, (ROOT / mutant.file).read_text())
        if why_not := stands_for(mutant, catcher):
            raise CannotTell(why_not)
        model = next(one for one in models.models() if one.name == catcher.model)
        try:
            for size in model.sizes or [""]:
                if fault := models.check(models.Case(model, "", size)).fault:
                    raise CannotTell(f"{catcher.model} fails without any mutant: {fault}")
            return models.check(models.Case(model, catcher.variant, "")).fault
        except models.CannotCheck as problem:
            raise CannotTell(str(problem)) from None
    usual = usual_seconds(catcher, known)
    path = COPY / mutant.file
    original = path.read_text()
    path.write_text(mutated(mutant, original))
    try:
        build(catcher)
        return fails(catcher, 10 + HANGS * usual)
    finally:
        path.write_text(original)


def shown(catcher: NativeTest | ModelVariant) -> str:
    if isinstance(catcher, ModelVariant):
        return f"model {catcher.model}:{catcher.variant}"
    return f"{catcher.name} ({catcher.preset})"


def main(names: list[str]) -> int:
    if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
        print(f"no such mutant: {', '.join(sorted(unknown))}; see tests/mutants/table.py", file=sys.stderr)
        return 2
    known: dict[NativeTest, float] = {}
    survivors = []
    print(f"{'mutant':<22} {'must be caught by':<38} {'seconds':>7}  how", flush=True)
    try:
        update_copy()
        for mutant in MUTANTS:
            if names and mutant.name not in names:
                continue
            start = time.monotonic()
            how = catch(mutant, known)
            seconds = time.monotonic() - start
            print(
                f"{mutant.name:<22} {shown(mutant.caught_by):<38} {seconds:>7.0f}  {how or 'SURVIVES'}",
                flush=True,
            )
            if not how:
                survivors.append(mutant)
    except CannotTell as problem:
        print(problem, file=sys.stderr)
        return 2
    for mutant in survivors:
        print(
            f"\n{mutant.name} survives: {mutant.wrong} in {mutant.file}, and nothing notices", file=sys.stderr
        )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
