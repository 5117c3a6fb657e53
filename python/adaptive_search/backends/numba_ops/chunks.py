"""Rows as kernels see them: a table of chunks, and the visits in their scattered order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...types import F32, I64, Array
from .jit import address, inner
from .memory import load_i64

BLOCK = 4096
"""Rows of a visit, at most."""

RUN = 64
"""Rows of a sample that lie together: a block of packed codes."""

MAX_PIECES = 8

# Columns of the chunk table.
START, COUNT, NORMS, WEIGHTS, PIECES = 0, 1, 2, 3, 4
# Columns of a piece, the first one at PIECES.
BASE, STRIDE, WIDTH, PIECE_COLUMNS = 0, 1, 2, 3


class NumbaRows:
    """Rows prepared for scanning; keeps the arrays alive.

    Attributes
    ----------
    table : ndarray of int64, one line a chunk
        First row, number of rows, addresses of the norms and the weights (or 0), then per piece address, stride in bytes, width.
    blocks : ndarray of int64, one line a visit, in visiting order
        Chunk, first row within it, number of rows.
    ids : int
        Address of the ids, or 0.
    """

    def __init__(
        self,
        kind: int,
        chunks: Sequence[tuple[int, Sequence[Array], F32 | None]],
        ids: I64 | None,
        weights: Sequence[F32 | None] = (),
    ) -> None:
        """``chunks``: number of rows, pieces with rows along their first axis, norms. ``weights``: of every chunk, or nothing."""
        self._kept = chunks, weights
        self.id_array = ids
        self.kind = kind
        self.table = np.zeros((len(chunks), PIECES + MAX_PIECES * PIECE_COLUMNS), np.int64)
        blocks: list[tuple[int, int, int]] = []
        start = 0
        for line, (count, pieces, norms) in enumerate(chunks):
            self.table[line, :PIECES] = start, count, address(norms), address(weights[line] if weights else None)
            for j, piece in enumerate(pieces):
                place = PIECES + j * PIECE_COLUMNS
                self.table[line, place : place + PIECE_COLUMNS] = address(piece), piece.strides[0], piece.shape[1]
            blocks += [(line, first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
            start += count
        self.pieces = len(chunks[0][1]) if chunks else 0
        self.width = sum(piece.shape[1] for piece in chunks[0][1]) if chunks else 0
        self.blocks = np.array(blocks, np.int64).reshape(-1, 3)[_scattered(len(blocks))]
        self.ids = address(ids)
        self.count = start

    @property
    def visits(self) -> int:
        return len(self.blocks)

    def sample(self, first: int, last: int, share: int) -> I64:
        """One of ``share`` runs of 64 rows of some visits, as `blocks`."""
        runs = [
            (chunk, start + run, min(RUN, count - run))
            for number, (chunk, start, count) in enumerate(self.blocks[first:last].tolist(), first)
            for run in range(number % share * RUN, count, share * RUN)
        ]
        return np.array(runs, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return self.count


def _scattered(count: int) -> I64:
    """0..count-1 by steps near the golden ratio, so that sorted rows cannot keep thresholds loose."""
    step = max(round(count * 0.618), 1)
    while np.gcd(step, max(count, 1)) != 1:
        step += 1
    return np.arange(count, dtype=np.int64) * step % max(count, 1)


@inner
def find_chunk(table: I64, row: int) -> int:
    """Line of the chunk that holds a row."""
    low, high = 0, len(table) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if table[middle, START] <= row:
            low = middle
        else:
            high = middle - 1
    return low


@inner
def row_id(ids: int, row: int) -> int:
    """What decides between equal scores."""
    return load_i64(ids + 8 * row) if ids != 0 else row
