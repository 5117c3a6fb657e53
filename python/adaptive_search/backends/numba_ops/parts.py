"""Parts of a block: the rows that all queries meet before the next ones are read, as a list of addresses."""

from __future__ import annotations

from ...types import I64
from .candidates import Allowed, permitted
from .chunks import BASE, BLOCK, PIECES, START, STRIDE
from .jit import inner

PART_BYTES = 256 * 1024
"""So many bytes of rows stay in the second-level cache."""

COPY_BYTES = 16 * 1024
"""So many bytes of copied rows stay in the first-level cache, for queries too few to make up for the way to the second."""


def part_rows(row_bytes: int, tile_rows: int, size: int = PART_BYTES) -> int:
    """How many rows a part has, a whole number of tiles."""
    return min(max(size // max(row_bytes, 1), 1), BLOCK) // tile_rows * tile_rows or tile_rows


@inner
def list_rows(table: I64, chunk: int, first: int, last: int, allowed: Allowed, addresses: I64, locals_: I64) -> int:
    """Addresses (of the first piece) and numbers within the chunk of the rows that a shared mask allows; how many."""
    base, stride, start = table[chunk, PIECES + BASE], table[chunk, PIECES + STRIDE], table[chunk, START]
    n = 0
    for local in range(first, last):
        if allowed.shared and not permitted(allowed, 0, start + local):
            continue
        addresses[n] = base + local * stride
        locals_[n] = local
        n += 1
    return n


@inner
def fill_tile(addresses: I64, n: int, rows: int) -> None:
    """Repeat the last address up to a whole number of tiles."""
    if n:
        for i in range(n, n + -n % rows):
            addresses[i] = addresses[n - 1]
