"""What peers leave in shared memory, some even after an orderly end: removed when all have been measured.

Only what appeared meanwhile, and only names that these libraries give.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

SHARED = Path("/dev/shm")
OF_PEERS = ("iox2_", "mpich_shm_", "sm_segment.", "vader_segment.", "Intel_MPI_")


class Leftovers:
    """Notes what is there when it is made."""

    def __init__(self, folder: Path = SHARED) -> None:
        self._folder = folder
        self._before = self._of_peers()

    def remove(self) -> None:
        """What has come since."""
        for path in self._of_peers() - self._before:
            with contextlib.suppress(OSError):
                path.unlink()

    def _of_peers(self) -> set[Path]:
        return {path for path in self._folder.glob("*") if path.name.startswith(OF_PEERS)}
