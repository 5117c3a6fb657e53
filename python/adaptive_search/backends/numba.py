"""The operations in Numba: used where no AVX2 exists, or when asked for. Same results as the native targets, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..types import F32, I8, I32, I64, KINDS, U8, Array, Bool, Kind, Metric
from .numba_ops import codewords, dense, dense_rows, hamming, integer, pq
from .numba_ops.chunks import NumbaRows
from .protocol import DenseChunk, IntegerMetric, Rows

R = TypeVar("R", bound=NumbaRows)


def _own(rows: Rows, expected: type[R]) -> R:
    """Rows are opaque to their users: those of another backend, or family, are a mistake."""
    if not isinstance(rows, expected):
        raise TypeError(f"rows: expected {expected.__name__}, prepared by this backend, got {type(rows).__name__}")
    return rows


class NumbaBackend:
    """See ``protocol.Backend``."""

    name = "numba"

    # --- dense -------------------------------------------------------------------------------------------------------
    def dense_rows(self, kind: Kind, chunks: Sequence[DenseChunk], ids: I64 | None = None) -> NumbaRows:
        return NumbaRows(KINDS.index(kind), [(len(c.pieces[0]), c.pieces, c.norms) for c in chunks], ids)

    def dense_scan(self, rows: Rows, queries: F32, k: int, metric: Metric, allowed: Bool | None = None) -> dense.DenseScan:
        return dense.DenseScan(_own(rows, NumbaRows), queries, k, metric, allowed)

    def dense_top_k(self, kind: Kind, rows: Array, queries: F32, k: int, metric: Metric) -> tuple[F32, I64, int]:
        whole = self.dense_rows(kind, [DenseChunk((rows,))])
        scan = self.dense_scan(whole, queries, k, metric)
        scan.run(0, whole.visits)
        return *scan.finish(), scan.bad_row

    def dense_rescore(self, rows: Rows, queries: F32, candidates: I64, k: int, metric: Metric) -> tuple[F32, I64, int]:
        return dense.rescore(_own(rows, NumbaRows), queries, candidates, k, metric)

    def dense_dot(self, rows: Rows, queries: F32, out: F32, first: int, last: int) -> int:
        return dense.products(_own(rows, NumbaRows), queries, out, first, last)

    def dense_norms(self, kind: Kind, pieces: Sequence[Array], out: F32, upward: bool = False) -> None:
        dense_rows.norms(KINDS.index(kind), pieces, out, upward)

    def dense_unit(self, queries: F32, out: F32) -> None:
        out[:] = dense_rows.unit_queries(queries)

    # --- int8 codes with integer queries -------------------------------------------------------------------------------
    def integer_scan(
        self, rows: Rows, codes: I8, factors: F32, offsets: F32, k: int, metric: IntegerMetric, allowed: Bool | None = None
    ) -> integer.IntegerScan:
        return integer.IntegerScan(_own(rows, NumbaRows), codes, factors, offsets, k, metric, allowed)

    def integer_rescore(
        self, rows: Rows, codes: I8, factors: F32, offsets: F32, candidates: I64, k: int, metric: IntegerMetric
    ) -> tuple[F32, I64]:
        return integer.rescore(_own(rows, NumbaRows), codes, factors, offsets, candidates, k, metric)

    # --- packed binary codes -------------------------------------------------------------------------------------------
    def bit_rows(self, chunks: Sequence[U8], bits: int, ids: I64 | None = None) -> hamming.BitRows:
        return hamming.BitRows(chunks, bits, ids)

    def hamming_scan(self, rows: Rows, codes: U8, k: int, allowed: Bool | None = None) -> hamming.HammingScan:
        return hamming.HammingScan(_own(rows, hamming.BitRows), codes, k, allowed)

    def hamming_rescore(self, rows: Rows, codes: U8, candidates: I64, k: int) -> tuple[F32, I64]:
        return hamming.rescore(_own(rows, hamming.BitRows), codes, candidates, k)

    def hamming_distances(self, rows: Rows, codes: U8, out: I32, first: int, last: int) -> None:
        hamming.distances(_own(rows, hamming.BitRows), codes, out, first, last)

    # --- product quantization ------------------------------------------------------------------------------------------
    def pq_rows(self, chunks: Sequence[tuple[U8, int]], subspaces: int, bits: int, ids: I64 | None = None) -> pq.CodeRows:
        return pq.CodeRows(chunks, subspaces, bits, ids)

    def pq_scan(self, rows: Rows, tables: F32, k: int, largest: bool, allowed: Bool | None = None) -> pq.CodeScan:
        return pq.CodeScan(_own(rows, pq.CodeRows), tables, k, largest, allowed)

    def pq_rescore(self, rows: Rows, tables: F32, candidates: I64, k: int, largest: bool) -> tuple[F32, I64]:
        return pq.rescore(_own(rows, pq.CodeRows), tables, candidates, k, largest)

    def pq_tables(self, queries: F32, codebooks: F32, squared: bool, out: F32) -> None:
        codewords.tables(queries, codebooks, squared, out)

    def pq_assign(self, vectors: F32, codebooks: F32, out: I32) -> None:
        codewords.assign(vectors, codebooks, out)

    def pq_pack(self, codes: U8, bits: int, out: U8) -> None:
        codewords.pack(codes, out)

    def pq_unpack(self, packed: U8, bits: int, out: U8) -> None:
        codewords.unpack(packed, out)
