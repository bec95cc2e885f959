"""Sizes of messages, and how they are written."""

from __future__ import annotations

KIB, MIB = 1 << 10, 1 << 20

# From what fits a cache line to what no cache holds.
SIZES = (8, 64, KIB, 8 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)


def written(size: int) -> str:
    """8 B, 64 KiB, 1 MiB."""
    if size >= MIB:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size >= KIB else f"{size} B"
