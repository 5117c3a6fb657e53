"""Who found the right rows: recall, measured so that equal scores count as equal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adaptive_search.types import I64, U8, Array

from .peers import numpy_dense, numpy_hamming, numpy_jaccard

F64 = NDArray[np.float64]

ROUNDING = 2e-6
"""Relative difference between sums of the same float32 products in different orders."""


def dense_recall(rows: Array, queries: Array, k: int) -> Callable[[Array], float]:
    """Share of found rows that score no worse than the k-th best of all."""
    last = numpy_dense(rows)(queries, k)[:, -1:]

    def scores(ids: Array) -> F64:
        taken = rows[ids].astype(np.float64)
        products: F64 = np.einsum("qd,qkd->qk", queries[: len(ids)].astype(np.float64), taken)
        return products

    least = scores(last)

    def recall(found: Array) -> float:
        found = found[: len(least)]
        needed = least[: len(found)]
        return float((scores(found[:, :k]) >= needed - ROUNDING * np.abs(needed)).mean())

    return recall


def hamming_recall(codes: U8, queries: U8, k: int) -> Callable[[Array], float]:
    """Share of found rows that are no farther than the k-th nearest of all."""

    def distances(ids: Array) -> I64:
        counts: I64 = np.bitwise_count(codes[ids] ^ queries[: len(ids), None]).sum(axis=2, dtype=np.int64)
        return counts

    most = distances(numpy_hamming(codes)(queries, k)[:, -1:])
    return lambda found: float((distances(found[:, :k]) <= most[: len(found)]).mean())


def jaccard_recall(codes: U8, queries: U8, k: int) -> Callable[[Array], float]:
    """Share of found rows that have no less in common than the k-th best of all."""

    def shares(ids: Array) -> F64:
        found, asked = codes[ids], queries[: len(ids), None]
        common, either = (np.bitwise_count(bits).sum(axis=2, dtype=np.int64) for bits in (found & asked, found | asked))
        quotients: F64 = common / np.maximum(either, 1)
        return quotients

    least = shares(numpy_jaccard(codes)(queries, k)[:, -1:])
    return lambda found: float((shares(found[:, :k]) >= (1 - ROUNDING) * least[: len(found)]).mean())


def set_recall(truth: I64) -> Callable[[Array], float]:
    """Share of the true neighbours (Q, k) that are among all that was found."""

    def recall(found: Array) -> float:
        hits = [np.isin(wanted, got).mean() for wanted, got in zip(truth, found, strict=False)]
        return float(np.mean(hits))

    return recall


def nearest(rows: Array, queries: Array, k: int) -> I64:
    """The true k nearest by inner product."""
    return numpy_dense(rows)(queries, k)
