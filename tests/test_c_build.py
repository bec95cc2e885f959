"""Building against the C library as its users do: the header in C and C++, the installed wheel by CMake and by
pkg-config, an installation without Python; and running what was built by every launcher at hand.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_api import HEADER, LIBRARY, functions

import xccl
from xccl import _core

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "c"
NAMES = ["tour", "ping_pong", "moe_layer"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# cmake and ninja are in the environment of this Python, make and the compilers are the system's.
ENVIRON = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(*command, cwd=None, timeout=100, **environ):
    """Runs to the end; returns what it wrote. Fails with that if it failed."""
    line = [str(word) for word in command]
    done = subprocess.run(
        line, cwd=cwd, env={**ENVIRON, **environ}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("dialect", ["c99", "c11", "c17", "c++98", "c++11", "c++20"])
@pytest.mark.parametrize("family", ["gcc", "clang"])
def test_the_header_alone_is_c_and_cpp(family, dialect, tmp_path):
    plus = dialect.startswith("c++")
    compiler = {"gcc": "g++" if plus else "gcc", "clang": "clang++" if plus else "clang"}[family]
    if family == "clang" and shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = tmp_path / ("program.cpp" if plus else "program.c")
    source.write_text(
        "#include <xccl.h>\n"
        "#if !XCCL_HEADER_AT_LEAST(0, 1, 0) || XCCL_HEADER_AT_LEAST(1000, 0, 0)\n#error version\n#endif\n"
        "int main(void) { return xccl_version_at_least(0, 1, 0) ? 0 : 1; }\n"
    )
    run(compiler, f"-std={dialect}", *WARNINGS, f"-I{xccl.get_include()}", "-fsyntax-only", source)


def test_the_library_exports_the_functions_of_the_header_and_nothing_else():
    symbols = run("nm", "-D", "--defined-only", LIBRARY).splitlines()
    exported = {line.split()[2].partition("@")[0] for line in symbols if line.split()[1] != "A"}
    assert exported == functions()


def test_the_extension_exports_its_entry_and_nothing_else():
    """So it goes beside other extensions also where the C++ library is linked into each of them."""
    symbols = run("nm", "-D", "--defined-only", _core.__file__).splitlines()
    assert [line.split()[2] for line in symbols if line.split()[1] != "A"] == ["PyInit__core"]


def test_the_library_says_what_it_is_linked_as():
    dynamic = run("readelf", "-d", LIBRARY)
    name = re.search(r"SONAME.*\[(.*)\]", dynamic)[1]
    major, minor = xccl.__version__.split(".")[:2]
    assert name == (f"libxccl.so.{major}" if int(major) else f"libxccl.so.0.{minor}")
    assert (LIBRARY.parent / name).exists()


def test_most_of_the_header_is_the_manual():
    text = HEADER.read_text()
    comment = sum(len(part.splitlines()) for part in re.findall(r"/\*.*?\*/", text, re.DOTALL))
    lines = sum(1 for line in text.splitlines() if line.strip())
    assert 0.6 < comment / lines < 0.85
    for name in functions():
        assert name in text


# --- The examples, against the installed wheel ---


def with_cmake(folder, language):
    options = [
        f"-Dxccl_DIR={xccl.get_cmake_dir()}",
        f"-DEXAMPLES_LANGUAGE={language}",
        "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
    ]
    run("cmake", "-S", EXAMPLES, "-B", folder, "-G", "Ninja", *options)
    run("cmake", "--build", folder)


def with_pkg_config(folder, language):
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    compiler = {"C": ["CC=gcc -std=c99"], "CXX": ["CC=g++ -x c++ -std=c++11"]}[language]
    flags = f"CFLAGS=-O1 {' '.join(WARNINGS)}"
    run("make", *compiler, flags, f"PKG_CONFIG_PATH={xccl.get_pkgconfig_dir()}", cwd=folder)


BUILDS = {"CMake": with_cmake, "pkg-config": with_pkg_config}


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """The folder of the examples, built in C by CMake."""
    folder = tmp_path_factory.mktemp("examples")
    with_cmake(folder, "C")
    return folder


@pytest.mark.parametrize("language", ["C", "CXX"])
@pytest.mark.parametrize("build", BUILDS)
def test_the_examples_build_against_the_wheel_and_run(build, language, tmp_path):
    BUILDS[build](tmp_path, language)
    for name in NAMES:
        check(name, run(sys.executable, "-m", "xccl", "run", "-n", "2", tmp_path / name, "20", cwd=tmp_path))


def check(name, said):
    """What an example writes when all is right."""
    if name == "ping_pong":
        assert said.endswith("all bytes right\n")
    else:
        assert "right: yes" in said
        assert "right: no" not in said


# Open MPI, if it is that: more ranks than cores, also in a container where everybody is root.
OPEN_MPI_MAY = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
LAUNCHERS = {
    "xccl run": [sys.executable, "-m", "xccl", "run", "-n", "3"],
    "mpirun": ["mpirun", "-n", "3"],
    "torchrun": ["torchrun", "--nproc-per-node", "3", "--no-python"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("name", ["tour", "moe_layer"])
def test_programs_in_c_start_as_any_others(launcher, name, examples, tmp_path):
    command = LAUNCHERS[launcher]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    check(name, run(*command, examples / name, cwd=tmp_path, **OPEN_MPI_MAY))


def test_programs_in_c_start_by_hand(examples):
    environ = {**ENVIRON, "XCCL_JOB": f"by-hand-{os.getpid()}", "XCCL_SIZE": "3"}
    started = [
        subprocess.Popen(
            [examples / "tour"], env={**environ, "XCCL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    said = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    for rank, line in enumerate(said):
        assert line.startswith(f"rank {rank} of 3:")
        check("tour", line)


def test_a_program_that_no_launcher_started_is_a_job_of_one(examples):
    check("tour", run(examples / "tour"))


def test_the_tour_is_short():
    code = (EXAMPLES / "tour.c").read_text()
    assert len(code.splitlines()) <= 60
    assert set(re.findall(r"#include <(.*)>", code)) == {"xccl.h", "stdio.h", "stdlib.h"}


PYTHON_RANK = """
import xccl, numpy as np
with xccl.init() as comm:
    left = np.zeros(1, np.int32)
    request = comm.irecv(left, src=(comm.rank - 1) % comm.size, tag=7)
    comm.send(np.array([comm.rank], np.int32), dst=(comm.rank + 1) % comm.size, tag=7)
    request.wait()
    with xccl.ExpertParallel(comm, 4, 4, 1, 2, "float32") as ep:
        x = np.array([[comm.rank, 1, 2, 3]], np.float32)
        d = ep.dispatch(x, np.array([[0, 3]]), np.array([[0.5, 0.25]], np.float32))
        for i, expert in enumerate(ep.local_experts):
            d.expert(i)[:] *= 1 + expert
        y = ep.combine(d.x, d)
    print("right:", "yes" if left[0] == (comm.rank - 1) % comm.size and y[0, 3] == 4.5 else "no")
"""


def test_ranks_in_c_and_in_python_are_one_job(examples, tmp_path):
    (tmp_path / "rank.py").write_text(PYTHON_RANK)
    (tmp_path / "either.sh").write_text(
        f'[ "$XCCL_RANK" = 1 ] && exec {sys.executable} rank.py\nexec {examples / "tour"}\n'
    )
    said = run(sys.executable, "-m", "xccl", "run", "-n", "3", "sh", "either.sh", cwd=tmp_path)
    assert said.count("right: yes") == 3


# --- Installed without Python ---


@pytest.mark.timeout(900)  # compiles the library, unless `make native` has just done so
def test_cmake_installs_the_library_without_python_and_it_may_be_moved(tmp_path):
    run("cmake", "--preset", "debug", cwd=ROOT)
    run("cmake", "--build", "--preset", "debug", "--target", "xccl", cwd=ROOT, timeout=800)
    run("cmake", "--install", "build/debug", "--prefix", tmp_path / "first", cwd=ROOT)
    (tmp_path / "first").rename(tmp_path / "moved")
    found = {path.relative_to(tmp_path / "moved").as_posix() for path in (tmp_path / "moved").rglob("*")}
    assert {"include/xccl.h", "include/xccl_version.h"} <= found
    assert not [path for path in found if "python" in path or path.endswith(".py") or "_core" in path]
    libraries = [path for path in (tmp_path / "moved").rglob("libxccl.so")]
    assert len(libraries) == 1
    assert libraries[0].is_symlink()
    config = next((tmp_path / "moved").rglob("xcclConfig.cmake")).parent
    run("cmake", "-S", EXAMPLES, "-B", tmp_path / "built", "-G", "Ninja", f"-Dxccl_DIR={config}")
    run("cmake", "--build", tmp_path / "built")
    check("tour", run(tmp_path / "built" / "tour"))
    folder = next((tmp_path / "moved").rglob("xccl.pc")).parent
    where = run("pkg-config", "--variable=libdir", "xccl", PKG_CONFIG_PATH=str(folder)).strip()
    assert Path(where).resolve() == libraries[0].parent.resolve()
