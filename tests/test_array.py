"""`comm.empty` and `xccl.Array`: memory that ranks can reach, numpy arrays, and DLPack both ways.

The tests with torch run where it is installed.
"""

from __future__ import annotations

import gc
import pickle

import ml_dtypes
import numpy as np
import pytest
from ranks import error_of
from test_dispatch_combine import shape_arguments
from truth import Shape, combined, random_batch, same_bits

import xccl
from xccl import _core
from xccl.array import as_array, as_dtype

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "uint64",
    "bool",
]


@pytest.fixture(params=["posix_shm", "local"])
def comm(request):
    with xccl.init(provider=request.param) as comm:
        yield comm


def numbers(comm, shape, dtype):
    """An array with a different small number in every element."""
    a = comm.empty(shape, dtype)
    a[...] = (np.arange(a.size).reshape(a.shape) % 120).astype(a.dtype)
    return a


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype(comm, dtype):
    a = comm.empty((3, 5), dtype)
    assert type(a) is xccl.Array
    assert a.dtype == as_dtype(dtype)
    assert a.flags.c_contiguous
    assert a.flags.writeable
    assert a.ctypes.data % 64 == 0
    a[...] = 1
    assert a.astype(float).sum() == 15


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(4, (4,)), (np.int64(4), (4,)), ((2, 3, 4), (2, 3, 4)), ([2, 0, 4], (2, 0, 4)), ((), ()), (0, (0,))],
)
def test_shapes_are_numbers_or_sequences(comm, shape, expected):
    a = comm.empty(shape, "bfloat16")
    assert a.shape == expected
    assert a.size == np.prod(expected)


def test_the_default_dtype_is_float32(comm):
    assert comm.empty(3).dtype == np.float32


def test_arrays_do_not_overlap(comm):
    sizes = [0, 1, 63, 64, 65, 5000, 300_000, 3_000_000]
    arrays = [comm.empty(size, "uint8") for size in sizes]
    for i, a in enumerate(arrays):
        a[:] = i
    for i, a in enumerate(arrays):
        assert (a == i).all()


def test_large_arrays_are_cleared_by_nobody_but_may_be_used_at_once(comm):
    a = comm.empty((64, 1024, 1024), "uint8")
    a[0, 0, 0] = a[-1, -1, -1] = 7
    assert comm.committed_bytes >= a.nbytes


def test_freed_memory_is_given_back(comm):
    comm.empty(10)
    gc.collect()
    before = comm.committed_bytes
    arrays = [comm.empty(size) for size in (1, 100, 20_000, 70_000, 1_000_000)]
    assert comm.committed_bytes >= before + sum(a.nbytes for a in arrays)
    del arrays
    gc.collect()
    assert comm.committed_bytes == before


def test_making_and_freeing_many_arrays_does_not_grow(comm):
    rng = np.random.default_rng(1)
    before = comm.committed_bytes
    alive = []
    for _ in range(2000):
        a = comm.empty(int(rng.integers(1, 40_000)), "uint8")
        a[:] = len(alive) % 251
        alive.append((a, len(alive) % 251))
        if len(alive) > 50:
            old, value = alive.pop(int(rng.integers(len(alive))))
            assert (old == value).all()
    most = comm.committed_bytes
    assert most - before < 8 * 2**20  # 50 arrays of 20 KB on average, in pieces of 1 MiB
    del alive, a, old
    gc.collect()
    assert comm.committed_bytes == before


def test_views_keep_the_memory(comm):
    a = numbers(comm, (100, 100), "float32")
    view = a[50:60, ::3].T
    expected = np.array(view)
    del a
    gc.collect()
    others = [numbers(comm, (100, 100), "float32") for _ in range(20)]
    np.testing.assert_array_equal(view, expected)
    del others


def test_arrays_stay_valid_when_the_communicator_is_closed_or_gone():
    comm = xccl.init()
    a = numbers(comm, (30, 30), "int32")
    comm.close()
    np.testing.assert_array_equal(a.ravel(), np.arange(900) % 120)
    del comm
    gc.collect()
    a += 1
    np.testing.assert_array_equal(a.ravel(), np.arange(900) % 120 + 1)


@pytest.mark.parametrize("shape", [(2**62,), (2**40, 2**40), (1 << 50,), (2**33, 2**10)])
def test_absurd_sizes_are_out_of_memory(comm, shape):
    before = comm.committed_bytes
    error = error_of(comm.empty, shape, "float32")
    assert type(error) is xccl.OutOfMemory
    assert isinstance(error, MemoryError)
    assert str(error)
    assert comm.committed_bytes == before
    assert comm.empty(3).size == 3


def test_more_than_the_machine_has_is_refused_before_anything_is_taken(comm):
    before = comm.committed_bytes
    most = _core.machine()["memory_headroom"]
    error = error_of(comm.empty, most + 2**30, "uint8")
    assert type(error) is xccl.OutOfMemory
    assert "can be had" in str(error)
    assert comm.committed_bytes == before


# --- A numpy array like any other -----------------------------------------------------------------------------


def test_numpy_works_on_arrays(comm):
    a = numbers(comm, (4, 6), "float32")
    assert type(a + 1) is xccl.Array
    assert float(np.einsum("ij,ij->", a, a)) == float((np.arange(24.0) ** 2).sum())
    np.testing.assert_array_equal(np.sort(a[::-1], axis=0), np.arange(24).reshape(4, 6))
    a[1] = a[2]
    assert (a[1] == a[2]).all()
    assert memoryview(a).shape == (4, 6)


def test_a_pickled_array_is_a_copy(comm):
    a = numbers(comm, (4, 6), "bfloat16")
    again = pickle.loads(pickle.dumps(a))
    a[:] = 0
    np.testing.assert_array_equal(again.astype(np.float32), np.arange(24.0).reshape(4, 6))


# --- Dtypes by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", BFLOAT16),
        (ml_dtypes.bfloat16, BFLOAT16),
        (BFLOAT16, BFLOAT16),
        ("float16", np.dtype("float16")),
        (np.float32, np.dtype("float32")),
        (float, np.dtype("float64")),
    ],
)
def test_dtypes_are_names_types_or_dtypes(dtype, expected):
    assert as_dtype(dtype) == expected


def test_an_unknown_dtype_is_named():
    with pytest.raises(xccl.InvalidArgument, match="dtype='nonsense'"):
        as_dtype("nonsense")


# --- DLPack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 3)])
def test_dlpack_there_and_back_is_the_same_memory(comm, dtype, max_version):
    a = numbers(comm, (3, 7), dtype)
    back = _core.from_dlpack(a.__dlpack__(max_version=max_version))
    assert back.dtype == a.dtype
    assert back.shape == a.shape
    assert back.ctypes.data == a.ctypes.data
    a[1, 2] = 1
    np.testing.assert_array_equal(back, a)


def test_dlpack_keeps_the_memory_alive(comm):
    a = numbers(comm, (100, 100), "float32")
    expected = np.array(a)
    taken = _core.from_dlpack(a.__dlpack__())
    del a
    gc.collect()
    others = [numbers(comm, (100, 100), "float32") for _ in range(20)]
    np.testing.assert_array_equal(taken, expected)
    del others


def test_a_capsule_that_nobody_takes_is_freed(comm):
    before = comm.committed_bytes
    a = comm.empty(1_000_000)
    capsule = a.__dlpack__()
    del a, capsule
    gc.collect()
    assert comm.committed_bytes == before


def test_a_capsule_can_be_taken_once(comm):
    capsule = comm.empty(3).__dlpack__()
    _core.from_dlpack(capsule)
    with pytest.raises(xccl.InvalidArgument, match="used before"):
        _core.from_dlpack(capsule)


def test_views_keep_their_strides(comm):
    a = numbers(comm, (6, 8), "bfloat16")
    view = a[1::2, ::-2]
    back = _core.from_dlpack(view.__dlpack__(max_version=(1, 0)))
    assert back.strides == view.strides
    np.testing.assert_array_equal(back, view)


def test_read_only_arrays_stay_read_only(comm):
    a = numbers(comm, (3, 3), "bfloat16")
    a.flags.writeable = False
    back = _core.from_dlpack(a.__dlpack__(max_version=(1, 0)))
    assert not back.flags.writeable
    # Before version 1.0 DLPack could not say so.
    assert isinstance(error_of(a.__dlpack__), (BufferError, xccl.InvalidArgument))


def test_numpy_takes_arrays(comm):
    a = numbers(comm, (3, 3), "float32")
    b = np.from_dlpack(a)
    b[0, 0] = 77
    assert a[0, 0] == 77


def test_numpy_arrays_are_taken(comm):
    class Foreign:
        """Something of another library, which speaks DLPack and no more."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return (1, 0)

    a = np.arange(12, dtype=np.int32).reshape(3, 4)
    taken = as_array("x", Foreign(a))
    taken[1, 1] = 99
    assert a[1, 1] == 99


def test_an_old_producer_that_knows_no_version_is_asked_again(comm):
    class Old:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, stream=None):
            return self.array.__dlpack__(stream=stream)

    a = numbers(comm, (3, 4), "bfloat16")
    np.testing.assert_array_equal(as_array("x", Old(a)), a)


def test_dlpack_says_where_and_refuses_elsewhere(comm):
    a = comm.empty(3)
    assert a.__dlpack_device__() == (1, 0)
    a.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="host memory"):
        a.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="stream"):
        a.__dlpack__(stream=1)


def test_a_copy_is_a_copy(comm):
    a = numbers(comm, (3, 3), "bfloat16")
    copied = _core.from_dlpack(a.__dlpack__(copy=True))
    a[:] = 0
    assert copied.astype(np.float32).sum() == 36


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "S3", "object"])
def test_dtypes_without_a_dlpack_form_are_refused(dtype):
    array = np.zeros(3, dtype).view(xccl.Array)
    assert isinstance(error_of(array.__dlpack__), (BufferError, xccl.InvalidArgument))


class NoArray:
    pass


@pytest.mark.parametrize("value", [3, "text", [1.0, 2.0], None, NoArray()])
def test_what_is_no_array_is_refused_by_name(value):
    with pytest.raises(xccl.InvalidArgument, match="x is a"):
        as_array("x", value)


@pytest.mark.parametrize("wrap", [memoryview, lambda a: a, bytearray])
def test_buffers_are_taken_without_a_copy(wrap):
    source = np.arange(8, dtype=np.uint8)
    buffer = wrap(source)
    taken = as_array("x", buffer)
    taken[3] = 200
    assert memoryview(buffer)[3] == 200


# --- torch ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_torch_takes_arrays(torch, comm, dtype):
    a = numbers(comm, (4, 6), dtype)
    t = torch.from_dlpack(a)
    assert t.dtype == getattr(torch, dtype)
    assert t.data_ptr() == a.ctypes.data
    t[1, 1] = 0
    assert a[1, 1] == 0
    a[2, 2] = 1
    assert t[2, 2] == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_tensors_are_taken(torch, dtype):
    t = torch.zeros((4, 6), dtype=getattr(torch, dtype))
    a = as_array("x", t)
    assert a.dtype == as_dtype(dtype) == as_dtype(t.dtype)
    a[1, 1] = 1
    assert t[1, 1] == 1


def test_a_tensor_that_needs_gradients_is_refused_by_name(torch):
    with pytest.raises(xccl.InvalidArgument, match="x cannot be taken by DLPack"):
        as_array("x", torch.zeros(3, requires_grad=True))


def dispatch_tensors(comm, shape):
    import torch

    def tensor(array):
        return torch.from_dlpack(np.asarray(array).view(xccl.Array))

    batches = [random_batch(np.random.default_rng(rank), shape, 4) for rank in range(comm.size)]
    mine = batches[comm.rank]
    with xccl.ExpertParallel(comm, *shape_arguments(shape)) as ep:
        for index_dtype in (torch.int32, torch.int64):
            d = ep.dispatch(tensor(mine.x), tensor(mine.topk_idx).to(index_dtype), tensor(mine.topk_weights))
            rows = torch.from_dlpack(d.x)
            y = ep.combine(rows, d, weights=tensor(mine.topk_weights))
            same_bits(y, combined(mine, shape), "tensors over our memory")
            y = ep.combine(rows.clone(), d)
            same_bits(y, combined(mine, shape), "tensors of torch's memory")
            del rows
            d.release()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dispatch_and_combine_take_tensors(torch, threads, dtype):
    threads.run(dispatch_tensors, 2, Shape(5, 24, 6, 2, dtype))
