"""Stateless search by what packed binary codes have in common: the bits that are set in both, as a number or as a share of those set in
either. Codes are taken as sets, as of sparse codes and fingerprints; the zeros that two codes share say nothing.

With h differing bits, (|a| + |b| - h) / 2 are common and (|a| + |b| + h) / 2 set in either: everything comes from Hamming distances, those
to the empty set included, which are the sizes of the sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import block_rows, ranges
from .backends.protocol import Rows, Scan
from .execution import CANDIDATE_BYTES
from .flat import HammingFamily
from .functional import all_pairs, best_rows, hamming_family
from .types import F32, I32, I64, U8, Array, Bool, Neighbors

U32 = NDArray[np.uint32]

QUERIES_AT_ONCE = 32
PAIRS_AT_ONCE = 1 << 17
"""Pairs of codes that are worked on together: some arrays of so many numbers stay in the second-level cache."""

FEW = 32
"""One in so many rows of the first ones that are looked at comes before the others."""

EXACT = 1 << 23
"""Twice so large a number, and any smaller one, is exact in float32."""


def intersection(queries: Any, codes: Any, *, bits: int | None = None, threads: int | None = None) -> I32:
    """How many bits are set in both, for all packed queries and all packed rows.

    Parameters
    ----------
    queries, codes, bits, threads
        As for `hamming`.

    Returns
    -------
    ndarray of int32, shape (Q, N) or (N,)

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.intersection(np.uint8([0b1111_0000]), np.uint8([[0b1111_0000], [0b1010_0001]]))
    array([4, 2], dtype=int32)
    """
    return _of_all(_common, np.int32, queries, codes, bits, threads)


def jaccard(queries: Any, codes: Any, *, bits: int | None = None, threads: int | None = None) -> F32:
    """The bits that are set in both as a share of those set in either (Jaccard, or Tanimoto), for all packed queries and all packed rows.

    Two codes without a set bit are equal sets: 1, as scipy's and RDKit's have it.

    Parameters
    ----------
    queries, codes, bits, threads
        As for `hamming`.

    Returns
    -------
    ndarray of float32, shape (Q, N) or (N,)
        The quotients, rounded to nearest.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.jaccard(np.uint8([0b1111_0000]), np.uint8([[0b1111_0000], [0b1010_0001], [0]]))
    array([1. , 0.4, 0. ], dtype=float32)
    """
    return _of_all(_quotients, np.float32, queries, codes, bits, threads)


def intersection_top_k(
    queries: Any, codes: Any, k: int, *, bits: int | None = None, mask: Any = None, threads: int | None = None
) -> Neighbors:
    """The k packed rows that have the most set bits in common with every packed query.

    Parameters
    ----------
    queries, codes, k, bits, mask, threads
        As for `hamming_top_k`.

    Returns
    -------
    Neighbors
        As for `top_k`; scores are numbers of common bits, largest first, ties by row number.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, or out of range.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.intersection_top_k(np.uint8([0b111]), np.uint8([[0b001], [0b1111], [0b110]]), k=2)
    Neighbors(ids=array([1, 2]), scores=array([3., 2.], dtype=float32))
    """
    return _best(_common, queries, codes, k, bits, mask, threads)


def jaccard_top_k(queries: Any, codes: Any, k: int, *, bits: int | None = None, mask: Any = None, threads: int | None = None) -> Neighbors:
    """The k packed rows of which the largest share is in common with every packed query (see `jaccard`).

    Parameters
    ----------
    queries, codes, k, bits, mask, threads
        As for `hamming_top_k`.

    Returns
    -------
    Neighbors
        As for `top_k`; scores are those of `jaccard`, largest first, ties by row number.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, or out of range.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.jaccard_top_k(np.uint8([0b111]), np.uint8([[0b001], [0b1111], [0b110]]), k=2)
    Neighbors(ids=array([1, 2]), scores=array([0.75     , 0.6666667], dtype=float32))
    """
    return _best(_quotients, queries, codes, k, bits, mask, threads)


Measure = Callable[[U32, U32, U32], Array]
"""Scores (Q, n) from differing bits (Q, n), sizes of queries (Q, 1) and of rows (n,)."""


def _common(differing: U32, own: U32, sizes: U32) -> U32:
    total = own + sizes
    total -= differing
    total >>= np.uint32(1)
    return total


def _quotients(differing: U32, own: U32, sizes: U32) -> F32:
    largest = int(own.max(initial=0)) + int(sizes.max(initial=0))
    kind = np.float32 if largest <= EXACT else np.float64
    apart = differing.astype(kind)
    total = own.astype(kind) + sizes.astype(kind)
    out: Array = total - apart
    total += apart
    with np.errstate(invalid="ignore"):
        out /= total
    if not own.all():
        np.nan_to_num(out, copy=False, nan=1.0)
    return out.astype(np.float32, copy=False)


def _of_all(measure: Measure, dtype: type[np.generic], queries: Any, codes: Any, bits: Any, threads: Any) -> Array:
    family, single = hamming_family(queries, codes, bits)
    return all_pairs(_Overlaps.of(family, measure), dtype, threads, single)


def _best(measure: Measure, queries: Any, codes: Any, k: Any, bits: Any, mask: Any, threads: Any) -> Neighbors:
    family, single = hamming_family(queries, codes, bits)
    return best_rows(_Overlaps.of(family, measure), k, mask, threads, single)


@dataclass(frozen=True, eq=False)
class _Codes:
    """Rows, and how many of them are worked on together."""

    codes: U8
    step: int

    @classmethod
    def own(cls, rows: Rows) -> _Codes:
        if not isinstance(rows, cls):
            raise TypeError("rows of another family")
        return rows

    @property
    def visits(self) -> int:
        return -(-len(self.codes) // self.step)

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class _Overlaps(HammingFamily):
    """Packed binary queries against packed binary rows, by a measure of what they share."""

    measure: Measure

    @classmethod
    def of(cls, family: HammingFamily, measure: Measure) -> _Overlaps:
        return cls(family.backend, family.codes, family.batch, family.bits, measure)

    @property
    def largest(self) -> bool:
        return True

    @property
    def query_bytes(self) -> int:
        """More than it is, so that few queries at a time are searched with many rows."""
        return CANDIDATE_BYTES // QUERIES_AT_ONCE

    def open(self, first: int, last: int) -> Rows:
        return _Codes(self.codes[first:last], PAIRS_AT_ONCE // max(1, min(self.queries, QUERIES_AT_ONCE)))

    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        return _Scan(_Codes.own(rows), _Asked.of(self, first, last), k, allowed)

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        codes = _Codes.own(rows).codes
        scores, ids = np.full((last - first, k), np.nan, np.float32), np.full((last - first, k), -1, np.int64)
        for query, named in enumerate(candidates):
            chosen = named[named >= 0]
            asked, found = _Asked.of(self, first + query, first + query + 1), np.empty(len(chosen), np.float32)
            for begin, end in ranges(len(chosen), block_rows(codes.shape[1])):
                found[begin:end] = asked.scores(codes[chosen[begin:end]])[0]
            order = np.lexsort((chosen, -found))[:k]
            scores[query, : len(order)], ids[query, : len(order)] = found[order], chosen[order]
        return scores, ids, -1

    def fill(self, rows: Rows, start: int, stop: int, out: Array, first: int, last: int) -> int:
        asked, codes = _Asked.of(self, start, stop), _Codes.own(rows).codes
        for begin, end in ranges(last - first, max(1, PAIRS_AT_ONCE // (stop - start))):
            out[:, first + begin : first + end] = asked.scores(codes[first + begin : first + end])
        return -1


class _Asked(NamedTuple):
    """Some queries of a family, the empty set after them, and the sizes (Q, 1) of the sets."""

    family: _Overlaps
    batch: U8
    sizes: U32

    @classmethod
    def of(cls, family: _Overlaps, first: int, last: int) -> _Asked:
        batch = np.concatenate([family.batch[first:last], np.zeros((1, family.batch.shape[1]), np.uint8)])
        return cls(family, batch, _differing(family, batch[:-1], batch[-1:]))

    def scores(self, codes: U8) -> Array:
        """Of all with some rows: (Q, n)."""
        differing = _differing(self.family, self.batch, codes)
        return self.family.measure(differing[:-1], self.sizes, differing[-1])


def _differing(family: HammingFamily, batch: U8, codes: U8) -> U32:
    """Hamming distances (Q, n); 32 bits without a sign hold the sum of two of them."""
    out = np.empty((len(batch), len(codes)), np.int32)
    part = codes if codes.strides[1] == 1 else np.ascontiguousarray(codes)
    family.backend.hamming_distances(family.backend.bit_rows([part], family.bits), batch, out, 0, len(codes))
    return out.view(np.uint32)


class _Found(NamedTuple):
    """Rows that were found, in any order: the query (n,) of each, its number, and its score."""

    queries: I64
    rows: I64
    scores: F32

    @classmethod
    def joined(cls, parts: Sequence[_Found]) -> _Found:
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def at(self, places: I64) -> _Found:
        return _Found(self.queries[places], self.rows[places], self.scores[places])


class _Scan:
    """A top-k in progress, as a `Scan` of a backend. Rows are met in rising order, so that those met later lose all ties.

    What is found is put aside, until there is as much as may stay; then it is brought into order.
    """

    bad_row = -1

    def __init__(self, rows: _Codes, asked: _Asked, k: int, allowed: Bool | None) -> None:
        self._rows, self._asked, self._k, self._allowed = rows, asked, k, allowed
        self._best = _Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        self._aside: list[_Found] = []
        self._floors = np.full((len(asked.sizes), 1), -1.0, np.float32)

    def run(self, first: int, last: int) -> None:
        for visit in range(first, last):
            begin, end = visit * self._rows.step, min(len(self._rows), (visit + 1) * self._rows.step)
            # A few rows give floors, without which all of many would have to be put aside.
            middle = begin if self._floors.min(initial=0) >= 0 else begin + (end - begin) // FEW
            for start, stop in ((begin, middle), (middle, end)):
                if start < stop:
                    self._look_at(start, stop)

    def _look_at(self, first: int, last: int) -> None:
        scores = self._asked.scores(self._rows.codes[first:last]).astype(np.float32, copy=False)
        passed = scores > self._floors
        if self._allowed is not None:
            passed &= self._allowed[..., first:last]
        places = np.flatnonzero(passed)
        if not len(places):
            return
        counts = np.bincount(places // (last - first), minlength=len(scores))
        if counts.max() > self._k:
            parts = np.split(places, np.cumsum(counts)[:-1])
            places = np.concatenate([_largest(scores.ravel(), part, self._k) for part in parts])
        queries, rows = np.divmod(places, last - first)
        self._aside.append(_Found(queries, rows + first, scores.ravel()[places]))
        if sum(len(part.rows) for part in self._aside) >= self._k * len(scores):
            self._order()

    def _order(self) -> None:
        """Keep the k best of each query, best first."""
        every = _Found.joined([self._best, *self._aside])
        order = np.lexsort((every.rows, -every.scores, every.queries))
        queries = every.queries[order]
        count = len(self._floors)
        begins = np.searchsorted(queries, np.arange(count + 1))
        kept = np.arange(len(order)) - begins[queries] < self._k
        self._best, self._aside = every.at(order[kept]), []
        full = np.flatnonzero(np.diff(begins) >= self._k)
        self._floors[full, 0] = every.scores[order[begins[full] + self._k - 1]]

    def fork(self) -> Scan:
        return _Scan(self._rows, self._asked, self._k, self._allowed)

    def merge(self, other: Scan) -> None:
        if not isinstance(other, _Scan):
            raise TypeError("a scan of another family")
        self._aside += [other._best, *other._aside]
        self._order()

    def finish(self) -> tuple[F32, I64]:
        self._order()
        scores = np.full((len(self._floors), self._k), np.nan, np.float32)
        ids = np.full(scores.shape, -1, np.int64)
        queries = self._best.queries
        places = np.arange(len(queries)) - np.searchsorted(queries, queries)
        scores[queries, places], ids[queries, places] = self._best.scores, self._best.rows
        return scores, ids

    @property
    def scored(self) -> I64:
        return np.zeros((0, len(self._floors)), np.int64)


def _largest(scores: F32, places: I64, k: int) -> I64:
    """The k of rising places that have the largest scores, of equals the first."""
    if len(places) <= k:
        return places
    # Scores are not negative, so that their bits are in the order of the numbers.
    order = scores[places].view(np.int32).astype(np.int64) << np.int64(32)
    order -= np.arange(len(places))
    largest: I64 = places[np.argpartition(order, -k)[-k:]]
    return largest
