"""The operations that every backend provides: signatures, meaning, and the canonical scores.

Native targets and the Numba module implement exactly this. Arguments are validated by the callers (functional API,
representations); a backend may assume what is written here. Rules common to all operations:

* Arrays are used in place. Matrices of rows may have any row stride, negative or odd ones too; their last axis is contiguous.
  Without rows there is one empty chunk, which tells the widths.
  Queries, tables, codes of queries and outputs are C-contiguous.
* Every method releases the GIL while it works, starts no thread, and may be called from several threads at once.
* A *scan* is a filter: it may score rows in any order of summation, but what it returns is decided by the canonical
  score, to the bit, with ties by id (``ids`` of the rows object, else the row number). See ``docs/architecture.md``.

Canonical scores (the same bits on every backend)
-------------------------------------------------
Dense, float queries: every element is widened to float32 (exact). Sixteen virtual lanes start at +0; lane ``i % 16`` takes
element ``i`` (``i`` counts over all pieces) in rising order, one float32 multiply then one float32 add, never fused;
lanes are then summed as a tree: 0..7 += 8..15, 0..3 += 4..7, 0..1 += 2..3, 0 += 1. An element beyond the width adds nothing.
  ip: sum of q*x.   l2: sum of (q-x)*(q-x).   cosine: ip(u, x) / norm(x) in float32, 0 if norm(x) == 0, where
  u = float32(q / norm64(q)) (the zero query stays zero).
norm: norm64(x) = sqrt of the sum of x*x in float64 with the same sixteen lanes and tree; norm(x) = float32(norm64(x)).
Integer, int8 queries ``c`` on int8 rows ``x``: ``dot`` is the exact integer sum of c*x.
  ip: offset + factor*float32(dot), each step rounded to float32 (multiply, then add).
  l2: (offset + norms2[row]) + factor*float32(dot), each step rounded; ``norms2`` given with the rows.
  "ip_scaled", "l2_scaled": the same with weight[row]*float32(dot), rounded, instead of float32(dot).
  "l2_exact": float32 of the exact integer sum of (c-x)**2.
Hamming: number of differing bits among the first ``bits``.
PQ: float32 sum of tables[m, code[m]] for m = 0, 1, ... in rising order, starting with the m = 0 entry. Rows with scales: see `Scaling`.

A sum that is NaN although its row is finite (an overflow both ways) counts as the worst score, and is returned as the infinity of
that side: NaN in a result always means that there is no row. -0 and +0 tie. The norms of a cosine are what products are divided by:
a caller may give other norms than those of the pieces (a prefix that is not re-normalised), as long as they are not smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ..types import F32, F64, I8, I32, I64, U8, U16, Array, Bool, Kind, Metric

IntegerMetric = Literal["ip", "l2", "ip_scaled", "l2_scaled", "l2_exact"]


@dataclass(frozen=True)
class DenseChunk:
    """Consecutive rows whose dims are cut into up to 8 pieces.

    ``pieces[j]`` has shape (n, width_j): float32, float16, uint16 (bfloat16 bits) or int8. ``norms``, when known, holds per row
    the canonical norm over all pieces (float32, (n,)); rows with known norms are known to be finite. For rows of
    ``integer_scan`` with metric "l2" or "l2_scaled", ``norms`` holds ``norms2`` instead. ``weights`` (float32, (n,)): see `Bound`; for
    "ip_scaled" and "l2_scaled", whose bounds have no margin, the scales of the rows.
    """

    pieces: tuple[Array, ...]
    norms: F32 | None = None
    weights: F32 | None = None


class CodeChunk(NamedTuple):
    """Consecutive rows of PQ codes: ``packed`` as `Backend.pq_rows` says, the number of rows, and of each row (float32, (n,)) what
    `Scaling` asks for."""

    packed: U8
    rows: int
    scales: F32 | None = None
    terms: F32 | None = None


class Scaling(NamedTuple):
    """Of 4-bit codes of rows with scales, what sums of entries say of scores: (Q,) float64 each, finite, steps from 1e-33 up.

    Where larger is better, the score is ``(offset + weight * terms[row]) + scale[row] * (base + step * sum)``, in float64, rounded to
    float32 at the end; else the scaled sum is taken off, and what rounds to zero is +0. Larger sums are better either way. Scales
    are from 0 up to 1e30, terms no larger than 1e30; rows without terms, which only larger scores may have, count as if theirs were 0.
    """

    offset: F64
    base: F64
    step: F64
    weight: F64

    def part(self, own: slice) -> Scaling:
        """Of some queries."""
        return Scaling(self.offset[own], self.base[own], self.step[own], self.weight[own])


class Bound(NamedTuple):
    """What a stage's key (larger is better: minus the distance for l2 and Hamming) says of the score of a row: (Q,) each, or one number
    for all queries.

    ``offset + factor * key + margin * weight of the row``, in float64 and in this order, is the most that the score can be; without the
    margin it is the score that a last stage gives. ``factor`` is positive; ``margin`` is None where rows have no weights.
    """

    offset: F64 | float
    factor: F64 | float
    margin: F64 | None = None

    def of(self, keys: F64) -> F64:
        """What keys (Q, C) say, without margins."""
        with np.errstate(over="ignore", invalid="ignore"):  # infinities say nothing
            said: F64 = np.reshape(self.offset, (-1, 1)) + np.reshape(self.factor, (-1, 1)) * keys
        return said

    def reaching(self, values: F64) -> F64:
        """About the keys (Q,) that say so much."""
        keys: F64 = (values - self.offset) / self.factor
        return keys

    def signed(self, largest: bool) -> Bound:
        """The same of raw scores, of which larger ones are better or not."""
        return self if largest else self._replace(factor=-self.factor)


class Level(Protocol):
    """A stage of a cascade with the queries of a batch (opaque)."""


class Listing(Protocol):
    """PQ codes of all rows in the order of inverted lists (opaque)."""


class Source(Protocol):
    """A stage of a cascade for queries that come later (opaque)."""


class Rows(Protocol):
    """Rows prepared for a backend (opaque; keeps the arrays alive). ``len()`` is the number of rows over all chunks.

    A block *visit* covers at most 4,096 rows; ``visits`` counts them. Visit order is a fixed scattered permutation.
    """

    @property
    def visits(self) -> int: ...
    def __len__(self) -> int: ...


class Searcher(Protocol):
    """See `Backend.searcher`."""

    def search(self, queries: Any, k: Any, least: int, live: int, allowed: Bool | None, most: int) -> tuple[I64, F32] | None:
        """Ids and scores of the k best of the ``live`` rows, among ``least`` at least that are looked for, shaped as a user gets them.

        Of a user's arguments as they came: None if these are anything but up to ``most`` finite queries, contiguous float32, and an int
        from 1 up; or if scores are too large for float32, or lists leave too much."""


class Scan(Protocol):
    """A top-k in progress: packed queries and, per query, a threshold and candidates. Not thread-safe; fork one per thread."""

    @property
    def bad_row(self) -> int:
        """Smallest row number met so far that holds NaN or infinity, -1 if none.

        Rows with known norms, and rows that no query may return, are not looked at."""

    def run(self, first: int, last: int) -> None:
        """Visit blocks ``first <= v < last`` of the visit order. Every visit must be made exactly once over all forks."""

    def fork(self) -> Scan:
        """A fresh state that shares the packed queries and the rows. It may drop what k rows of another fork are better than, so that
        the one to be finished has to take over all of them."""

    def merge(self, other: Scan) -> None:
        """Take over the candidates of ``other`` (a fork of the same scan)."""

    def finish(self) -> tuple[F32, I64]:
        """Scores (Q, k) float32 and row numbers (Q, k) int64, best first; row -1 and score NaN beyond the rows there are."""

    @property
    def scored(self) -> I64:
        """Rows that each stage of a cascade scored by their numbers or, the last, without the others' help: (stages, Q)."""


class Assigner(Protocol):
    """Nearest codewords of the same points time and again, as k-means asks for them: what `Backend.pq_assign` says. The less codewords
    move, the fewer comparisons are made. Points are in blocks, which threads may share out."""

    @property
    def blocks(self) -> int: ...

    def move(self, codebook: F32, nearest: I32) -> None:
        """The codebook (K, S) that `assign` is to use from now on. ``nearest`` (n,): what it said of the one before, which all blocks have
        to have been assigned with."""

    def assign(self, first: int, last: int, nearest: I32) -> None:
        """The nearest codewords of all points of blocks ``first <= i < last`` into ``nearest`` (n,)."""


class Backend(Protocol):
    """One implementation of all operations. Q queries, N rows, D dims, M subspaces, K codewords, C candidates."""

    @property
    def name(self) -> str: ...

    @property
    def passes_by(self) -> bool:
        """Whether inverted lists spare it rows: `listing` makes something."""

    # --- dense -------------------------------------------------------------------------------------------------------
    def dense_rows(self, kind: Kind, chunks: Sequence[DenseChunk], ids: I64 | None = None) -> Rows: ...

    def dense_scan(self, rows: Rows, queries: F32, k: int, metric: Metric, allowed: Bool | None = None) -> Scan:
        """``queries`` (Q, D) float32, finite. ``allowed`` (N,) or (Q, N). For l2 scores are distances, smallest first."""

    def dense_top_k(self, kind: Kind, rows: Array, queries: F32, k: int, metric: Metric) -> tuple[F32, I64, int]:
        """`dense_scan` over rows (N, D) from beginning to end, in one call.

        Third value: see ``bad_row``; if there is one, the others say nothing."""

    def plain_top_k(self, queries: Any, rows: Any, k: Any, metric: Any, most: int) -> tuple[I64, F32] | None:
        """`dense_top_k` of a user's unchecked arguments: row numbers and scores, (Q, min(k, N)), or (min(k, N),) for a single query.

        None, whenever the backend leaves it to its caller: anything but float32 arrays used in place, more than ``most`` products (of
        16 dims at least), or any argument that may be wrong, which the caller then explains."""

    def dense_rescore(self, rows: Rows, queries: F32, candidates: I64, k: int, metric: Metric) -> tuple[F32, I64, int]:
        """Canonical top-k of candidate lists (Q, C): -1 is none, a row named twice counts once. Third value: see ``bad_row``."""

    def dense_dot(self, rows: Rows, queries: F32, out: F32, first: int, last: int) -> int:
        """Plain products of rows ``first <= i < last`` into ``out[:, first:last]`` (Q, N), within the error bound. Returns bad_row."""

    def dense_norms(self, kind: Kind, pieces: Sequence[Array], out: F32, upward: bool = False) -> None:
        """Canonical norms over the pieces; ``upward`` rounds to the next float32 not below norm64 (times 1 + 2**-40)."""

    def dense_unit(self, queries: F32, out: F32) -> None:
        """The unit queries u of the canonical cosine, (Q, D)."""

    def dense_map(self, queries: F32, matrix: F32, out: F32) -> None:
        """Canonical products of queries (Q, D) with the rows of a C-contiguous matrix (N, D), all finite, into out (Q, N)."""

    def hadamard(self, rows: F32) -> None:
        """Replaces rows (n, size), size a power of two, by their normalised Walsh-Hadamard transforms. Any row stride from ``size`` up.

        In float32: for half = 1, 2, 4, ... below size, in every 2 * half elements, element i < half and i + half become their sum and their
        difference; at last all are multiplied with 1 / sqrt(size), rounded to float32."""

    # --- int8 codes with integer queries -------------------------------------------------------------------------------
    def integer_queries(self, queries: F32, scales: F32, codes: I8, steps: F64) -> None:
        """Float queries (Q, D) for rows that are codes times ``scales`` (D,), as codes (Q, D) of -63..63 times steps (Q,).

        In float64: x = query * scale; step = largest |x| / 63; code = x / step, rounded, ties to even; 0 where all x are 0. Codes of a
        query that is not finite say nothing, and its step is not finite either."""

    def integer_scan(
        self, rows: Rows, codes: I8, factors: F32, offsets: F32, k: int, metric: IntegerMetric, allowed: Bool | None = None
    ) -> Scan:
        """``codes`` (Q, D) int8 (faster when all in -64..63), ``factors`` and ``offsets`` (Q,); ip: larger is better, l2: smaller."""

    def integer_rescore(
        self, rows: Rows, codes: I8, factors: F32, offsets: F32, candidates: I64, k: int, metric: IntegerMetric
    ) -> tuple[F32, I64]: ...

    # --- packed binary codes -------------------------------------------------------------------------------------------
    def bit_rows(self, chunks: Sequence[U8], bits: int, ids: I64 | None = None) -> Rows:
        """Chunks (n, >= ceil(bits/8)) uint8 in np.packbits order; bits beyond ``bits`` are ignored."""

    def hamming_scan(self, rows: Rows, codes: U8, k: int, allowed: Bool | None = None) -> Scan: ...

    def plain_hamming_top_k(self, queries: Any, codes: Any, k: Any, most: int) -> tuple[I64, F32] | None:
        """As `plain_top_k`, the nearest of a user's uint8 codes by all of their bits; ``most``: bytes of codes times queries."""

    def hamming_rescore(self, rows: Rows, codes: U8, candidates: I64, k: int) -> tuple[F32, I64]: ...

    def hamming_distances(self, rows: Rows, codes: U8, out: I32, first: int, last: int) -> None:
        """Distances of rows ``first <= i < last`` into ``out[:, first:last]`` (Q, N) int32."""

    # --- product quantization ------------------------------------------------------------------------------------------
    def pq_rows(self, chunks: Sequence[CodeChunk], subspaces: int, bits: int, ids: I64 | None = None) -> Rows:
        """Packed codes: (ceil(n/64), M, 64) for 8 bits; (ceil(n/64), ceil(M/2), 64) for 4 bits,
        the low nibble being the even subspace; padding rows and the missing odd subspace are zero. All chunks but the last hold a
        multiple of 64 rows."""

    def pq_scan(self, rows: Rows, tables: F32, k: int, largest: bool, allowed: Bool | None = None, scaling: Scaling | None = None) -> Scan:
        """``tables`` (Q, M, 2**bits) float32, finite. ``largest``: larger scores are better (ip, cosine), else smaller (l2). Scores are
        sums, or what ``scaling`` makes of them."""

    def plain_pq_top_k(
        self, queries: Any, packed: U8, rows: int, codebooks: F32, dims: int, squared: bool, k: Any, most: int
    ) -> tuple[I64, F32] | None:
        """As `plain_top_k`, of codes packed as for `pq_rows`, by `pq_tables` of a user's queries (Q, dims); ``most``: lookups in tables
        of 16 entries, for which one of 256 counts 16 times."""

    def pq_rescore(
        self, rows: Rows, tables: F32, candidates: I64, k: int, largest: bool, scaling: Scaling | None = None
    ) -> tuple[F32, I64]: ...

    def pq_tables(self, queries: F32, codebooks: F32, squared: bool, out: F32) -> bool:
        """``codebooks`` (M, K, S), queries (Q, D) with D <= M*S (missing dims count as 0); out (Q, M, K). Returns whether it is finite.

        Entry: sum over s in rising order from +0 of q*c, or of (q-c)*(q-c) if ``squared``; multiply, then add, float32."""

    def pq_whole(self, tables: F32, base: F64, step: F64) -> None:
        """Rounds tables (Q, M, K) in place to whole numbers 0..63, with which scans are several times faster; sums of the given
        entries are about base + step * sums of the new ones.

        Per query, in float32: low = least entry of a subspace; step = largest range of a subspace / 63; an entry becomes the whole part of
        (entry - low) * (1 / step) + 0.5, 63 at most. base: the sum of the lows in rising order, in float64. Where no range is between
        1e-30 and 1e37, all entries become 0, and the step is 1."""

    def pq_assign(self, vectors: F32, codebooks: F32, out: I32) -> None:
        """Nearest codeword per subspace into out (n, M): least canonical sum of (x-c)*(x-c), lowest index on ties.

        The order of summation is that of ``pq_tables``."""

    def pq_assigner(self, points: F32, codewords: int) -> Assigner | None:
        """For points (n, S), C-contiguous, which are read as long as it lives. None: `pq_assign` is the only way."""

    def centroid_sums(self, points: F32, nearest: I32, sums: F64, counts: I64) -> None:
        """Sums (K, width) of the points (n, width) that each codeword has, and how many these are (K,); ``nearest`` (n,) numbers them.

        In float64, from +0, in the order of the points."""

    def pq_descend(self, units: F32, lengths: F32, codebooks: F32, extra: float, sweeps: int, codes: I32) -> None:
        """Lowers the loss |x - y|^2 + extra <x - y, u>^2 of rows x, units u (n, D) times lengths (n,), and what their ``codes`` (n, M)
        stand for, y, in place: codewords are chosen anew subspace by subspace, ``sweeps`` times.

        In float32, multiply, then add, sums in rising order from +0. ``along`` of a subspace is the length times the sum of u*u; what is
        ``left`` is along - the sum of u*c of the codeword c; ``total`` is the sum of what is left. For every subspace: others = total -
        left; pull = (length + length) + (extra + extra) * (others + along); the new codeword has the least sum of c*c + p * (extra * p -
        pull), p being its sum of u*c, and the lowest index on ties, where what is NaN or infinite is never least, and the first one has
        index 0; total = others + left. Rows of no length, or whose total is not finite in the end, keep their codes."""

    def pq_pack(self, codes: U8, bits: int, out: U8) -> None:
        """Row-major codes (n, code_bytes) to the packed layout. Row-major 4-bit codes hold the even subspace in the low nibble too."""

    def pq_unpack(self, packed: U8, bits: int, out: U8) -> None:
        """The inverse of ``pq_pack``; out (n, code_bytes)."""

    # --- adaptive cascades -----------------------------------------------------------------------------------------------
    # A row's *value* is the smaller of its score in the last stage and of all stages' upper bounds. The answer is the k rows of the best
    # (value, score, smallest id), in the order of scores. ``scan``: whether the level can scan, not only score named rows.

    def dense_level(self, rows: Rows, queries: F32, metric: Metric, bound: Bound, scan: bool = False) -> Level:
        """Canonical scores, as of ``dense_scan``."""

    def prefix_level(
        self, rows: Rows, queries: F32, squares: F64, largest: float, metric: Metric, bound: Bound, scan: bool = False
    ) -> Level:
        """The first dims of rows that come with the norms of whole rows, none above ``largest``, and with weights.

        Keys, from the canonical product p of ``queries`` (Q, d) with the prefixes, in float64, rounded to float32: p for ip; p / norm
        for cosine, whose queries are prefixes of unit queries; 2 p - (square + norm * norm) for l2, with the ``squares`` of whole
        queries. For cascades whose bounds are hard."""

    def integer_level(
        self, rows: Rows, codes: I8, factors: F32, offsets: F32, metric: IntegerMetric, bound: Bound, scan: bool = False
    ) -> Level: ...

    def hamming_level(self, rows: Rows, codes: U8, bound: Bound, scan: bool = False) -> Level: ...

    def pq_level(self, rows: Rows, tables: F32, largest: bool, bound: Bound, scan: bool = False, scaling: Scaling | None = None) -> Level:
        """With ``scaling``, bounds have no margins by row."""

    def list_rows(self, chunks: Sequence[U16], centroids: Rows, ids: I64 | None = None) -> Rows:
        """The numbers (n,) of rows' lists, whose ``centroids`` are rows of `pq_rows`."""

    def list_rescore(self, rows: Rows, tables: F32, candidates: I64, k: int, largest: bool) -> tuple[F32, I64]:
        """As ``pq_rescore``: a row's score is that of its list's centroid."""

    def list_level(self, rows: Rows, tables: F32, largest: bool, bound: Bound) -> Level:
        """The same. It can score named rows, and not scan."""

    def listing(self, rows: Rows, codes: Rows, before: Listing | None = None) -> Listing | None:
        """PQ codes (of `pq_rows`, without scales) once more, in the order of the lists of ``rows`` (`list_rows`), which have the same
        chunks. None: this backend scans all rows, or there are more than 32 bits can number.

        ``before``: one of the same lists when there were other rows. What it knows of chunks whose arrays are the same ones, and as long,
        is taken over; in arrays, rows may have been written after those in use alone."""

    def listed_top_k(
        self, listing: Listing, levels: Sequence[Level], judge: Level, k: int, allowed: Bool | None, first: int, last: int
    ) -> tuple[F32, I64, I64, Bool]:
        """What `cascade_scan` finds for queries first..last, of which it looks at the lists that can matter alone, best first.

        The first level is that of the listing's codes, the second one that of its lists; none needs to be ready to scan.
        Scores and row numbers (Q, k); rows scored (stages, Q); and the queries (Q,) that were left, as so much can matter to them that
        `cascade_scan` takes less time."""

    def level_scan(self, level: Level, k: int, allowed: Bool | None = None, floors: F32 | None = None, share: int = 1) -> Scan:
        """A top-k by the keys of one level, in its raw scores: what `Bound` says of them is left out. For levels without margins.

        ``floors`` (Q,): raw scores from which on rows are wanted; NaN wants all. ``share``: a sample is enough, one of so many runs of 64
        rows; every visit has some, as rows that lie together may be alike."""

    def cascade_scan(
        self, levels: Sequence[Level], judge: Level, k: int, allowed: Bool | None = None, floors: F64 | None = None, hard: bool = False
    ) -> Scan:
        """All rows through the levels.

        ``floors`` (Q,): values that at least k of the allowed rows reach; infinity finds nothing. ``hard``: no bound can fail, so that
        levels may be left out where they do not help; all of them can scan then, else the first one."""

    def cascade_top_k(
        self,
        levels: Sequence[Level],
        judge: Level,
        k: int,
        listed: int,
        share: int,
        guess: int,
        allowed: Bool | None = None,
        hard: bool = False,
        seeds: Level | None = None,
    ) -> tuple[F32, I64, I64, Bool] | None:
        """A whole search, for work of no more than some milliseconds.

        `cascade_scan` with floors from the ``listed`` rows that look best to ``seeds``, or else to the first level, in one of ``share``
        runs of 64 rows; if ``guess`` is not 0, one of so many of them is looked at before, for the key from which on rows are listed.
        Scores and row numbers (Q, k); rows scored (stages, Q), without what the first level's scans score; and which queries (Q,) the list
        was not enough for, so that all rows were scanned once more. None: this backend has no such call."""

    # Searches so small that making queries ready in Python would take longer: sources do the same, with the same bits. None: this backend
    # has none. For inner products and cosines, Full for all metrics. ``intercept`` and ``slope``: of `ErrorModel.bound`, with its margins.

    def full_source(self, rows: Rows, metric: Metric) -> Source | None:
        """The last stage."""

    def integer_source(
        self, rows: Rows, metric: Metric, dim: int, directions: F32 | None, whole: bool, intercept: float, slope: float, scales: F32
    ) -> Source | None:
        """Codes (N, d) times ``scales`` (d,) of rows' first d dims of ``dim``, or of their coordinates along ``directions`` (d, dim). For
        cosines these are coordinates of unit rows, made units themselves or, if ``whole``, left as they are."""

    def pq_source(
        self,
        rows: Rows,
        metric: Metric,
        dim: int,
        dims: int,
        directions: F32 | None,
        intercept: float,
        slope: float,
        codebooks: F32,
        rotation: F32 | None,
        lists: tuple[Rows, tuple[float, float]] | None = None,
    ) -> Source | None:
        """Codes of the same coordinates, made units, times ``rotation`` (dims, dims); tables of 4 bits are made whole. With ``lists``
        (`list_rows`), and the intercept and slope of their keys, it makes their level too."""

    def searcher(self, sources: Sequence[Source], share: int, spare: int, guess: int, listing: Listing | None = None) -> Searcher | None:
        """A cascade of sources for queries that come later: `cascade_top_k`, with lists ``spare`` rows longer than what is wanted, or
        `listed_top_k` if there is a listing."""

    def cascade_rescore(
        self, levels: Sequence[Level], judge: Level, candidates: I64, raw: F32 | None, k: int, hard: bool = False, first: int = 0
    ) -> tuple[F32, I64, F64, I64]:
        """Candidate lists (Q, C) of the levels' queries first, first + 1, ... through the levels: -1 is none.

        ``raw``: the scores that the first level's scan gave them, each row once.
        Scores and row numbers (Q, k); the k-th best value (Q,), minus infinity if there are fewer; rows scored (stages, Q)."""
