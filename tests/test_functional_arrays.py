"""Element types and layouts of arrays, which are used in place where they can be."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import oracles
import pytest
from functional_cases import DTYPES, LAYOUTS, METRICS, assert_same, drawn, expected

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends.protocol import Backend
from adaptive_search.types import MAX_DIM

# --- element types and layouts ------------------------------------------------------------------------------------------


def test_float64_is_rounded_to_float32(backend: Backend) -> None:
    rng = np.random.default_rng(6)
    rows, batch = rng.standard_normal((500, 17)), rng.standard_normal((4, 17))
    wanted = expected("cosine", batch, rows, 9)
    for wide in (np.float64, np.longdouble):
        assert_same(asx.top_k(batch.astype(wide), rows.astype(wide), 9, metric="cosine"), wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", DTYPES)
def test_rows_in_any_layout(backend: Backend, kind: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 8000)
    rng = np.random.default_rng(7)
    rows, batch = drawn(rng, 300, 13, kind), drawn(rng, 3, 13)
    placed = LAYOUTS[layout](rows)
    plain = np.ascontiguousarray(placed).astype(rows.dtype)
    for metric in METRICS:
        assert_same(asx.top_k(batch, placed, 7, metric=metric), asx.top_k(batch, plain, 7, metric=metric))
    candidates = rng.integers(-1, 300, (3, 40))
    assert_same(asx.rescore(batch, placed, candidates, 7), asx.rescore(batch, plain, candidates, 7))
    np.testing.assert_allclose(
        asx.dot(batch, placed), oracles.dot(batch, plain.astype(np.float32)), rtol=1e-4, atol=1e-4 * np.abs(plain.astype(float)).max()
    )
    np.testing.assert_array_equal(np.asarray(placed, rows.dtype), plain)


@pytest.mark.parametrize("kind", DTYPES)
def test_queries_in_any_type_and_layout(backend: Backend, kind: str) -> None:
    rng = np.random.default_rng(8)
    rows, batch = drawn(rng, 100, 13), drawn(rng, 5, 13, kind)
    wanted = asx.top_k(batch.astype(np.float32), rows, 7)
    for layout in LAYOUTS.values():
        if layout is not LAYOUTS["one row broadcast"]:
            assert_same(asx.top_k(layout(batch), rows, 7), wanted)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("view", ["whole", "prefix"])
def test_rows_are_used_in_place(backend: Backend, kind: str, view: str) -> None:
    rng = np.random.default_rng(9)
    rows = drawn(rng, 20_000, 64, kind)
    rows.flags.writeable = False
    rows = rows[:, :48] if view == "prefix" else rows
    batch = drawn(rng, 2, rows.shape[1])
    candidates = rng.integers(0, len(rows), (2, 30))
    calls = (lambda: asx.top_k(batch, rows, 5, threads=1), lambda: asx.rescore(batch, rows, candidates, 5, threads=1))
    for call in calls:
        call()  # compiles, on Numba
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < rows.nbytes / 3


@pytest.mark.unemulated
def test_converted_rows_are_never_held_at_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 1 << 20)
    rows = np.random.default_rng(10).standard_normal((40_000, 64))
    batch = rows[:2].astype(np.float32)
    wanted = asx.top_k(batch, rows.astype(np.float32), 5)
    tracemalloc.start()
    found = asx.top_k(batch, rows, 5, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_same(found, wanted)
    assert peak < rows.nbytes / 5


def test_plain_lists_are_taken(backend: Backend) -> None:
    found = asx.top_k([0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], 1)
    assert (found.ids.tolist(), found.scores.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("bad", [np.int64, np.uint8, np.bool_, np.complex64, np.object_, "U4", "datetime64[s]", "S2"])
def test_other_element_types_are_refused(bad: Any) -> None:
    good = np.ones((3, 2), np.float32)
    wrong = np.ones((3, 2)).astype("i8").astype(bad)
    for name, queries, rows in (("queries", wrong, good), ("rows", good, wrong)):
        for call in (lambda q, x: asx.top_k(q, x, 1), asx.dot, lambda q, x: asx.rescore(q, x, [[0]] * 3, 1)):
            with pytest.raises(TypeError, match=rf"^{name}: expected floats .* or int8, got"):
                call(queries, rows)
    with pytest.raises(TypeError, match="masked array"):
        asx.dot(good, np.ma.masked_array(good))


# --- int8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dim", [1, 15, 64, 1000, 5000])
def test_int8_queries_score_as_exact_integers(backend: Backend, metric: Any, dim: int) -> None:
    rng = np.random.default_rng(11)
    rows = rng.integers(-128, 128, (200, dim)).astype(np.int8)
    batch = rng.integers(-128, 128, (5, dim)).astype(np.int8)
    rows[:2], batch[0], batch[1] = -128, -128, 127
    exact = oracles.score(metric, batch.astype(np.int64), rows.astype(np.int64)).astype(np.float32)
    scores, ids = oracles.best(exact, 30, largest=metric == "ip")
    assert_same(asx.top_k(batch, rows, 30, metric=metric), asx.Neighbors(ids, scores))
    candidates = np.broadcast_to(np.arange(200), (5, 200))
    assert_same(asx.rescore(batch, rows, candidates, 30, metric=metric), asx.Neighbors(ids, scores))


def test_int8_cosine_and_mixed_types_take_the_float_path(backend: Backend) -> None:
    rng = np.random.default_rng(12)
    rows, batch = drawn(rng, 100, 31, "int8"), drawn(rng, 4, 31, "int8")
    assert_same(asx.top_k(batch, rows, 9, metric="cosine"), expected("cosine", batch, rows, 9))
    assert_same(asx.top_k(batch, rows.astype(np.float16), 9), expected("ip", batch, rows, 9))
    assert_same(asx.top_k(batch.astype(np.float64), rows, 9), expected("ip", batch, rows, 9))


def test_the_largest_dim_does_not_overflow(backend: Backend) -> None:
    extreme = np.full((2, MAX_DIM), -128, np.int8)
    assert asx.top_k(extreme, extreme, 1).scores.tolist() == [[2.0**29]] * 2
    assert asx.top_k(extreme, np.full((1, MAX_DIM), 127, np.int8), 1, metric="l2").scores[0, 0] == np.float32(255**2 * MAX_DIM)
