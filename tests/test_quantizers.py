"""What all quantizers promise, on every backend: shapes, ties, masks, errors, state, the same answers on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
import oracles
import pytest

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends.protocol import Backend
from adaptive_search.quantizers import Quantizer

METRICS = ("ip", "cosine", "l2")
MADE: dict[str, Callable[..., Any]] = {
    "pq8": lambda metric="ip": asx.ProductQuantizer(3, metric=metric, iterations=3),
    "pq4": lambda metric="ip": asx.ProductQuantizer(5, bits=4, metric=metric, iterations=3),
    "opq": lambda metric="ip": asx.ProductQuantizer(5, bits=4, metric=metric, rotation="opq", iterations=3),
    "binary": lambda metric="ip": asx.BinaryQuantizer(metric=metric),
    "binary-5": lambda metric="ip": asx.BinaryQuantizer(5, metric=metric),
    "binary-itq": lambda metric="ip": asx.BinaryQuantizer(metric=metric, rotation="itq"),
    "binary-itq-5": lambda metric="ip": asx.BinaryQuantizer(5, metric, "itq"),
    "binary-random": lambda metric="ip": asx.BinaryQuantizer(9, metric, "random"),
    "int8": lambda metric="ip": asx.Int8Quantizer(metric),
    "int8-rows": lambda metric="ip": asx.RowInt8Quantizer(metric),
    "int8-affine": lambda metric="ip": asx.Int8Quantizer(metric, affine=True),
}
DIM = 11
TURNED = {
    "rotation": np.array([0]),
    "directions": np.eye(2, 3, dtype=np.float32),
    "mean": np.zeros(3, np.float32),
    "radius": np.array([1.0]),
}
"""What belongs to two bits of three dims."""


def rows_of(n: int, seed: int = 0, dim: int = DIM) -> Any:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.fixture(params=MADE)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return MADE[request.param]


def assert_same(found: asx.Neighbors, wanted: asx.Neighbors) -> None:
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert oracles.same_bits(np.ascontiguousarray(found.scores), np.ascontiguousarray(wanted.scores))


@pytest.mark.parametrize("metric", METRICS)
def test_the_verbs_go_together(backend: Backend, make: Any, metric: Any) -> None:
    rows, queries = rows_of(700), rows_of(9, 1)
    quantizer = make(metric)
    assert not quantizer.fitted
    assert quantizer.fit(rows) is quantizer
    assert quantizer.fitted
    codes = quantizer.encode(rows)
    assert codes.shape == (700, quantizer.code_bytes)
    decoded = quantizer.decode(codes)
    assert decoded.shape == rows.shape
    assert decoded.dtype == np.float32
    found = quantizer.top_k(queries, codes, 20)
    assert found.ids.shape == found.scores.shape == (9, 20)
    assert found.scores.dtype == np.float32
    assert (np.diff(found.scores if metric == "l2" else -found.scores, axis=1) >= 0).all()
    equal = found.scores[:, 1:] == found.scores[:, :-1]
    assert (np.diff(found.ids, axis=1)[equal] > 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_good_codes_find_most_neighbours(backend: Backend, make: Any, metric: Any) -> None:
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((20, DIM), dtype=np.float32)
    rows = (centres[rng.integers(20, size=800)] + 0.05 * rng.standard_normal((800, DIM))).astype(np.float32)
    quantizer = make(metric).fit(rows)
    found = quantizer.top_k(centres, quantizer.encode(rows), 10).ids
    nearest = oracles.score(metric, rows[found.ravel()], centres).reshape(20, 10, 20)
    nearest = nearest.argmin(axis=2) if metric == "l2" else nearest.argmax(axis=2)
    own = oracles.score(metric, centres, centres)
    own = own.argmin(axis=1) if metric == "l2" else own.argmax(axis=1)
    # Few signs mix up clusters; all other codes tell them apart.
    assert (nearest == own[:, None]).mean() > (0.9 if quantizer.code_bytes > 2 else 0.4)


def test_single_queries_and_odd_numbers_of_rows(backend: Backend, make: Any) -> None:
    rows = rows_of(130)
    quantizer = make().fit(rows)
    codes = quantizer.encode(rows)
    whole = quantizer.top_k(rows[:4], codes, 7)
    assert_same(quantizer.top_k(rows[3], codes, 7), asx.Neighbors(whole.ids[3], whole.scores[3]))
    for n in (0, 1, 63, 64, 65):
        found = quantizer.top_k(rows[:4], codes[:n], 70)
        assert found.ids.shape == found.scores.shape == (4, min(70, n))
        assert (np.sort(found.ids, axis=1) == np.arange(min(70, n))).all()
    assert quantizer.top_k(rows[:0], codes, 7).ids.shape == (0, 7)
    assert quantizer.encode(rows[:0]).shape == (0, quantizer.code_bytes)
    assert quantizer.decode(codes[:0]).shape == (0, DIM)


def test_a_single_row_is_enough_to_fit(backend: Backend, make: Any) -> None:
    rows = rows_of(1)
    quantizer = make().fit(rows)
    assert quantizer.top_k(rows, quantizer.encode(rows), 3).ids.tolist() == [[0]]


@pytest.mark.unemulated
def test_masks(backend: Backend, make: Any) -> None:
    rng = np.random.default_rng(3)
    rows = rows_of(3000)
    quantizer = make().fit(rows)
    codes = quantizer.encode(rows)
    whole = quantizer.top_k(rows[:5], codes, 3000)
    for share in (0.4, 0.003):
        for shape in (3000, (5, 3000)):
            mask = rng.random(shape) < share
            mask[..., 5] = True
            found = quantizer.top_k(rows[:5], codes, 20, mask=mask)
            every = np.broadcast_to(mask, (5, 3000))
            for query in range(5):
                kept = every[query, whole.ids[query]]
                wanted = whole.ids[query][kept][:20]
                assert found.ids[query, : len(wanted)].tolist() == wanted.tolist()
                assert (found.scores[query, : len(wanted)] == whole.scores[query][kept][:20]).all()
                assert (found.ids[query, len(wanted) :] == -1).all()
                assert np.isnan(found.scores[query, len(wanted) :]).all()


@pytest.mark.unemulated
@pytest.mark.parametrize(("make", "metric"), list(zip(MADE, cycle(METRICS), strict=False)), indirect=["make"])
def test_batches_and_threads_change_nothing(backend: Backend, make: Any, metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = rows_of(6000), rows_of(140, 4)
    quantizer = make(metric).fit(rows)
    codes = quantizer.encode(rows, threads=1)
    np.testing.assert_array_equal(quantizer.encode(rows, threads=2), codes)
    whole = quantizer.top_k(queries, codes, 30, threads=1)
    assert_same(quantizer.top_k(queries, codes, 30, threads=2), whole)
    assert_same(quantizer.top_k(queries[17:20], codes, 9), asx.Neighbors(whole.ids[17:20, :9], whole.scores[17:20, :9]))
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 10_000)
    np.testing.assert_array_equal(quantizer.encode(rows), codes)
    np.testing.assert_array_equal(quantizer.decode(codes), make(metric).fit(rows).decode(codes))
    assert_same(quantizer.top_k(queries, np.asfortranarray(codes), 30), whole)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int8])
def test_rows_of_any_element_type(backend: Backend, make: Any, dtype: Any) -> None:
    rows = np.rint(rows_of(300) * 20).astype(dtype)
    quantizer = make().fit(rows)
    codes = quantizer.encode(rows)
    np.testing.assert_array_equal(make().fit(rows.astype(np.float32)).encode(rows.astype(np.float32)), codes)
    assert_same(quantizer.top_k(rows[:3], codes, 9), quantizer.top_k(rows[:3].astype(np.float32), codes, 9))


def test_cosine_ignores_lengths(backend: Backend, make: Any) -> None:
    rows, queries = rows_of(400), rows_of(5, 5)
    lengths = np.exp2(np.random.default_rng(6).integers(-20, 20, (400, 1))).astype(np.float32)
    quantizer = make("cosine").fit(rows)
    scaled = make("cosine").fit(rows * lengths)
    codes = quantizer.encode(rows)
    np.testing.assert_array_equal(scaled.encode(rows * lengths), codes)
    assert_same(scaled.top_k(queries * 8, codes, 9), quantizer.top_k(queries, codes, 9))
    assert np.abs(quantizer.top_k(queries, codes, 400).scores).max() < 1.2


def test_zero_queries_have_score_zero(backend: Backend, make: Any) -> None:
    rows = rows_of(300)
    for metric in ("ip", "cosine"):
        quantizer = make(metric).fit(rows)
        assert (quantizer.top_k(np.zeros(DIM), quantizer.encode(rows), 300).scores == 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_state_restores_a_quantizer(backend: Backend, make: Any, metric: Any) -> None:
    rows = rows_of(300)
    quantizer = make(metric)
    assert quantizer.state() == {}
    codes = quantizer.fit(rows).encode(rows)
    restored = type(quantizer).from_state(quantizer.state(), metric)
    assert (restored.metric, restored.dim, restored.code_bytes) == (metric, DIM, quantizer.code_bytes)
    np.testing.assert_array_equal(restored.encode(rows), codes)
    assert_same(restored.top_k(rows[:5], codes, 9), quantizer.top_k(rows[:5], codes, 9))


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("pq8", {}),
        ("pq8", {"codebooks": np.zeros((3, 256, 4), np.float32)}),
        ("pq8", {"codebooks": np.zeros((3, 256, 4)), "dim": np.array([11])}),
        ("pq8", {"codebooks": np.zeros((3, 256, 4), np.float32), "dim": np.array([13])}),
        ("pq8", {"codebooks": np.zeros((3, 256, 4), np.float32), "dim": np.array([11, 11])}),
        ("pq8", {"codebooks": np.zeros((3, 100, 4), np.float32), "dim": np.array([11])}),
        ("pq8", {"codebooks": np.zeros((0, 256, 4), np.float32), "dim": np.array([11])}),
        ("pq8", {"codebooks": np.full((3, 256, 4), np.nan, np.float32), "dim": np.array([11])}),
        ("pq8", {"codebooks": np.zeros((3, 256, 4), np.float32), "dim": np.array([-11])}),
        ("pq8", {"codebooks": [[[0.0]]], "dim": np.array([11])}),
        ("binary", {}),
        ("binary", {"shape": np.array([3, 4])}),
        ("binary", {"shape": np.array([3, 0])}),
        ("binary", {"shape": np.array([3])}),
        ("binary", {"shape": np.array([3.0, 2.0])}),
        ("binary", {"shape": np.array([2**40, 2**39])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "rotation": np.array([3])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "rotation": np.array([-1])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "rotation": np.array([0, 0])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "rotation": np.array([0.0])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "directions": np.eye(3, dtype=np.float32)}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "directions": np.eye(2, 3)}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "directions": np.ones((2, 3), np.float32)}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "directions": np.full((2, 3), np.nan, np.float32)}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "mean": np.zeros(2, np.float32)}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "mean": np.full(3, np.inf, np.float32)}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "radius": np.array([np.nan])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "radius": np.array([-1.0])}),
        ("binary-itq", {"shape": np.array([3, 2]), **TURNED, "radius": np.zeros(0)}),
        ("binary-itq", {"shape": np.array([3, 2]), "directions": np.eye(2, 3, dtype=np.float32)}),
        ("int8", {}),
        ("int8", {"limits": np.array([np.inf], np.float32)}),
        ("int8", {"limits": np.array([-1], np.float32)}),
        ("int8", {"limits": np.array([1.0])}),
        ("int8", {"limits": np.zeros(0, np.float32)}),
        ("int8-rows", {}),
        ("int8-rows", {"dim": np.array([0])}),
        ("int8-rows", {"dim": np.array([3, 4])}),
        ("int8-affine", {"offsets": np.zeros(2, np.float32)}),
        ("int8-affine", {"limits": np.ones(2, np.float32), "offsets": np.zeros(3, np.float32)}),
        ("int8-affine", {"limits": np.ones(2, np.float32), "offsets": np.full(2, np.nan, np.float32)}),
    ],
)
def test_a_state_that_cannot_be_is_refused(kind: str, state: Any) -> None:
    with pytest.raises(ValueError, match=r"^state: "):
        type(MADE[kind]()).from_state(state, "ip")


def test_nothing_works_before_fit(make: Any) -> None:
    quantizer: Quantizer = make()
    for call in (
        lambda: quantizer.encode(rows_of(3)),
        lambda: quantizer.decode(np.zeros((3, 3), np.uint8)),
        lambda: quantizer.top_k(rows_of(3), np.zeros((3, 3), np.uint8), 1),
    ):
        with pytest.raises(ValueError, match=r"Quantizer is not fitted: call fit\(X\) first"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q, x, c: q.fit(x[:0]), ValueError, r"^X: expected at least one row"),
        (lambda q, x, c: q.fit(x[0]), ValueError, r"^X: expected shape"),
        (lambda q, x, c: q.fit(x > 0), TypeError, r"^X: expected floats"),
        (lambda q, x, c: q.fit(np.where(np.arange(400)[:, None] == 317, np.nan, x)), ValueError, r"^X: row 317 holds NaN or infinity"),
        (lambda q, x, c: q.encode(x[:, :7]), ValueError, r"^X: expected 11 dims, got shape \(400, 7\)"),
        (lambda q, x, c: q.encode(np.where(np.arange(400)[:, None] == 299, np.inf, x)), ValueError, r"^X: row 299 holds NaN or infinity"),
        (
            lambda q, x, c: q.encode(np.where(np.arange(400)[:, None] == 299, 1e39, x.astype(float))),
            ValueError,
            r"^X: row 299 holds a number too large",
        ),
        (lambda q, x, c: q.encode(x, threads=0), ValueError, r"^threads: "),
        (lambda q, x, c: q.decode(c[:, :-1]), ValueError, r"^codes: expected shape \(n, \d+\), got"),
        (lambda q, x, c: q.decode(c.astype(np.int32)), TypeError, r"^codes: expected u?int8, got int32"),
        (lambda q, x, c: q.top_k(x, c[0], 1), ValueError, r"^codes: expected shape"),
        (lambda q, x, c: q.top_k(x[:, 1:], c, 1), ValueError, r"^queries: expected 11 dims, got shape \(400, 10\)"),
        (lambda q, x, c: q.top_k(x[0, 1:], c, 1), ValueError, r"^queries: expected 11 dims, got shape \(10,\)"),
        (lambda q, x, c: q.top_k(np.full(11, np.nan), c, 1), ValueError, r"^queries: row 0 holds NaN or infinity"),
        (lambda q, x, c: q.top_k(x, c, 0), ValueError, r"^k: expected at least 1, got 0"),
        (
            lambda q, x, c: q.top_k(x, c, 1, mask=np.ones(3, bool)),
            ValueError,
            r"^mask: expected shape \(400,\) or \(400, 400\), got \(3,\)",
        ),
        (lambda q, x, c: q.top_k(x, c, 1, threads=-2), ValueError, r"^threads: expected at least 1, got -2"),
    ],
)
def test_bad_arguments_are_explained_and_change_nothing(make: Any, call: Any, error: type[Exception], message: str) -> None:
    rows = rows_of(400)
    quantizer = make().fit(rows)
    codes = quantizer.encode(rows)
    before = {name: array.copy() for name, array in quantizer.state().items()}
    with pytest.raises(error, match=message):
        call(quantizer, rows, codes)
    for name, array in quantizer.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_bad_metrics_are_explained(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^metric: expected one of"):
        make("euclidean")


def test_progress_is_shown_on_request(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(300)
    quantizer = make().fit(rows)
    quantizer.encode(rows)
    assert capsys.readouterr().err == ""
    quantizer.encode(rows, progress=True)
    assert "Encoding" in capsys.readouterr().err
