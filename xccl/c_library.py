"""Where the C library that comes with this package lies: header, library, CMake package, pkg-config file.

    cc program.c -I$(python -c "import xccl; print(xccl.get_include())") ...

docs/c-library.md has the commands; the header itself is the manual. Nothing here loads it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """The folder of xccl.h, for the compiler's -I."""
    return str(_PACKAGE / "include")


def get_lib() -> str:
    """The folder of libxccl.so, for the linker's -L and -rpath."""
    return str(_PACKAGE / "lib")


def get_cmake_dir() -> str:
    """The folder of xcclConfig.cmake, for `cmake -Dxccl_DIR=...`."""
    return str(_PACKAGE / "lib" / "cmake" / "xccl")


def get_pkgconfig_dir() -> str:
    """The folder of xccl.pc, for PKG_CONFIG_PATH."""
    return str(_PACKAGE / "lib" / "pkgconfig")
