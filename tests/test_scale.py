"""Many rounds and many ranks, on however few cores there are: `python -m xccl run -n N`.

150 rounds here; `make test PYTEST_ARGS='-k test_scale --rounds 1000'` takes some minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import UNDER_ASAN

pytestmark = pytest.mark.skipif(
    UNDER_ASAN, reason="more processes than there is memory for AddressSanitizer's"
)
PROGRAM = Path(__file__).with_name("scale_program.py")


def run(size: int, *arguments: object, timeout: float) -> str:
    """Runs scale_program.py on `size` ranks and gives back what rank 0 printed."""
    command = [sys.executable, "-m", "xccl", "run", "-n", str(size), str(PROGRAM), *map(str, arguments)]
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(900)
def test_many_rounds_on_eight_ranks_give_the_bits_of_one_two_and_three(request):
    # Every round has the same 32 x 8 tokens in all, however many ranks share them; each is compared with numpy.
    count = request.config.getoption("--rounds")
    answers = {size: run(size, "rounds", 1024, count, timeout=880) for size in (1, 2, 3, 8)}
    assert len(set(answers.values())) == 1, answers


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("hidden", [1024, 7168])
def test_sixty_four_ranks_go_some_rounds_within_a_tenth_of_the_planned_memory(hidden):
    assert run(64, "memory", hidden, 5, timeout=180).startswith("right; ")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_256_ranks_meet_dispatch_combine_and_end_within_a_tenth_of_the_planned_memory():
    assert run(256, "memory", 1024, 2, timeout=280).startswith("right; ")
