"""Compiles the loops and floors in C that parts load: the floors, and each library's loops for figures "from C".

The flags are those of a release build of XCCL; faster instruction sets are chosen when running, as in XCCL. What has
been compiled stays until its sources change. Used when a question names its competitors, so that one whose loops
cannot be compiled is absent with the compiler's reason.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path

from parts.floor import METHODS
from peers.environments import ENVIRONMENTS

import xccl

SOURCES = Path(__file__).resolve().parents[1] / "native"
BUILT = SOURCES.parents[1] / "build" / "bench"
FLAGS = ["-std=gnu11", "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-shared", "-fPIC", "-Wl,-z,defs"]


def why_no_floor(method: str = "memcpy") -> str | None:
    """Makes BUILT/floor.so. Why that cannot be done, or why it cannot copy in this way here, or None."""
    why = _compiled("floor", ("floor.c", "floor_messages.c", "floor_moe.c"))
    if why is None and not ctypes.CDLL(str(BUILT / "floor.so")).floor_has(METHODS[method]):
        return "this processor has no such stores"
    return why


def why_no_xccl_loops() -> str | None:
    """Makes BUILT/loops_xccl.so, on the C library that came with the installed package."""
    package = Path(xccl.__file__).parent
    if not (package / "include" / "xccl.h").exists():
        return "this XCCL has no C library"
    library = package / "lib"
    flags = [f"-I{package / 'include'}", f"-L{library}", "-lxccl", f"-Wl,-rpath,{library}"]
    return _compiled("loops_xccl", ("loops_xccl.c",), *flags)


def why_no_mpi_loops(mpi: str) -> str | None:
    """Makes BUILT/loops_MPI.so of native/loops_mpi.c. Why that cannot be done, or None."""
    environment = ENVIRONMENTS[mpi]
    # Intel's wheel has no headers; it has the binary interface of MPICH, and so MPICH's headers.
    headers = ENVIRONMENTS["mpich"] if mpi == "impi" else environment
    if why := environment.why_missing() or headers.why_missing():
        return why
    library = environment.folder / "lib"
    name = "libmpi.so.40" if mpi == "openmpi" else "libmpi.so.12"
    flags = [f"-I{headers.folder / 'include'}", str(library / name), f"-Wl,-rpath,{library}"]
    return _compiled(f"loops_{mpi}", ("loops_mpi.c",), *flags)


@functools.cache
def _compiled(target: str, sources: tuple[str, ...], *flags: str) -> str | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler"
    made = BUILT / f"{target}.so"
    files = [str(SOURCES / source) for source in sources]
    needed = [*map(Path, files), *SOURCES.glob("*.h"), Path(__file__), Path(xccl.__file__)]
    if made.exists() and made.stat().st_mtime > max(one.stat().st_mtime for one in needed):
        return None
    BUILT.mkdir(parents=True, exist_ok=True)
    part = BUILT / f"{target}.{os.getpid()}.so"  # appears whole, whoever else compiles it at the same time
    done = subprocess.run([compiler, *FLAGS, *files, "-o", str(part), *flags], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        return f"cannot be compiled: {lines[0] if lines else 'no reason was given'}"
    part.rename(made)
    return None
