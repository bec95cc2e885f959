"""The XCCL_ environment variables: a wrong value is refused by name, an unknown variable is noticed, limits hold."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from ranks import UNDER_ASAN

import xccl
from xccl import _core


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XCCL_DIRECT", "yes"),
        ("XCCL_HUGE_PAGES", "2"),
        ("XCCL_TIMEOUT", "soon"),
        ("XCCL_TIMEOUT", "0"),
        ("XCCL_TIMEOUT", "-3"),
        ("XCCL_TIMEOUT", "nan"),
        ("XCCL_TIMEOUT", "inf"),
        ("XCCL_TIMEOUT", "3 s"),
        ("XCCL_STARTUP_TIMEOUT", "1e-9"),
        ("XCCL_ADDRESS_SPACE", "64Q"),
        ("XCCL_ADDRESS_SPACE", "-1G"),
        ("XCCL_ADDRESS_SPACE", "nanG"),
        ("XCCL_SPIN_US", "-2"),
        ("XCCL_SPIN_US", "a while"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(xccl.InvalidArgument, match=f'{name}="{value}": expected'):
        xccl.init()


def test_a_wrong_provider_or_instruction_set_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("XCCL_PROVIDER", "telepathy")
    with pytest.raises(xccl.InvalidArgument, match='"telepathy" does not exist'):
        xccl.init()
    monkeypatch.setenv("XCCL_PROVIDER", "local")
    monkeypatch.setenv("XCCL_KERNELS", "abacus")
    with xccl.init() as comm, pytest.raises(xccl.InvalidArgument, match='XCCL_KERNELS="abacus"'):
        xccl.ExpertParallel(comm, 2, 4, 4, 1)


def test_a_buffered_message_larger_than_its_buffers_allow_is_refused(monkeypatch):
    monkeypatch.setenv("XCCL_EAGER_LIMIT", "257K")
    with pytest.raises(xccl.InvalidArgument, match='XCCL_EAGER_LIMIT="263168": expected at most 262144'):
        xccl.init()
    monkeypatch.setenv("XCCL_EAGER_LIMIT", "256K")
    with xccl.init() as comm:
        comm.send(np.ones(1 << 18, np.uint8), 0, timeout=1)  # nobody has asked for it


def test_an_unknown_variable_is_noticed(monkeypatch):
    monkeypatch.setenv("XCCL_TIMEOUTS", "3")
    with pytest.warns(UserWarning, match="XCCL_TIMEOUTS: XCCL reads no such variable"), xccl.init():
        pass


def test_known_and_launcher_variables_are_not(monkeypatch):
    for name, _, default, _ in _core.config():
        monkeypatch.setenv(name, default)
    for name, value in {"XCCL_RANK": "0", "XCCL_SIZE": "1", "XCCL_JOB": "test-known-variables"}.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xccl.init() as comm:
            assert comm.size == 1


def test_every_setting_is_explained_and_its_default_is_valid(monkeypatch):
    settings = _core.config()
    assert len(settings) >= 8
    for name, value, default, what in settings:
        assert name.startswith("XCCL_")
        assert value == default
        assert what
        monkeypatch.setenv(name, default)
    with xccl.init() as comm:
        comm.barrier()


def test_settings_are_read_when_a_communicator_starts(monkeypatch):
    monkeypatch.setenv("XCCL_PROVIDER", "local")
    monkeypatch.setenv("XCCL_TIMEOUT", "7.5")
    with xccl.init() as comm:
        assert (comm.provider, comm.timeout) == ("local", 7.5)
        monkeypatch.setenv("XCCL_TIMEOUT", "8")
        with xccl.init(provider="posix_shm", timeout=2) as other:
            assert (other.provider, other.timeout) == ("posix_shm", 2)
        assert comm.timeout == 7.5
    monkeypatch.setenv("XCCL_TIMEOUT", "")  # empty is as good as not set
    with xccl.init() as comm:
        assert comm.timeout == 30.0


@pytest.mark.parametrize("amount", ["64M", "1G", "0.5G", "200000000"])
def test_the_reserved_address_space_can_be_chosen(monkeypatch, amount):
    monkeypatch.setenv("XCCL_ADDRESS_SPACE", amount)
    if amount == "64M":  # the control segment alone takes that
        with pytest.raises(xccl.OutOfMemory, match="XCCL_ADDRESS_SPACE"):
            xccl.init()
        return
    with xccl.init() as comm:
        comm.empty(10_000)[:] = 1
        with pytest.raises(xccl.OutOfMemory, match="XCCL_ADDRESS_SPACE"):
            comm.empty(2**30, "uint8")


# --- Limits of the process, in a process of their own -----------------------------------------------------------


def run(program):
    """Runs a program; returns what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.skipif(UNDER_ASAN, reason="AddressSanitizer needs terabytes of address space")
@pytest.mark.parametrize("gib", [1.5, 4, 64])
def test_a_limit_of_address_space_makes_less_room_or_out_of_memory_but_no_crash(gib):
    said = run(
        f"""
        import resource, xccl
        resource.setrlimit(resource.RLIMIT_AS, (int({gib} * 2**30),) * 2)
        try:
            with xccl.init() as comm:
                with xccl.ExpertParallel(comm, 8, 256, 16, 2) as ep:
                    print("works")
                try:
                    xccl.ExpertParallel(comm, 8, 8192, 65536, 8)
                except xccl.OutOfMemory as error:
                    print("refused:", error)
        except xccl.OutOfMemory as error:
            print("refused:", error)
        """
    )
    assert "refused" in said
    assert "address space" in said
    if gib >= 4:
        assert "works" in said


def test_a_limit_of_open_files_is_raised_as_far_as_it_may_be():
    said = run(
        """
        import os, resource, xccl
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
        with xccl.init() as comm:
            print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256)
        """
    )
    assert said == "True\n"
    said = run(
        """
        import resource, xccl
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        try:
            xccl.init(rank=0, size=64, job="too-few-files", startup_timeout=5)
        except xccl.Error as error:
            print(error)
        """
    )
    assert "ulimit -Hn" in said


def test_a_limit_of_file_size_is_told():
    said = run(
        """
        import resource, signal, xccl
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        try:
            with xccl.init() as comm:
                comm.barrier()
                print("works")
        except xccl.OutOfMemory as error:
            print("refused:", error)
        """
    )
    assert "works" in said or "ulimit -f" in said
