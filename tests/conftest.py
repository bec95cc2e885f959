"""Fixtures for all tests, and the rule that no test leaves anything behind.

`ranks` runs a function on several ranks, once for every provider and for both ways to move data (see ranks.py).
"""

from __future__ import annotations

import gc
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from ranks import Pool, Ranks, shared_memory_in_use, state_of

# Whoever started the tests in the background may have had SIGINT ignored, which all processes would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every process that a test starts, however indirectly, inherits this variable and can be found by it.
SESSION_MARK = ("STARTED_BY_XCCL_TESTS", uuid.uuid4().hex)
os.environ[SESSION_MARK[0]] = SESSION_MARK[1]
# A test that ranks share a launcher's environment must not meet a real launcher's.
for name in [name for name in os.environ if name.startswith("XCCL_")]:
    del os.environ[name]

hypothesis.settings.register_profile(
    "xccl",
    deadline=None,  # examples wait for other processes on a shared machine
    print_blob=True,
    # The fixture `ranks` has no state that an example could spoil for the next.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("xccl")

_pool = Pool()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption("--long", action="store_true", help="also the tests that take long")
    parser.addoption("--cycles", type=int, default=200, help="how often test_growth.py joins and closes")
    parser.addoption(
        "--rounds", type=int, default=150, help="rounds of dispatch and combine in test_scale.py"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long is run by `make long`."""
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long: `make long` runs it"))


def pytest_collection_finish() -> None:
    """What has been made until here stays: without it each collection after a test would go through it all again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """The processes that are ranks in turn."""
    yield _pool
    _pool.close()


COMBINATIONS = {
    "local-direct": ("local", "1"),
    "local-staged": ("local", "0"),
    "posix_shm-direct": ("posix_shm", "1"),
    "posix_shm-staged": ("posix_shm", "0"),
}


@pytest.fixture(params=COMBINATIONS)
def ranks(request: pytest.FixtureRequest, pool: Pool) -> Ranks:
    """Runs functions on ranks: threads and processes, reading peers' memory by address or only through get and put."""
    provider, direct = COMBINATIONS[request.param]
    return Ranks(provider, pool, {"XCCL_DIRECT": direct})


@pytest.fixture(params=["local", "posix_shm"])
def either_provider(request: pytest.FixtureRequest, pool: Pool) -> Ranks:
    """As `ranks`, for what does not depend on how the data is moved."""
    return Ranks(request.param, pool)


@pytest.fixture
def threads(pool: Pool) -> Ranks:
    """Runs functions on ranks that are threads of the test."""
    return Ranks("local", pool)


@pytest.fixture
def processes(pool: Pool) -> Ranks:
    """Runs functions on ranks that are processes."""
    return Ranks("posix_shm", pool)


def _marked_processes() -> dict[int, str]:
    """Living processes of this session, but for the test itself and those that are meant to stay: pid to command."""
    mark = "=".join(SESSION_MARK).encode()
    tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)
    expected = {os.getpid(), tracker, *_pool.pids}
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) in expected:
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def _zombies() -> set[int]:
    """Children of the test that have ended and that nobody has waited for."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return {pid for pid in pids if state_of(pid) == "Z" and pid not in _pool.pids}


def _traces() -> dict[str, set[object]]:
    return {
        "in /dev/shm": set(os.listdir("/dev/shm")),
        "processes": set(_marked_processes().items()),
        "zombies": set(_zombies()),
        "threads": set(threading.enumerate()),
        "shared memory of this process": set(shared_memory_in_use()),
    }


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Notes whether the test itself failed."""
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no name in /dev/shm, no process, no thread, no shared memory that was not there before."""
    before = _traces()
    yield
    request.node.funcargs.clear()  # pytest would hold the values of the fixtures a little longer
    deadline = time.monotonic() + 5.0  # what is on its way out may finish
    while True:
        gc.collect()
        left = {kind: new for kind, now in _traces().items() if (new := now - before[kind])}
        if request.node.stash.get(_failed, False):
            left.pop("shared memory of this process", None)  # the traceback of the failure keeps it
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    gc.freeze()  # what pytest keeps of each test would make every collection slower than the one before
    assert not left, f"the test left behind: {left}"
