"""The operations in Numba: used where no AVX2 exists, or when asked for. Same results as the native targets, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NoReturn, TypeVar

import numpy as np

from ..types import F32, F64, I8, I32, I64, KINDS, U8, U16, Array, Bool, Kind, Metric
from .numba_ops import cascade, codewords, dense, dense_rows, hadamard, hamming, integer, lists as list_ops, pq
from .numba_ops.chunks import NumbaRows
from .protocol import Bound, CodeChunk, DenseChunk, IntegerMetric, Level, Rows, Scaling, Scan

R = TypeVar("R", bound=NumbaRows)


def _own(rows: Rows, expected: type[R]) -> R:
    """Rows are opaque to their users: those of another backend, or family, are a mistake."""
    if not isinstance(rows, expected):
        raise TypeError(f"rows: expected {expected.__name__}, prepared by this backend, got {type(rows).__name__}")
    return rows


def _own_level(level: Level) -> cascade.NumbaLevel:
    if not isinstance(level, cascade.NumbaLevel):
        raise TypeError(f"levels: expected those of this backend, got {type(level).__name__}")
    return level


class NumbaBackend:
    """See ``protocol.Backend``."""

    name = "numba"
    passes_by = False

    # --- dense -------------------------------------------------------------------------------------------------------
    def dense_rows(self, kind: Kind, chunks: Sequence[DenseChunk], ids: I64 | None = None) -> NumbaRows:
        parts = [(len(c.pieces[0]), c.pieces, c.norms) for c in chunks]
        return NumbaRows(KINDS.index(kind), parts, ids, [c.weights for c in chunks])

    def dense_scan(self, rows: Rows, queries: F32, k: int, metric: Metric, allowed: Bool | None = None) -> dense.DenseScan:
        return dense.DenseScan(_own(rows, NumbaRows), queries, k, metric, allowed)

    def dense_top_k(self, kind: Kind, rows: Array, queries: F32, k: int, metric: Metric) -> tuple[F32, I64, int]:
        whole = self.dense_rows(kind, [DenseChunk((rows,))])
        scan = self.dense_scan(whole, queries, k, metric)
        scan.run(0, whole.visits)
        return *scan.finish(), scan.bad_row

    def plain_top_k(self, queries: Any, rows: Any, k: Any, metric: Any, most: int) -> None:
        """Always left to the caller."""

    def plain_hamming_top_k(self, queries: Any, codes: Any, k: Any, most: int) -> None:
        """Always left to the caller."""

    def plain_pq_top_k(self, queries: Any, packed: U8, rows: int, codebooks: F32, dims: int, squared: bool, k: Any, most: int) -> None:
        """Always left to the caller."""

    def dense_rescore(self, rows: Rows, queries: F32, candidates: I64, k: int, metric: Metric) -> tuple[F32, I64, int]:
        return dense.rescore(_own(rows, NumbaRows), queries, candidates, k, metric)

    def dense_dot(self, rows: Rows, queries: F32, out: F32, first: int, last: int) -> int:
        return dense.products(_own(rows, NumbaRows), queries, out, first, last)

    def dense_norms(self, kind: Kind, pieces: Sequence[Array], out: F32, upward: bool = False) -> None:
        dense_rows.norms(KINDS.index(kind), pieces, out, upward)

    def dense_unit(self, queries: F32, out: F32) -> None:
        out[:] = dense_rows.unit_queries(queries)

    def dense_map(self, queries: F32, matrix: F32, out: F32) -> None:
        dense_rows.products(queries, matrix, out)

    def hadamard(self, rows: F32) -> None:
        hadamard.transform(rows)

    # --- int8 codes with integer queries -------------------------------------------------------------------------------
    def integer_queries(self, queries: F32, scales: F32, codes: I8, steps: F64) -> None:
        integer.quantize(queries, scales, codes, steps)

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
    def pq_rows(self, chunks: Sequence[CodeChunk], subspaces: int, bits: int, ids: I64 | None = None) -> pq.CodeRows:
        return pq.CodeRows(chunks, subspaces, bits, ids)

    def pq_scan(
        self, rows: Rows, tables: F32, k: int, largest: bool, allowed: Bool | None = None, scaling: Scaling | None = None
    ) -> pq.CodeScan:
        return pq.CodeScan(_own(rows, pq.CodeRows), tables, k, largest, allowed, scaling)

    def pq_rescore(
        self, rows: Rows, tables: F32, candidates: I64, k: int, largest: bool, scaling: Scaling | None = None
    ) -> tuple[F32, I64]:
        return pq.rescore(_own(rows, pq.CodeRows), tables, candidates, k, largest, scaling)

    def pq_tables(self, queries: F32, codebooks: F32, squared: bool, out: F32) -> bool:
        return codewords.tables(queries, codebooks, squared, out)

    def pq_whole(self, tables: F32, base: F64, step: F64) -> None:
        codewords.make_whole(tables, base, step)

    def pq_assign(self, vectors: F32, codebooks: F32, out: I32) -> None:
        codewords.assign(vectors, codebooks, out)

    def pq_assigner(self, points: F32, codewords: int) -> None:
        return None

    def centroid_sums(self, points: F32, nearest: I32, sums: F64, counts: I64) -> None:
        codewords.centroid_sums(points, nearest, sums, counts)

    def pq_descend(self, units: F32, lengths: F32, codebooks: F32, extra: float, sweeps: int, codes: I32) -> None:
        codewords.descend(units, lengths, codebooks, extra, sweeps, codes)

    def pq_pack(self, codes: U8, bits: int, out: U8) -> None:
        codewords.pack(codes, out)

    def pq_unpack(self, packed: U8, bits: int, out: U8) -> None:
        codewords.unpack(packed, out)

    # --- adaptive cascades -----------------------------------------------------------------------------------------------
    def dense_level(self, rows: Rows, queries: F32, metric: Metric, bound: Bound, scan: bool = False) -> cascade.NumbaLevel:
        own = _own(rows, NumbaRows)
        return cascade.NumbaLevel(
            own,
            len(queries),
            bound,
            -1.0 if metric == "l2" else 1.0,
            lambda part, k, allowed: dense.DenseScan(own, queries[part], k, metric, allowed),
            lambda part, candidates, k: dense.rescore(own, queries[part], candidates, k, metric)[:2],
        )

    def prefix_level(
        self, rows: Rows, queries: F32, squares: F64, largest: float, metric: Metric, bound: Bound, scan: bool = False
    ) -> cascade.NumbaLevel:
        # Its bounds cannot fail, so it is never asked: see `cascade`.
        return self.dense_level(rows, queries, "ip", bound)

    def integer_level(
        self, rows: Rows, codes: I8, factors: F32, offsets: F32, metric: IntegerMetric, bound: Bound, scan: bool = False
    ) -> cascade.NumbaLevel:
        own = _own(rows, NumbaRows)
        return cascade.NumbaLevel(
            own,
            len(codes),
            bound,
            1.0 if integer.is_largest(metric) else -1.0,
            lambda part, k, allowed: integer.IntegerScan(own, codes[part], factors[part], offsets[part], k, metric, allowed),
            lambda part, candidates, k: integer.rescore(own, codes[part], factors[part], offsets[part], candidates, k, metric),
        )

    def hamming_level(self, rows: Rows, codes: U8, bound: Bound, scan: bool = False) -> cascade.NumbaLevel:
        own = _own(rows, hamming.BitRows)
        return cascade.NumbaLevel(
            own,
            len(codes),
            bound,
            -1.0,
            lambda part, k, allowed: hamming.HammingScan(own, codes[part], k, allowed),
            lambda part, candidates, k: hamming.rescore(own, codes[part], candidates, k),
        )

    def pq_level(
        self, rows: Rows, tables: F32, largest: bool, bound: Bound, scan: bool = False, scaling: Scaling | None = None
    ) -> cascade.NumbaLevel:
        own = _own(rows, pq.CodeRows)

        def terms(part: slice) -> Scaling | None:
            return None if scaling is None else scaling.part(part)

        return cascade.NumbaLevel(
            own,
            len(tables),
            bound,
            1.0 if largest else -1.0,
            lambda part, k, allowed: pq.CodeScan(own, tables[part], k, largest, allowed, terms(part)),
            lambda part, candidates, k: pq.rescore(own, tables[part], candidates, k, largest, terms(part)),
        )

    def list_rows(self, chunks: Sequence[U16], centroids: Rows, ids: I64 | None = None) -> list_ops.ListedRows:
        return list_ops.ListedRows(chunks, _own(centroids, pq.CodeRows), ids)

    def list_rescore(self, rows: Rows, tables: F32, candidates: I64, k: int, largest: bool) -> tuple[F32, I64]:
        own = _own(rows, list_ops.ListedRows)
        return list_ops.rescore(own, list_ops.keys_of(own, tables, largest), candidates, k, largest)

    def list_level(self, rows: Rows, tables: F32, largest: bool, bound: Bound) -> cascade.NumbaLevel:
        own = _own(rows, list_ops.ListedRows)
        # Once for all blocks of rows.
        keys = cache(partial(list_ops.keys_of, own, tables, largest))

        def scan(part: slice, k: int, allowed: Bool | None) -> NoReturn:
            raise RuntimeError("lists are not scanned")

        def rescore(part: slice, candidates: I64, k: int) -> tuple[F32, I64]:
            return list_ops.rescore(own, keys()[part], candidates, k, largest)

        return cascade.NumbaLevel(own, len(tables), bound, 1.0 if largest else -1.0, scan, rescore)

    def listing(self, rows: Rows, codes: Rows, before: object = None) -> None:
        """All rows are scanned."""

    def listed_top_k(self, *_: object) -> NoReturn:
        raise RuntimeError("there are no listings here")

    def level_scan(self, level: Level, k: int, allowed: Bool | None = None, floors: F32 | None = None, share: int = 1) -> Scan:
        own = _own_level(level)
        scan = own.scan(slice(0, own.queries), k, allowed)
        scan.sample(share)
        if floors is not None:
            scan.cut(np.where(np.isnan(floors), -np.inf, np.float32(own.sign) * floors).astype(np.float32))
        return scan

    def cascade_scan(
        self,
        levels: Sequence[Level],
        judge: Level,
        k: int,
        allowed: Bool | None = None,
        floors: F64 | None = None,
        hard: bool = False,
    ) -> Scan:
        own, last = [_own_level(level) for level in levels], _own_level(judge)
        if hard:
            return cascade.WholeScan(last, k, allowed, len(own) + 1)
        return cascade.CascadeScan(own, last, k, allowed, floors)

    def cascade_top_k(self, *_: object) -> None:
        """A call saves nothing here."""

    def full_source(self, *_: object) -> None:
        return None

    def integer_source(self, *_: object) -> None:
        return None

    def pq_source(self, *_: object) -> None:
        return None

    def searcher(self, *_: object) -> None:
        return None

    def cascade_rescore(
        self, levels: Sequence[Level], judge: Level, candidates: I64, raw: F32 | None, k: int, hard: bool = False, first: int = 0
    ) -> tuple[F32, I64, F64, I64]:
        own, last = ([_own_level(level).part(first, len(candidates)) for level in some] for some in (levels, [judge]))
        return cascade.rescore(own, last[0], candidates, raw, k, hard)
