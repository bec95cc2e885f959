"""What the MoE baselines need of an MPI, through mpi4py: barrier, exchange of counts, exchange of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI


class Mpi:
    """Rows are elements of a derived type: counts stay small whatever the bytes, and offsets need no arithmetic."""

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        self._row_types: dict[int, MPI.Datatype] = {}
        self.barrier = self._world.Barrier

    def counts(self, sent: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """How many rows come from each rank, having told each how many go there. int64."""
        received = np.empty_like(sent)
        self._world.Alltoall([sent, MPI.INT64_T], [received, MPI.INT64_T])
        return received

    def rows(self, rows: Any, sent: Any, received: Any, out: Any) -> None:
        """Contiguous rows, by destination and by source."""
        kind = self._row_type(rows.strides[0])
        self._world.Alltoallv([rows, sent, _starts(sent), kind], [out, received, _starts(received), kind])

    def _row_type(self, size: int) -> MPI.Datatype:
        if size not in self._row_types:
            self._row_types[size] = MPI.BYTE.Create_contiguous(size).Commit()
        return self._row_types[size]


def _starts(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate(([0], np.cumsum(counts)[:-1]))
