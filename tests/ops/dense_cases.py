"""Rows, queries and checks that the tests of dense operations share."""

from __future__ import annotations

import itertools
from typing import Any

import awkward
import numpy as np
import oracles
from numpy.typing import NDArray

from adaptive_search.backends.protocol import DenseChunk
from adaptive_search.types import Kind, Metric

Array = NDArray[Any]


FLOATS: tuple[Kind, ...] = ("float32", "float16", "bfloat16")


def make(kind: Kind, n: int, dims: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return oracles.narrowed(kind, rng.standard_normal((n, dims)) * (50 if kind == "int8" else 1))


def make_queries(count: int, dims: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32)


def chunks(
    rows: Array, sizes: tuple[int, ...] = (10**9,), cuts: tuple[int, ...] = (), place: Any = None, norms: Array | None = None
) -> list[DenseChunk]:
    """Rows cut into chunks, dims cut into pieces that each lie somewhere else."""
    place = place or (lambda array: array)
    edges = [0, *cuts, rows.shape[1]]
    return [
        DenseChunk(
            tuple(place(np.ascontiguousarray(rows[part, a:b])) for a, b in itertools.pairwise(edges)),
            None if norms is None else norms[part].copy(),
        )
        for part in awkward.cut(len(rows), sizes)
    ]


def check(
    found: tuple[Array, Array],
    metric: Metric,
    kind: Kind,
    queries: Array,
    rows: Array,
    k: int,
    ids: Array | None = None,
    allowed: Array | None = None,
    overflows: bool = False,
    modelled: Array | None = None,
) -> None:
    """Ids and score bits are those of the canonical model; scores lie within the bound around float64, unless sums overflow."""
    wide = oracles.widened(kind, rows)
    if modelled is None:
        modelled = oracles.canonical_score(metric, queries, wide)
    scores, numbers = oracles.best(modelled, k, ids=ids, largest=metric != "l2", allowed=allowed)
    np.testing.assert_array_equal(found[1], numbers)
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64
    assert oracles.same_bits(found[0], scores)
    if not overflows:
        query, place = np.nonzero(numbers >= 0)
        row = numbers[query, place]
        exact, bound = oracles.score(metric, queries, wide), oracles.error_bound(metric, queries, wide)
        assert np.all(np.abs(found[0][query, place] - exact[query, row]) <= bound[query, row])


def check_rescored(
    found: tuple[Array, Array, int], metric: Metric, kind: Kind, queries: Array, rows: Array, candidates: Array, k: int, ids: Any = None
) -> None:
    allowed = np.zeros((len(queries), len(rows)), bool)
    for query, some in enumerate(candidates):
        allowed[query, some[some >= 0]] = True
    assert found[2] == -1
    check(found[:2], metric, kind, queries, rows, k, ids, allowed)


def check_products(out: Array, kind: Kind, queries: Array, rows: Array) -> None:
    wide = oracles.widened(kind, rows)
    assert np.all(np.abs(out - oracles.dot(queries, wide)) <= oracles.error_bound("ip", queries, wide))
