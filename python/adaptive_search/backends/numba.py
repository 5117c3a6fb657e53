"""The operations in Numba: used where no AVX2 exists, or when asked for. Same results as the native targets, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import F32, I64, KINDS, Array, Bool, Kind, Metric
from .numba_ops import dense
from .numba_ops.chunks import NumbaRows
from .protocol import DenseChunk


class NumbaBackend:
    """See ``protocol.Backend``."""

    name = "numba"

    # --- dense -------------------------------------------------------------------------------------------------------
    def dense_rows(self, kind: Kind, chunks: Sequence[DenseChunk], ids: I64 | None = None) -> NumbaRows:
        return NumbaRows(KINDS.index(kind), [(len(c.pieces[0]), c.pieces, c.norms) for c in chunks], ids)

    def dense_scan(self, rows: NumbaRows, queries: F32, k: int, metric: Metric, allowed: Bool | None = None) -> dense.DenseScan:
        return dense.DenseScan(rows, queries, k, metric, allowed)

    def dense_rescore(self, rows: NumbaRows, queries: F32, candidates: I64, k: int, metric: Metric) -> tuple[F32, I64, int]:
        return dense.rescore(rows, queries, candidates, k, metric)

    def dense_dot(self, rows: NumbaRows, queries: F32, out: F32, first: int, last: int) -> int:
        return dense.products(rows, queries, out, first, last)

    def dense_norms(self, kind: Kind, pieces: Sequence[Array], out: F32, upward: bool = False) -> None:
        dense.norms(KINDS.index(kind), pieces, out, upward)

    def dense_unit(self, queries: F32, out: F32) -> None:
        out[:] = dense.unit_queries(queries)
