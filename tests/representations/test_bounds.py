"""Estimates in score units, and bounds that the canonical score of the whole vectors never leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from index_cases import KINDS, METRICS, collection, filled, questions, shuffled_ids

import adaptive_search as asx
from adaptive_search.backends import current
from adaptive_search.backends.protocol import Backend
from adaptive_search.types import F32, I64


def scored(index: asx.Index, queries: F32, backend: Backend) -> tuple[Any, F32, I64]:
    """The first stage's representation, its estimates for all rows, and their positions."""
    stage = index._prepare(backend, exact=False)[0]
    scan = stage.representation.scan(backend, stage.rows, queries, len(index), None)
    scan.run(0, stage.rows.visits)
    raw, positions = scan.finish()
    return stage.representation, stage.representation.estimates(backend, queries, raw), positions


def check_bounds(index: asx.Index, rows: F32, queries: F32, backend: Backend) -> tuple[F32, F32]:
    representation, estimates, positions = scored(index, queries, backend)
    low, high = representation.bounds(backend, index._store, queries, positions, estimates)
    assert low.dtype == high.dtype == np.float32
    true = np.take_along_axis(oracles.canonical_score(index.metric, queries, rows), positions, 1)
    assert (low <= true).all()
    assert (true <= high).all()
    return low, high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dims", [1, 7, 16, 24])
def test_prefix_bounds_hold(metric: str, kind: str, dims: int, backend: Backend) -> None:
    rows, queries = collection(200), questions(6)
    index = filled(rows, metric, kind, asx.Cascade([asx.Prefix(dims, renormalize=False)]))
    low, high = check_bounds(index, rows.astype(np.float32), queries, backend)
    if dims == 24:
        scale = {"ip": 3e2, "cosine": 1, "l2": 2e3}[metric]
        np.testing.assert_allclose(low, high, atol=1e-4 * scale)


@given(
    seed=st.integers(0, 2**32),
    dim=st.integers(1, 40),
    metric=st.sampled_from(METRICS),
    exponent=st.sampled_from([-22, -19, -10, -3, 0, 3, 10, 17]),
    spread=st.sampled_from([0, 4]),
    near=st.booleans(),
)
def test_bounds_of_huge_tiny_and_near_vectors(seed: int, dim: int, metric: str, exponent: int, spread: int, near: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((30, dim)) * 10.0 ** (exponent + rng.uniform(-spread, spread, (30, 1)))
    rows[::7, dim // 2 :] = 0
    rows[3::7, : dim // 2] = 0
    queries = rng.standard_normal((4, dim)) * 10.0 ** min(exponent, 10)
    if near and exponent <= 10:
        queries = rows[[1, 3, 4, 7]] * (1 + 1e-7 * rng.standard_normal((4, dim)))
    rows, queries = rows.astype(np.float32), queries.astype(np.float32)
    cascade = asx.Cascade([asx.Prefix(int(rng.integers(1, dim + 1)), renormalize=False)])
    check_bounds(filled(rows, metric, cascade=cascade), rows, queries, current())


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_bounds_are_as_tight_as_cauchy_and_schwarz_allow(metric: str) -> None:
    """Where the rest of a row is parallel to that of the query, one of the bounds is the score."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 12)).astype(np.float32)
    query = rng.standard_normal((1, 12)).astype(np.float32)
    rows[:, 5:] = rng.uniform(0.1, 3, (100, 1)) * query[:, 5:]
    index = filled(rows, metric, cascade=asx.Cascade([asx.Prefix(5)]))
    low, high = check_bounds(index, rows, query, current())
    _, _, positions = scored(index, query, current())
    true = oracles.score(metric, query, rows)[0][positions]
    np.testing.assert_allclose(high if metric == "ip" else low, true, rtol=1e-4, atol=1e-3)


def test_the_full_vectors_are_their_own_bounds(backend: Backend) -> None:
    rows, queries = collection(50), questions(3)
    index = filled(rows, "l2", cascade=asx.Cascade([asx.Full()]))
    low, high = check_bounds(index, rows.astype(np.float32), queries, backend)
    np.testing.assert_array_equal(low, high)


@pytest.mark.parametrize("stage", [asx.Binary(), asx.Int8(), asx.PQ(4), asx.Prefix(8)], ids=str)
def test_estimates_without_bounds_say_so(stage: Any) -> None:
    index = filled(collection(50), "cosine", cascade=asx.Cascade([stage]))
    representation, estimates, positions = scored(index, questions(3), current())
    assert representation.bounds(current(), index._store, questions(3), positions, estimates) is None


def test_no_candidate_has_no_bounds() -> None:
    index = filled(collection(50), "ip", cascade=asx.Cascade([asx.Prefix(3)]))
    representation = index._prepare(current(), exact=False)[0].representation
    positions = np.array([[4, -1]])
    low, high = representation.bounds(current(), index._store, questions(1), positions, np.float32([[1, np.nan]]))
    np.testing.assert_array_equal(np.isnan(low), [[False, True]])
    np.testing.assert_array_equal(np.isnan(high), [[False, True]])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("stage", "error"),
    [(asx.Int8(), 0.03), (asx.PQ(24), 0.15), (asx.PQ(24, bits=4), 0.4), (asx.Prefix(24), 1e-5), (asx.Binary(), 1.5)],
    ids=str,
)
def test_estimates_are_in_score_units(metric: str, stage: Any, error: float, backend: Backend) -> None:
    """On rows of unit length, which is what sign bits assume; errors are relative to the query's length."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 24))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    queries = rng.standard_normal((5, 24)).astype(np.float32) * np.float32([[0.5], [1], [2], [1], [1]])
    index = filled(rows, metric, cascade=asx.Cascade([stage]))
    _, estimates, positions = scored(index, queries, backend)
    true = np.take_along_axis(oracles.score(metric, queries, rows), positions, 1)
    scale = {"ip": 1, "cosine": 1, "l2": 2}[metric] * (oracles.norms(queries)[:, None] if metric != "cosine" else 1.0)
    worst = np.abs(estimates - true) / scale
    assert worst.max() < error
    order = estimates if metric == "l2" else -estimates
    assert (np.diff(order, axis=1) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_rescoring_gives_the_scores_of_a_scan(metric: str, kind: str, backend: Backend) -> None:
    rows, ids, queries = collection(300), shuffled_ids(300), questions(5)
    stages = [
        asx.Binary(keep=9),
        asx.PQ(5, keep=9),
        asx.PQ(7, bits=4, keep=9),
        asx.Int8(9, keep=9),
        asx.Prefix(8, keep=9, renormalize=False),
    ]
    index = filled(rows, metric, kind, asx.Cascade(stages), ids)
    everything = np.random.default_rng(0).permuted(np.tile(np.append(np.arange(300), [-1, 5, 5]), (5, 1)), axis=1)
    for stage in index._prepare(backend, exact=False):
        scan = stage.representation.scan(backend, stage.rows, queries, 40, None)
        scan.run(0, stage.rows.visits)
        raw, positions = scan.finish()
        again, places = stage.representation.rescore(backend, stage.rows, queries, everything, 40)
        np.testing.assert_array_equal(places, positions)
        assert oracles.same_bits(again, raw)


def test_bytes_read_by_a_scan() -> None:
    stages = [asx.Binary(50, keep=9), asx.PQ(7, bits=4, keep=9), asx.Int8(9, keep=9), asx.Prefix(32, keep=9), asx.Prefix(40, keep=9)]
    index = asx.Index(100, "l2", "float16", asx.Cascade(stages))
    # Rows narrower than a cache line are padded to a power of two; packed codes are not.
    parts = [part.bytes_per_row for part in index._parts]
    assert parts == [8, 4, 16 + 4, 64 + 4, 64 + 16 + 4, 64 + 16 + 128 + 4]
