"""Checks of arguments that several calls share. Each raises InvalidArgument, naming the argument and what was expected.

Used by the files beside it, by eplb/ and by launch/. Not here: taking arrays (array.py).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from xccl.errors import InvalidArgument


def positive_seconds(name: str, value: float) -> float:
    """`value` as a float. InvalidArgument, naming the argument, unless it is a finite time."""
    try:
        seconds = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgument(
            f"{name}={value!r}: expected a positive number of seconds; every wait is bounded"
        )
    return seconds


def whole(name: str, value: Any, lowest: int = -(2**31), highest: int = 2**31 - 1) -> int:
    """`value` as an int. InvalidArgument, naming the argument, if it is none or out of range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name}={value!r}: expected a whole number") from None
    if not lowest <= number <= highest:
        raise InvalidArgument(f"{name}={number}: expected {lowest} to {highest}")
    return number


def whole_numbers(name: str, values: Any, lowest: int = -(2**31), highest: int = 2**31 - 1) -> list[int]:
    """A sequence of whole numbers as a list. InvalidArgument, naming the argument, for anything else."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise InvalidArgument(f"{name}={values!r}: expected a sequence of whole numbers")
    return [whole(name, value, lowest, highest) for value in values]


def slots_by_rank(name: str, placement: Any) -> list[list[int]]:
    """A placement as lists: what is in the slots of each rank. InvalidArgument, naming the argument, if it is none."""
    if isinstance(placement, (str, bytes)) or not hasattr(placement, "__iter__"):
        raise InvalidArgument(f"{name}={placement!r}: expected for each rank the experts in its slots")
    return [whole_numbers(f"{name} of rank {rank}", row) for rank, row in enumerate(placement)]


def dimensions(name: str, shape: Any) -> list[int]:
    """A shape, or the one length of an array of one dimension, as a list."""
    if hasattr(shape, "__index__"):
        return [whole(name, shape, 0, 2**62)]
    if isinstance(shape, (str, bytes)) or not hasattr(shape, "__iter__"):
        raise InvalidArgument(f"{name}={shape!r}: expected a whole number or a sequence of them")
    return [whole(name, dim, 0, 2**62) for dim in shape]


def deadline(timeout: float | None) -> float:
    """A call's `timeout=` as the core takes it: -1 stands for the communicator's default."""
    return -1.0 if timeout is None else positive_seconds("timeout", timeout)


def refuse_objects(name: str, dtype: np.dtype[Any]) -> None:
    """InvalidArgument, naming the argument, if its elements are Python objects."""
    if dtype.hasobject:
        raise InvalidArgument(
            f"{name}: dtype {dtype} holds Python objects, which mean nothing to other ranks"
        )
