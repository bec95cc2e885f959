"""Arrays: `xccl.Array`, dtypes by name, and taking arrays of other libraries without a copy.

Used by communicator.py, expert_parallel.py and csrc/python/hot.cpp. Not here: the memory itself (Communicator.empty).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from xccl import _core
from xccl.arguments import dimensions, refuse_objects
from xccl.errors import InvalidArgument

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


class Array(np.ndarray):
    """A numpy array whose memory XCCL knows; everything numpy does works on it.

    It speaks DLPack for every dtype, bfloat16 (`ml_dtypes.bfloat16`) too, which numpy itself does not:
    `torch.from_dlpack(array)` shares the memory. An array keeps its memory alive, also after `comm.close()`.
    """

    def __dlpack__(  # type: ignore[override]
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over this memory. Raises BufferError for another device, ValueError for a stream."""
        if stream is not None:
            raise ValueError("stream: expected None, since the array lies in host memory")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"dl_device={dl_device}: the array lies in host memory, (1, 0)")
        source = self.copy() if copy else self
        return _core.to_dlpack(source, max_version is not None and max_version[0] >= 1)

    def __dlpack_device__(self) -> tuple[int, int]:  # type: ignore[override]
        return (1, 0)


def as_dtype(dtype: Any, argument: str = "dtype") -> np.dtype[Any]:
    """A numpy dtype from a dtype, a name ("bfloat16" too) or another library's dtype (torch.bfloat16)."""
    if isinstance(dtype, np.dtype):
        return dtype
    name = dtype if isinstance(dtype, str) else str(dtype).rpartition(".")[2] if _is_foreign(dtype) else None
    if name == "bfloat16":
        return BFLOAT16
    try:
        return np.dtype(dtype if name is None else name)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{argument}={dtype!r} is not a dtype that numpy or ml_dtypes knows") from None


def _is_foreign(dtype: Any) -> bool:
    return type(dtype).__module__.partition(".")[0] == "torch"


def view_format(dtype: Any, shape: Any) -> tuple[np.dtype[Any], list[int] | None, int]:
    """As what `recv_view` shows a message: dtype, shape, and the bytes of all of it; without a shape, of an element.

    Raises InvalidArgument for whatever numpy could not show, so that no message is taken for it.
    """
    found = as_dtype("uint8" if dtype is None else dtype)
    refuse_objects("dtype", found)
    if found.itemsize == 0:
        raise InvalidArgument(f"dtype={dtype!r}: its elements have no bytes; give their size, such as 'S8'")
    if shape is None:
        return found, None, found.itemsize
    dims = dimensions("shape", shape)
    try:  # numpy's own limits, asked with an array that lies in one element
        like = np.ndarray(dims, found, buffer=bytes(found.itemsize), strides=[0] * len(dims))
    except ValueError as error:
        raise InvalidArgument(f"shape={shape!r}, dtype={dtype!r}: {error}") from None
    return found, dims, like.nbytes


def as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    """`value` as an ndarray that shares its memory: by DLPack, `__array_interface__` or the buffer protocol.

    A number of numpy's is read-only. Raises InvalidArgument, naming the argument, for anything else; lists would be
    copied, and often wrongly typed.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value)
    if not hasattr(value, "__array_interface__"):
        try:
            value = memoryview(value)
        except TypeError:
            raise InvalidArgument(
                f"{name} is a {type(value).__name__}: expected an array (numpy, or with DLPack, "
                "__array_interface__ or the buffer protocol)"
            ) from None
    array = np.asarray(value)
    if isinstance(value, np.generic):
        array.flags.writeable = False  # a number can only be copied: what is written there would be lost
    return array


def _from_dlpack(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        try:
            capsule = value.__dlpack__(max_version=(1, 0))
        except TypeError:  # a producer of DLPack before 1.0
            capsule = value.__dlpack__()
        return _core.from_dlpack(capsule)
    except (BufferError, RuntimeError, InvalidArgument) as error:
        raise InvalidArgument(f"{name} cannot be taken by DLPack: {error}") from error
