"""NaN, infinity, overflow and bad arguments are explained."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from functional_cases import METRICS, assert_same

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends.protocol import Backend

# --- NaN, infinity, overflow --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_first_bad_row_is_named(backend: Backend, dtype: Any, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 40_000)
    rng = np.random.default_rng(14)
    rows = rng.standard_normal((9000, 9)).astype(dtype)
    rows[[8111, 5234, 5999], [8, 0, 3]] = bad
    batch = rows[:3].copy()
    # A single positive query makes the worst score there is of a row with -infinity.
    for queries, metric, threads in itertools.product((batch, np.abs(batch[:1]), rows[:40]), METRICS, (1, 2)):
        with pytest.raises(ValueError, match=r"^rows: row 5234 holds NaN or infinity$"):
            asx.top_k(queries, rows, 4, metric=metric, threads=threads)
    with pytest.raises(ValueError, match=r"^rows: row 5234 holds NaN or infinity$"):
        asx.dot(batch, rows)
    with pytest.raises(ValueError, match=r"^queries: row 1 holds NaN or infinity$"):
        asx.top_k(rows[[0, 5999, 5234]], rows[:5000], 4)
    asx.top_k(batch, rows[:5000], 4)


def test_bad_rows_that_nobody_may_find_do_no_harm(backend: Backend) -> None:
    rng = np.random.default_rng(15)
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        rows = rng.standard_normal((500, 9)).astype(dtype)
        batch = rows[:2].copy()
        clean = rows.copy()
        rows[[100, 300]] = np.nan
        mask = np.ones(500, bool)
        mask[[100, 300]] = False
        clean[[100, 300]] = 0
        assert_same(asx.top_k(batch, rows, 9, mask=mask), asx.top_k(batch, clean, 9, mask=mask))
        mask[300] = True
        with pytest.raises(ValueError, match="rows: row 300 holds NaN"):
            asx.top_k(batch, rows, 9, mask=mask)
        few = np.zeros((2, 500), bool)
        few[:, 7] = True
        assert asx.top_k(batch, rows, 9, mask=few).ids.tolist() == [[7], [7]]
        few[1, 300] = True
        with pytest.raises(ValueError, match="rows: row 300 holds NaN"):
            asx.top_k(batch, rows, 9, mask=few)
        assert asx.rescore(batch, rows, [[7, 8]] * 2, 9).ids.shape == (2, 2)
        with pytest.raises(ValueError, match="rows: row 100 holds NaN"):
            asx.rescore(batch, rows, [[7, 300], [100, 300]], 9)


def test_what_float32_cannot_hold_is_an_error(backend: Backend) -> None:
    rows = np.ones((50, 3))
    rows[[20, 30], 1] = 1e39
    with pytest.raises(ValueError, match=r"^rows: row 20 holds a number too large for float32$"):
        asx.top_k(np.ones(3), rows, 2)
    with pytest.raises(ValueError, match=r"^rows: row 30 holds a number too large for float32$"):
        asx.rescore(np.ones(3), rows, [3, 30], 2)
    with pytest.raises(ValueError, match=r"^rows: row 20 holds a number too large for float32$"):
        asx.dot(np.ones(3), rows)
    with pytest.raises(ValueError, match=r"^queries: row 20 holds a number too large for float32$"):
        asx.dot(rows, np.ones((2, 3)))


# --- errors -------------------------------------------------------------------------------------------------------------


ROWS = np.ones((4, 3), np.float32)


CODES = np.ones((4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((2, 2)), ROWS, 1), ValueError, r"^queries: expected 3 dims as the rows have, got 2"),
        ((np.ones((2, 2, 3)), ROWS, 1), ValueError, r"^queries: expected shape \(dims,\) or \(Q, dims\), got \(2, 2, 3\)"),
        ((np.float32(1), ROWS, 1), ValueError, r"^queries: expected shape"),
        ((ROWS, ROWS[0], 1), ValueError, r"^rows: expected shape \(n, dims\), got \(3,\)"),
        ((ROWS[:, :0], ROWS[:, :0], 1), ValueError, r"^rows: expected 1 to 32768 dims, got shape \(4, 0\)"),
        ((np.ones((1, 40_000), np.int8), np.ones((1, 40_000), np.int8), 1), ValueError, r"^rows: expected 1 to 32768 dims"),
        ((ROWS, [[1.0], [1.0, 2.0]], 1), ValueError, r"^rows: expected an array, got list"),
        ((ROWS, None, 1), TypeError, r"^rows: expected floats"),
        ((ROWS, ROWS, 0), ValueError, r"^k: expected at least 1, got 0"),
        ((ROWS, ROWS, 1.0), TypeError, r"^k: expected an integer, got 1.0"),
        ((ROWS, ROWS, True), TypeError, r"^k: expected an integer, got True"),
        ((ROWS, ROWS, None), TypeError, r"^k: expected an integer"),
    ],
)
def test_bad_arguments_are_explained(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asx.top_k(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "euclidean"}, ValueError, r"^metric: expected one of 'ip', 'cosine', 'l2', got 'euclidean'"),
        ({"metric": None}, ValueError, r"^metric: expected one of"),
        ({"dims": 0}, ValueError, r"^dims: expected 1 to 3, got 0"),
        ({"dims": 4}, ValueError, r"^dims: expected 1 to 3, got 4"),
        ({"dims": 2.0}, TypeError, r"^dims: expected an integer"),
        ({"mask": np.ones(3, bool)}, ValueError, r"^mask: expected shape \(4,\) or \(2, 4\), got \(3,\)"),
        ({"mask": np.ones((4, 2), bool)}, ValueError, r"^mask: expected shape"),
        ({"mask": np.ones(4, int)}, TypeError, r"^mask: expected bool, got int64"),
        ({"threads": 0}, ValueError, r"^threads: expected at least 1, got 0"),
    ],
)
def test_bad_options_are_explained(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asx.top_k(ROWS[:2], ROWS, 1, **options)


@pytest.mark.parametrize(
    ("queries", "codes", "options", "error", "message"),
    [
        (CODES[:, :2], CODES, {}, ValueError, r"^queries: expected 3 bytes as the codes have, got 2"),
        (CODES > 0, CODES, {}, TypeError, r"^queries: expected uint8, got bool \(pack bits with np.packbits"),
        (CODES, CODES.astype(np.int8), {}, TypeError, r"^codes: expected uint8, got int8"),
        (CODES, CODES[0], {}, ValueError, r"^codes: expected shape \(n, bytes\), got \(3,\)"),
        (CODES, CODES[:, :0], {}, ValueError, r"^codes: expected at least one byte"),
        (CODES, CODES, {"bits": 0}, ValueError, r"^bits: expected 1 to 24, got 0"),
        (CODES, CODES, {"bits": 25}, ValueError, r"^bits: expected 1 to 24, got 25"),
        (CODES[:, :2], CODES, {"bits": 17}, ValueError, r"^bits: expected 1 to 16, got 17"),
    ],
)
def test_bad_codes_are_explained(queries: Any, codes: Any, options: Any, error: type[Exception], message: str) -> None:
    for call in (lambda: asx.hamming(queries, codes, **options), lambda: asx.hamming_top_k(queries, codes, 1, **options)):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ([[0.5]], TypeError, r"^candidates: expected integers, got float64"),
        ([[True]], TypeError, r"^candidates: expected integers, got bool"),
        ([0, 1], ValueError, r"^candidates: expected shape \(1, C\), got \(2,\)"),
        ([[0], [1]], ValueError, r"^candidates: expected shape \(1, C\), got \(2, 1\)"),
    ],
)
def test_bad_candidates_are_explained(candidates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asx.rescore(ROWS[:1], ROWS, candidates, 1)
