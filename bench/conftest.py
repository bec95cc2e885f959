"""Options of the benchmarks, and the way from a question to pytest-benchmark: a test for each figure.

The first test of a case measures all its competitors in turn (driver/); each test then hands the samples of its own
competitor to pytest-benchmark. A competitor that is missing, or a peer that went wrong, is a skipped test with the
reason; XCCL or a floor that went wrong is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver.clock import clock
from driver.interleave import Effort
from driver.question import PEER, Entry, Question
from driver.session import Session
from pytest_benchmark.fixture import BenchmarkFixture

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("xccl benchmarks")
    options.addoption("--samples", type=int, default=15, help="of each competitor in each case")
    options.addoption("--seconds", type=float, default=0.03, help="that one sample is meant to take")
    options.addoption(
        "--cores", type=int, default=2, help="how many of this process's cores all of it may use"
    )
    options.addoption("--results", type=Path, default=RESULTS, help="folder for JSON, tables and plots")
    options.addoption("--smoke", action="store_true", help="tiny cases, no peers: only see that it works")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" in metafunc.fixturenames:
        question: Question = metafunc.module.QUESTION
        entries = list(question.entries(metafunc.config.getoption("smoke")))
        metafunc.parametrize("entry", entries, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))
        item.add_marker(pytest.mark.timeout(0))  # the driver has deadlines of its own


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Iterator[Session]:
    """What this run measures. At its end the files are written."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: pytestconfig.getoption("cores")])
    smoke = pytestconfig.getoption("smoke")
    effort = Effort(
        samples=1 if smoke else pytestconfig.getoption("samples"),
        seconds=0.001 if smoke else pytestconfig.getoption("seconds"),
    )
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")

    def say(line: str) -> None:
        if terminal:
            terminal.write(f"\r\033[K{line}" if terminal.isatty else f"{line}\n")

    found = Session(effort, not smoke, pytestconfig.getoption("results"), say)
    try:
        yield found
    finally:
        for path in found.finish():
            say(f"written: {path}\n")


@pytest.fixture
def report(session: Session, request: pytest.FixtureRequest) -> Callable[[Entry], None]:
    """Measures the entry's case if that has not been done, and hands its samples to pytest-benchmark."""
    question: Question = request.module.QUESTION

    def hand_over(entry: Entry) -> None:
        measured, tables = session.measured(question, entry.case)
        name = entry.competitor.name
        if why := measured.absent.get(name):
            if name in measured.failed and entry.competitor.role != PEER:
                pytest.fail(f"{name}: {why}", pytrace=False)
            pytest.skip(f"{name}: {why}")
        table = next(one for one in tables if one.metric == entry.metric)
        row = next(one for one in table.rows if one.competitor.name == name)
        own = [one for one in measured.samples if (one.competitor, one.metric) == (name, entry.metric)]
        used = [one for one in own if one.regime == table.regime] or own
        benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
        benchmark.group = entry.group
        benchmark.name = name
        benchmark.extra_info.update(
            role=entry.competitor.role,
            regime=table.regime,
            samples_by_regime=table.regimes,
            median_s=row.median,
            to_best_peer=row.to_best_peer,
            to_floor=row.to_floor,
        )
        samples = [one.seconds for one in used]
        clock.play(samples)
        benchmark.pedantic(clock.advance, rounds=len(samples))
        assert all(seconds > 0 for seconds in samples)

    return hand_over
