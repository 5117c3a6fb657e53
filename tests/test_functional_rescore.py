"""`rescore` on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from functional_cases import DTYPES, METRICS, assert_same, drawn, expected, on_every_backend
from hypothesis import given, strategies as st

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends.protocol import Backend


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [*DTYPES, "float64"])
@on_every_backend
@given(n=st.integers(1, 100), queries=st.integers(0, 12), count=st.integers(0, 60), k=st.integers(1, 70), seed=st.integers(0, 99))
def test_rescore_is_a_top_k_of_the_candidates(
    backend: Backend, kind: str, metric: Any, n: int, queries: int, count: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 6)) if kind == "float64" else drawn(rng, n, 6, kind)
    batch = drawn(rng, queries, 6)
    candidates = rng.integers(-1, n, (queries, count))
    candidates[: queries // 2, count // 2 :] = -1
    mask = np.zeros((queries, n), bool)
    for query, named in enumerate(candidates):
        mask[query, named[named >= 0]] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK_BYTES", 24 * 7)
        assert_same(asx.rescore(batch, rows, candidates, k, metric=metric), expected(metric, batch, rows, k, mask))


def test_candidates_of_any_integer_type(backend: Backend) -> None:
    rows = np.eye(5, dtype=np.float32)
    for dtype in (np.int32, np.uint64, np.int8, ">i8"):
        assert asx.rescore(rows[:2], rows, np.array([[1, 0, 0], [1, 0, 2]], dtype), 2).ids.tolist() == [[0, 1], [1, 0]]
    assert asx.rescore(rows[0], rows, [], 2).ids.shape == (0,)
    assert asx.rescore(rows[0], rows[:0], [-1, -1], 2).ids.shape == (0,)
    assert asx.rescore(rows[:2], rows, np.full((2, 3), -1), 2).ids.shape == (2, 0)


def test_candidates_out_of_range_are_named() -> None:
    rows = np.eye(5, dtype=np.float32)
    with pytest.raises(ValueError, match=r"^candidates: expected -1 or row numbers below 5, got 5 at \[0, 1\], -2 at \[1, 0\]$"):
        asx.rescore(rows[:2], rows, [[0, 5], [-2, 1]], 1)
    with pytest.raises(ValueError, match=r"got 9 at \[0, 0\], 9 at \[0, 1\], 9 at \[0, 2\] and 3 more$"):
        asx.rescore(rows[0], rows, [9] * 6, 1)
    with pytest.raises(ValueError, match="64-bit"):
        asx.rescore(rows[0], rows, np.array([2**63], np.uint64), 1)
