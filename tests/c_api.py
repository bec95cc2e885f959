"""libxccl.so as a program in another language meets it: cffi reads the installed header, opens the installed library.

Used by test_c_*.py, in the test's own process and in the ranks that it starts. Not here: the Python bindings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from ranks import Part

import xccl

HEADER = Path(xccl.get_include(), "xccl.h")
LIBRARY = Path(xccl.get_lib(), "libxccl.so")


def declarations() -> str:
    """What stands between the marks of the header: free of the preprocessor, as the header promises."""
    text = HEADER.read_text()
    return text[text.index("[declarations begin] */") + 23 : text.index("/* [declarations end]")]


def functions() -> set[str]:
    """The functions that the header declares."""
    code = re.sub(r"/\*.*?\*/", "", declarations(), flags=re.DOTALL)
    return set(re.findall(r"\b(xccl_\w+)\(", code))


ffi = cffi.FFI()
ffi.cdef(declarations())
lib: Any = ffi.dlopen(str(LIBRARY))

NULL = ffi.NULL
DEFAULT = lib.XCCL_DEFAULT_TIMEOUT


def text(pointer: Any) -> str:
    """A C string."""
    return ffi.string(pointer).decode(errors="replace")


class CError(Exception):
    """A status that is not XCCL_OK, with all that the thread's last error says."""

    def __init__(self, *fields: Any) -> None:
        super().__init__(*fields)
        self.status, self.message, self.op, self.seq, self.phase, self.ranks = fields

    @classmethod
    def last(cls) -> CError:
        """Of this thread."""
        count = ffi.new("size_t *")
        ranks = lib.xccl_error_ranks(count)
        return cls(
            text(lib.xccl_status_name(lib.xccl_error_status())),
            text(lib.xccl_error_message()),
            text(lib.xccl_error_operation()),
            lib.xccl_error_sequence(),
            text(lib.xccl_error_phase()),
            [ranks[i] for i in range(count[0])],
        )


def must(status: int) -> None:
    """Raises CError unless the status is XCCL_OK."""
    if status != lib.XCCL_OK:
        error = CError.last()
        assert error.status == text(lib.xccl_status_name(status))
        raise error


def made(kind: str, function: Any, *arguments: Any) -> Any:
    """The handle (or pointer) that `function(*arguments, out)` gives."""
    out = ffi.new(f"{kind} **")
    must(function(*arguments, out))
    return out[0]


def config(kind: str, **fields: Any) -> Any:
    """A struct that begins with its size, with its defaults and these fields."""
    made = ffi.new(f"{kind} *")
    init = {"xccl_comm_config": lib.xccl_comm_config_init, "xccl_ep_config": lib.xccl_ep_config_init}
    init.get(kind, lib.xccl_plan_load_init)(made, ffi.sizeof(kind))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def ep_config(**changed: Any) -> Any:
    """A small xccl_ep, with these changes."""
    given = {"num_experts": 7, "hidden": 5, "max_tokens": 9, "topk": 2, "dtype": lib.XCCL_BFLOAT16, **changed}
    return config("xccl_ep_config", **given)


def created(part: Part, **fields: Any) -> Any:
    """Joins the job of the part. Give it back with xccl_comm_destroy."""
    job, provider = ffi.new("char[]", part.job.encode()), ffi.new("char[]", part.provider.encode())
    given = {"rank": part.rank, "rank_count": part.size, "job": job, "provider": provider, **fields}
    return made("xccl_comm", lib.xccl_comm_create, config("xccl_comm_config", **given))


@contextlib.contextmanager
def joined(part: Part, **fields: Any) -> Iterator[Any]:
    """A communicator for a block. An exception that leaves the block is told to the other ranks."""
    comm = created(part, **fields)
    try:
        yield comm
    except BaseException as error:
        lib.xccl_comm_abort(comm, f"{type(error).__name__}: {error}".encode())
        raise
    finally:
        lib.xccl_comm_destroy(comm)


def message(out: Any) -> tuple[int, int, int]:
    """An xccl_message as a tuple."""
    return out.source, out.tag, out.bytes


def at(array: np.ndarray[Any, Any]) -> Any:
    """The address of an array's elements."""
    assert array.flags.c_contiguous
    return ffi.cast("void *", array.ctypes.data)


def as_type(ctype: str, array: np.ndarray[Any, Any]) -> Any:
    """The same, typed."""
    return ffi.cast(f"{ctype} *", array.ctypes.data)


def copied(pointer: Any, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    """`count` elements that lie there, as an array of one's own."""
    if count == 0:
        return np.empty(0, dtype)
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(bytes(ffi.buffer(ffi.cast("char *", pointer), size)), dtype).copy()
