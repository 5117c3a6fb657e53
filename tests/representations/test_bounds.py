"""Estimates in score units, and exact search by bounds that cannot fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from index_cases import KINDS, METRICS, collection, filled, prepared, questions, shuffled_ids, ways
from pairwise import pairwise

import adaptive_search as asx
from adaptive_search.backends import current
from adaptive_search.backends.protocol import Backend
from adaptive_search.representations import Bounded
from adaptive_search.running import Found, run_exact
from adaptive_search.types import F32, I64, Bool


def scored(index: asx.Index, queries: F32, backend: Backend) -> tuple[Any, F32, I64]:
    """The first stage's representation, its estimates for all rows, and their positions."""
    stage = prepared(index, backend)[0]
    scan = backend.level_scan(stage.level(backend, queries, True)[0], len(index))
    scan.run(0, stage.rows.visits)
    raw, positions = scan.finish()
    return stage.representation, stage.representation.estimates(backend, queries, raw), positions


def bounds_of(index: asx.Index, backend: Backend) -> list[Bounded]:
    return ways(index).bounds(backend, index._installed)


def through_bounds(index: asx.Index, queries: F32, k: int, backend: Backend, allowed: Bool | None = None) -> Found:
    """Exact search by the bounds of the index's stages."""
    stage, *_, full = prepared(index, backend)
    bounds = bounds_of(index, backend)
    assert bounds
    counts = np.full(len(queries), len(index)) if allowed is None else np.broadcast_to(allowed.sum(axis=-1), len(queries))
    return run_exact(backend, stage, bounds, full, queries, k, allowed, counts)


def check_exact(index: asx.Index, rows: F32, queries: F32, k: int, backend: Backend, allowed: Bool | None = None) -> Found:
    found = through_bounds(index, queries, k, backend, allowed)
    scores = oracles.canonical_score(index.metric, queries, rows)
    top, places = oracles.best(scores, k, largest=index.metric != "l2", allowed=allowed)
    np.testing.assert_array_equal(found.positions, places)
    assert oracles.same_bits(found.scores, top)
    return found


BOUNDED = [
    [asx.Prefix(7)],
    [asx.Prefix(1), asx.Prefix(16), asx.Full()],
    [asx.Int8(bounded=True), asx.Full()],
    [asx.Int8(bounded=True, bound_dims=5), asx.Full()],
    [asx.Int8(21, bounded=True, bound_dims=17), asx.Full()],
    [asx.Int8(7, bounded=True), asx.Int8(16, bounded=True), asx.Full()],
    [asx.Int8(11, bounded=True, rotation="pca"), asx.Full()],
    [asx.Int8(bounded=True, rotation="random"), asx.Full()],
    [asx.Int8(5, bounded=True, rotation="pca", keep=9), asx.Int8(20, bounded=True, rotation="random"), asx.Full()],
    [asx.Int8(16, keep=9), asx.Prefix(20, keep=9), asx.Full()],
]


@pytest.mark.parametrize(("metric", "kind", "stages"), pairwise(METRICS, KINDS, BOUNDED), ids=str)
def test_exact_search_by_bounds(metric: str, kind: str, stages: list[Any], backend: Backend) -> None:
    """Equal to exact search to the bit, on rows with many ties: one query and a batch, everything allowed and half."""
    rows, queries = collection(700), questions(40)
    index = filled(rows, metric, kind, asx.Cascade(stages))
    half = np.random.default_rng(0).random(700) < 0.5
    for batch in (queries, queries[:1]):
        for allowed in (None, half, np.random.default_rng(1).random((len(batch), 700)) < 0.5):
            check_exact(index, rows.astype(np.float32), batch, 9, backend, allowed)


@given(
    seed=st.integers(0, 2**32),
    dim=st.integers(2, 40),
    metric=st.sampled_from(METRICS),
    exponent=st.sampled_from([-13, -10, -3, 0, 3, 10, 13]),
    spread=st.sampled_from([0, 1]),
    kind=st.sampled_from(["near", "sorted", "random", "equal"]),
    made=st.sampled_from(["prefix", "bytes", "pca", "random", "askew"]),
)
def test_bounds_of_huge_tiny_near_and_sorted_vectors(
    seed: int, dim: int, metric: str, exponent: int, spread: int, kind: str, made: str
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((300, dim))
    rows[::7, dim // 2 :] = 0
    rows[3::7, : dim // 2] = 0
    # Of the length that is meant: shorter rows than all of these have no bounds for cosine.
    rows *= 10.0 ** (exponent + rng.uniform(-spread, spread, (300, 1))) / oracles.norms(rows)[:, None]
    queries = rng.standard_normal((4, dim)) * 10.0 ** min(exponent, 10)
    if kind == "near":
        queries = rows[[1, 3, 4, 7]] * (1 + 1e-7 * rng.standard_normal((4, dim)))
    elif kind == "sorted":
        rows = rows[np.argsort(rows @ queries[0])]
    elif kind == "equal":
        rows[:] = rows[0]
    rows, queries = rows.astype(np.float32), queries.astype(np.float32)
    dims = int(rng.integers(1, dim))
    stages: dict[str, asx.Int8 | asx.Prefix] = {
        "prefix": asx.Prefix(dims),
        "bytes": asx.Int8(dims, bounded=True),
        "random": asx.Int8(dims, bounded=True, rotation="random"),
    }
    stage = stages.get(made, asx.Int8(dims, bounded=True, rotation="pca"))
    index = filled(rows, metric, cascade=asx.Cascade([stage, asx.Full()]))
    if made == "askew":
        # What files may hold: directions that are hardly orthonormal.
        part = index._parts[0]
        state = part.state()
        state["directions"] += (1e-4 / dims * rng.standard_normal(state["directions"].shape)).astype(np.float32)
        part = part.restore(state)
        (chunk,) = index._store.chunks
        encoded = part.encode(rows)
        for column in part.columns:
            column.write(chunk.arrays[column.name], 0, encoded[column.name])
        index._parts = (part, *index._parts[1:])
    check_exact(index, rows, queries, 5, current())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("stage", [asx.Prefix(64), asx.Int8(64, bounded=True), asx.Int8(64, bounded=True, rotation="pca")], ids=str)
def test_bounds_leave_out_most_rows(metric: str, stage: Any) -> None:
    """Where the first dims hold nearly everything, few whole vectors are looked at; where they hold nothing, the answer is right still.
    Principal directions hold nearly everything wherever it is."""
    rng = np.random.default_rng(0)
    decay = np.where(np.arange(320) < 64, 1.0, 0.01)
    rows, queries = (rng.standard_normal((count, 320)).astype(np.float32) for count in (5_000, 9))
    rotated = getattr(stage, "rotation", None) is not None
    for scale, most in ((decay, 250), (decay[::-1], 250 if rotated else 10**9)):
        scaled = np.ascontiguousarray(rows * scale.astype(np.float32))
        asked = np.ascontiguousarray(queries * scale.astype(np.float32))
        index = filled(scaled, metric, cascade=asx.Cascade([stage, asx.Full()]))
        found = check_exact(index, scaled, asked, 10, current())
        if asx.backend() not in ("numba",):
            assert found.scored[-1].mean() < most


@pytest.mark.parametrize("stage", [asx.Binary(), asx.Binary(rotation="itq"), asx.RaBit(), asx.Int8(), asx.PQ(4), asx.Prefix(24)], ids=str)
def test_estimates_without_bounds_say_so(stage: Any) -> None:
    index = filled(collection(50), "cosine", cascade=asx.Cascade([stage]))
    assert bounds_of(index, current()) == []


def test_norms_beyond_what_bounds_are_good_for() -> None:
    """Then there are none, and the search goes over whole vectors."""
    rows = collection(300).astype(np.float32)
    rows[5] *= np.float32(1e17)
    for stage in (asx.Prefix(5), asx.Int8(5, bounded=True)):
        assert bounds_of(filled(rows, "ip", cascade=asx.Cascade([stage, asx.Full()])), current()) == []


@pytest.mark.parametrize("metric", METRICS)
def test_queries_too_long_for_codes_are_compared_with_all_vectors(metric: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others in a batch, which go by bounds."""
    monkeypatch.setattr("adaptive_search.ways.LEAST_ROWS", 1)
    cascade = asx.Cascade([asx.PQ(6, 4), asx.Int8(bounded=True), asx.Full()])
    rows = np.random.default_rng(0).standard_normal((3_000, 24), dtype=np.float32)
    queries = np.random.default_rng(1).standard_normal((40, 24), dtype=np.float32)
    queries[[3, 17, 39]] *= np.float32(1e18)
    rows[1_200:1_203] *= np.float32(1e14)  # about as long as rows may be
    index, flat = asx.Index(24, metric, cascade=cascade, fit_rows=3_000), asx.Index(24, metric)
    index.add(rows)
    index.tune(queries[:3], recall=1.0)
    flat.add(rows)
    some = np.arange(3_000) % 3 > 0
    for batch in (queries, queries[3], queries[4]):
        for allowed in (None, some, [17, 18, 1_200]):
            found, stats = index.search(batch, recall=1.0, filter=allowed, stats=True)
            expected = flat.search(batch, filter=allowed)
            np.testing.assert_array_equal(found.ids, expected.ids)
            assert oracles.same_bits(found.scores, expected.scores)
            assert len(stats.stages) == 2
    _, stats = index.search(queries[[3, 4]], recall=1.0, stats=True)
    assert stats.stages[0].scored.tolist()[0] == 0
    assert stats.stages[1].scored.tolist()[0] == 3_000


@pytest.mark.parametrize("stage", [asx.Int8(bounded=True, keep=9), asx.Prefix(7, keep=9)], ids=str)
def test_cosines_of_rows_whose_norms_are_hardly_known(stage: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subnormal norm has few bits, so that the canonical cosine may be off by percents: bounds know nothing of it."""
    monkeypatch.setattr("adaptive_search.ways.LEAST_ROWS", 1)
    random = np.random.default_rng(0)
    rows = (random.standard_normal((6_000, 17)) * 10 ** random.uniform(-44, -30, (6_000, 1))).astype(np.float32)
    queries = random.standard_normal((20, 17), dtype=np.float32)
    index = filled(rows, "cosine", cascade=asx.Cascade([stage, asx.Full()]))
    top, places = oracles.best(oracles.canonical_score("cosine", queries, rows), 10)
    for query, scores, ids in zip(queries, top, places, strict=True):
        found = index.search(query, recall=1.0)
        np.testing.assert_array_equal(found.ids, ids)
        assert oracles.same_bits(found.scores, scores)


def test_bounded_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="bounded"):
        asx.Int8(bounded=2)  # type: ignore[arg-type]


def test_bounds_of_fewer_dims_than_are_coded() -> None:
    for wrong in ({"bound_dims": 0}, {"bound_dims": 5, "bounded": False}, {"bound_dims": 5, "rotation": "pca"}):
        with pytest.raises(ValueError, match="bound_dims"):
            asx.Int8(**{"bounded": True} | wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bound_dims: 9 is more than the 8 dims that are coded"):
        asx.Index(24, cascade=asx.Cascade([asx.Int8(8, bounded=True, bound_dims=9), asx.Full()]))
    # What is read is what counts; codes are compared in full by plans.
    index = filled(collection(300).astype(np.float32), "ip", cascade=asx.Cascade([asx.Int8(bounded=True, bound_dims=5), asx.Full()]))
    (bound,) = bounds_of(index, current())
    assert bound.bytes_per_row == 8 + 4
    assert prepared(index, current())[0].representation.bytes_per_row == 8 + 32 + 4


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("stage", "error"),
    [
        (asx.Int8(), 0.03),
        (asx.PQ(24), 0.15),
        (asx.PQ(24, bits=4), 0.4),
        (asx.Prefix(24), 1e-5),
        (asx.Binary(), 1.5),
        (asx.Binary(rotation="random"), 1.5),
        (asx.RaBit(), 0.8),
        (asx.RaBit(2), 0.4),
        (asx.RaBit(4), 0.1),
    ],
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
        asx.Binary(keep=9, rotation="itq"),
        asx.PQ(5, keep=9),
        asx.PQ(7, bits=4, keep=9),
        asx.RaBit(keep=9),
        asx.RaBit(4, keep=9, dims=7),
        asx.Int8(9, keep=9),
        asx.Prefix(8, keep=9, renormalize=False),
    ]
    index = filled(rows, metric, kind, asx.Cascade(stages), ids)
    everything = np.random.default_rng(0).permuted(np.tile(np.append(np.arange(300), [-1, 5, 5]), (5, 1)), axis=1)
    for stage in prepared(index, backend)[: len(stages)]:
        scan = backend.level_scan(stage.level(backend, queries, True)[0], 40)
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
