"""The exceptions: one class per status of the core, with fields that are filled and that survive pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

import xccl
from xccl import _core, errors

STATUSES = _core.status_list()
FAILURES = [name for name, _ in STATUSES if name != "Ok"]
BUILT_IN = {
    "InvalidArgument": ValueError,
    "Timeout": TimeoutError,
    "PeerLost": ConnectionError,
    "OutOfMemory": MemoryError,
}


def raised(name):
    """What the core's status of this name becomes in Python."""
    number = [status for status, _ in STATUSES].index(name)
    with pytest.raises(xccl.Error) as caught:
        _core.raise_status(number)
    return caught.value


def test_the_first_status_is_success():
    assert STATUSES[0][0] == "Ok"


@pytest.mark.parametrize("name", FAILURES)
def test_every_status_has_a_class_of_its_own(name):
    error = raised(name)
    assert type(error) is errors.class_of_status(name)
    assert type(error).__name__ == ("Error" if name == "Failure" else name)
    assert getattr(xccl, type(error).__name__) is type(error)
    assert isinstance(error, BUILT_IN.get(name, Exception))
    assert type(error).__doc__


def test_every_class_belongs_to_a_status():
    classes = {getattr(errors, name) for name in errors.__all__}
    assert classes == {errors.class_of_status(name) for name in FAILURES}


@pytest.mark.parametrize("name", FAILURES)
def test_fields_are_filled(name):
    error = raised(name)
    assert (error.op, error.seq, error.phase, error.ranks) == ("test", 7, "phase", [3])
    assert "raised for a test" in str(error)
    assert "test #7" in str(error)


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_errors_travel_with_their_fields(name, travel):
    error = raised(name)
    again = travel(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.op, again.seq, again.phase, again.ranks) == ("test", 7, "phase", [3])


def test_an_error_can_be_made_without_fields():
    error = xccl.Timeout("too late")
    assert (error.op, error.seq, error.phase, error.ranks) == ("", 0, "", [])
    assert str(error) == "too late"


@pytest.mark.parametrize("built_in", BUILT_IN.values())
def test_code_that_knows_only_python_s_own_errors_catches_ours(built_in):
    name = next(name for name, base in BUILT_IN.items() if base is built_in)
    with pytest.raises(built_in):
        _core.raise_status([status for status, _ in STATUSES].index(name))
