"""Learning a cascade from the rows of an index, and encoding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .arrays import ranges
from .execution import Progress
from .layout import Slabs
from .representations import Representation
from .rows import Chunk, RowStore, Span
from .types import F32, I64, Array
from .vectors import read_vectors

SAMPLE_ROWS = 65_536
"""Rows that are learned from, at most: 256 for each of 256 codewords. All of a large index would be a float32 copy of it."""

SAMPLE_BYTES = 256 << 20

BLOCK_ROWS = 8_192
BLOCK_BYTES = 32 << 20
"""Rows converted or encoded at a time take at most this much as float32."""


def blocks(rows: int, dim: int) -> Iterator[tuple[int, int]]:
    """Ranges (first, last) of rows to be converted or encoded one after another."""
    return ranges(rows, max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * dim))))


def spread(total: int, dim: int) -> I64:
    """Which of so many rows are learned from: evenly spread, rising."""
    count = min(total, SAMPLE_ROWS, SAMPLE_BYTES // (4 * dim))
    return np.arange(count) * total // max(count, 1)


def sample_rows(slabs: Slabs, store: RowStore, spans: Sequence[Span] = ()) -> F32:
    """The living and the staged rows as float32, evenly thinned to at most 65,536, or fewer if they are long."""
    parts = list(store.living(spans))
    total = sum(len(rows) for _, rows in parts)
    chosen = spread(total, slabs.dim)
    sample = np.empty((len(chosen), slabs.dim), np.float32)
    first = passed = 0
    for chunk, rows in parts:
        last = int(np.searchsorted(chosen, passed + len(rows)))
        picked = rows[chosen[first:last] - passed]
        if len(picked):
            consecutive = picked[-1] - picked[0] + 1 == len(picked)
            sample[first:last] = read_vectors(slabs, chunk, slice(picked[0], picked[-1] + 1) if consecutive else picked)
        first, passed = last, passed + len(rows)
    return sample


def encode_all(
    slabs: Slabs, representations: Sequence[Representation], extents: Sequence[tuple[Chunk, int]], progress: Progress | None = None
) -> list[dict[str, Array]]:
    """The columns of all representations for all rows of the given chunks: a dict of new arrays for each chunk."""
    made = []
    total, done = sum(rows for _, rows in extents), 0
    for chunk, rows in extents:
        arrays = {column.name: column.allocate(chunk.capacity) for part in representations for column in part.columns}
        for first, last in blocks(rows, slabs.dim):
            encode(slabs, representations, chunk, first, last, arrays)
            if progress is not None:
                progress(done + last, total)
        done += rows
        made.append(arrays)
    return made


def encode(slabs: Slabs, representations: Sequence[Representation], chunk: Chunk, first: int, last: int, arrays: dict[str, Array]) -> None:
    """Write the codes of a chunk's rows first..last, at most one block, into ``arrays``."""
    if not any(part.columns for part in representations):
        return
    vectors = read_vectors(slabs, chunk, slice(first, last))
    for part in representations:
        values = part.encode(vectors)
        for column in part.columns:
            column.write(arrays[column.name], first, values[column.name])
