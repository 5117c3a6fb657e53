"""Rescoring, products, norms and maps against float64 and, to the bit, against the canonical model."""

from __future__ import annotations

from typing import Any

import awkward
import numpy as np
import oracles
import pytest
from dense_cases import check_products, check_rescored, chunks, make, make_queries

from adaptive_search.backends.protocol import Backend
from adaptive_search.types import KINDS, METRICS, Kind, Metric


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_rescore(backend: Backend, metric: Metric, kind: Kind) -> None:
    rng = np.random.default_rng(4)
    rows, queries = make(kind, 3000, 50), make_queries(9, 50)
    rows[1000:2000] = rows[:1000]
    ids = rng.permutation(3000).astype(np.int64)
    prepared = backend.dense_rows(kind, chunks(rows, (1, 999, 64)), ids)
    for width in (1, 2, 7, 100, 4000):
        candidates = rng.integers(-1, 3000, (9, width))
        candidates[2] = -1
        candidates[3] = 17
        for k in (1, 10, width):
            found = backend.dense_rescore(prepared, queries, candidates, k, metric)
            check_rescored(found, metric, kind, queries, rows, candidates, k, ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dims", "cuts"), [(64, ()), (192, (64, 128)), (50, (16,)), (75, (17, 40))], ids=str)
def test_rescore_of_pieces(backend: Backend, kind: Kind, dims: int, cuts: tuple[int, ...]) -> None:
    """As many candidates as are scored side by side, and one or a few more, of rows in pieces of whole lanes and others."""
    rows, queries = make(kind, 300, dims), make_queries(3, dims)
    prepared = backend.dense_rows(kind, chunks(rows, (10**9,), cuts, awkward.before_forbidden_page))
    for metric in METRICS:
        for width in (4, 5, 6, 8, 9, 13, 20):
            candidates = np.stack([np.random.default_rng(width + query).permutation(300)[:width] for query in range(3)])
            check_rescored(backend.dense_rescore(prepared, queries, candidates, 20, metric), metric, kind, queries, rows, candidates, 20)


def test_rescore_without_candidates(backend: Backend) -> None:
    prepared = backend.dense_rows("float32", chunks(make("float32", 10, 5)))
    scores, numbers, bad = backend.dense_rescore(prepared, make_queries(3, 5), np.zeros((3, 0), np.int64), 2, "ip")
    assert bad == -1
    assert (numbers == -1).all()
    assert np.isnan(scores).all()


@pytest.mark.parametrize("count", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_products(backend: Backend, kind: Kind, count: int) -> None:
    for dims in awkward.DIMS:
        rows, queries = make(kind, 150, dims), make_queries(count, dims)
        prepared = backend.dense_rows(kind, chunks(rows, (67,)))
        for first, last in ((0, 150), (3, 3), (66, 68), (149, 150), (5, 140)):
            out = awkward.Guarded((count, 150), np.float32)
            out.array[...] = 123
            assert backend.dense_dot(prepared, queries, out.array, first, last) == -1
            assert (out.array[:, :first] == 123).all()
            assert (out.array[:, last:] == 123).all()
            check_products(out.array[:, first:last], kind, queries, rows[first:last])
            assert out.intact


@pytest.mark.parametrize("kind", KINDS)
def test_norms(backend: Backend, kind: Kind) -> None:
    for dims in awkward.DIMS:
        for scale in (1e-22, 1.0, 1e18) if kind == "float32" else (1.0,):
            rows = make(kind, 90, dims) if scale == 1 else make(kind, 90, dims) * np.float32(scale)
            rows[5] = 0
            cut = max(dims // 3, 1) if dims > 1 else 0
            for place in awkward.ROW_PLACES.values():
                pieces = [place(np.ascontiguousarray(part)) for part in (rows[:, :cut], rows[:, cut:]) if part.shape[1]]
                out = awkward.Guarded((90,), np.float32)
                backend.dense_norms(kind, pieces, out.array)
                wide = oracles.widened(kind, rows)
                assert oracles.same_bits(out.array, oracles.canonical_norms(wide))
                assert out.intact
            backend.dense_norms(kind, pieces, out.array, True)
            raised = oracles.canonical_norm64(wide) * (1 + 2.0**-40)
            assert np.all(out.array >= raised)
            assert np.all(np.nextafter(out.array, np.float32(-1)) < np.where(raised > 0, raised, 1))
            assert out.array[5] == 0


def test_unit_queries(backend: Backend) -> None:
    for dims in awkward.DIMS:
        for scale in (1e-40, 1e-20, 1.0, 1e30):
            queries = (make_queries(11, dims) * np.float64(scale)).astype(np.float32)
            queries[4] = 0
            out = awkward.Guarded((11, dims), np.float32)
            backend.dense_unit(queries, out.array)
            assert oracles.same_bits(out.array, oracles.canonical_unit(queries))
            assert out.intact


@pytest.mark.parametrize("place", awkward.FLAT_PLACES.values(), ids=awkward.FLAT_PLACES)
def test_map(backend: Backend, place: Any) -> None:
    for dims in awkward.DIMS:
        for count, n in ((1, 1), (1, 50), (3, 7), (2, 130), (9, 1), (67, 25), (130, 13)):
            matrix, queries = make("float32", n, dims), make_queries(count, dims)
            out = awkward.Guarded((count, n), np.float32)
            backend.dense_map(place(queries), place(matrix), out.array)
            assert oracles.same_bits(out.array, oracles.canonical_score("ip", queries, matrix))
            assert out.intact


def test_map_of_nothing(backend: Backend) -> None:
    for count, n in ((0, 5), (5, 0)):
        out = awkward.Guarded((count, n), np.float32)
        backend.dense_map(np.ones((count, 8), np.float32), np.ones((n, 8), np.float32), out.array)
        assert out.intact


def test_map_beyond_float32(backend: Backend) -> None:
    """Sums that overflow do so in the same lanes, and cancel to the same NaN."""
    queries, matrix = make_queries(5, 45), make("float32", 30, 45)
    queries[3] *= np.float32(1e30)
    matrix[7] *= np.float32(1e10)
    queries[2], matrix[8] = 3e38, 3e38
    matrix[8, ::2] *= -1
    out = awkward.Guarded((5, 30), np.float32)
    backend.dense_map(queries, matrix, out.array)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(out.array, oracles.canonical_score("ip", queries, matrix))
    assert out.intact
