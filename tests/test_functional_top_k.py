"""`top_k` on every backend: what scores mean and their bits, ties, shapes, masks, prefixes."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from functional_cases import DTYPES, METRICS, assert_same, drawn, expected, few_examples
from hypothesis import given, strategies as st
from ops import awkward

import adaptive_search as asx
from adaptive_search import flat
from adaptive_search.backends.protocol import Backend

# --- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@few_examples
@given(n=st.integers(0, 200), queries=st.integers(0, 40), dim=st.sampled_from(awkward.DIMS), k=st.integers(1, 250), seed=st.integers(0, 99))
def test_top_k_is_the_canonical_answer(backend: Backend, kind: str, metric: Any, n: int, queries: int, dim: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, batch = drawn(rng, n, dim, kind), drawn(rng, queries, dim)
    assert_same(asx.top_k(batch, rows, k, metric=metric), expected(metric, batch, rows, k))


@pytest.mark.parametrize("metric", METRICS)
def test_scores_mean_what_they_say(backend: Backend, metric: Any) -> None:
    rng = np.random.default_rng(1)
    rows, batch = drawn(rng, 300, 65), drawn(rng, 5, 65)
    found = asx.top_k(batch, rows, 300, metric=metric)
    scores = np.take_along_axis(oracles.score(metric, batch, rows), found.ids, axis=1)
    bounds = np.take_along_axis(oracles.error_bound(metric, batch, rows), found.ids, axis=1)
    assert (np.abs(found.scores - scores) <= bounds).all()
    worse = np.diff(scores if metric == "l2" else -scores, axis=1)
    assert (worse >= -2 * bounds[:, 1:]).all()


def test_blocks_beyond_the_first_are_searched(backend: Backend) -> None:
    rng = np.random.default_rng(2)
    rows, batch = rng.standard_normal((3 * 4096 + 5, 7), dtype=np.float32), rng.standard_normal((3, 7), dtype=np.float32)
    for rows_sorted in (rows, rows[np.argsort(rows @ batch[0])], rows[np.argsort(-rows @ batch[0])]):
        assert_same(asx.top_k(batch, rows_sorted, 12), expected("ip", batch, rows_sorted, 12))


def test_ties_go_to_the_smaller_row_number_at_the_cut(backend: Backend) -> None:
    rows = np.ones((5000, 16), np.float32)
    for metric in METRICS:
        found = asx.top_k(np.ones((2, 16), np.float32), rows, 700, metric=metric)
        assert (found.ids == np.arange(700)).all()
    rows[4999] = 2
    assert asx.top_k(np.ones(16, np.float32), rows, 3).ids.tolist() == [4999, 0, 1]


@pytest.mark.unemulated
@pytest.mark.parametrize("metric", METRICS)
def test_answers_depend_neither_on_batch_nor_on_threads_nor_on_k(backend: Backend, metric: Any) -> None:
    rng = np.random.default_rng(3)
    rows, batch = drawn(rng, 9000, 33), drawn(rng, 131, 33)
    whole = asx.top_k(batch, rows, 50, metric=metric, threads=1)
    assert_same(asx.top_k(batch, rows, 50, metric=metric, threads=3), whole)
    assert_same(asx.top_k(batch, rows, 10, metric=metric, threads=2), asx.Neighbors(whole.ids[:, :10], whole.scores[:, :10]))
    for first, last in ((0, 1), (5, 9), (100, 131)):
        part = asx.top_k(batch[first:last], rows, 50, metric=metric)
        assert_same(part, asx.Neighbors(whole.ids[first:last], whole.scores[first:last]))
    assert_same(asx.top_k(batch[7], rows, 50, metric=metric), asx.Neighbors(whole.ids[7], whole.scores[7]))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_work_that_is_shared_out_gives_the_answers_of_small_work(
    backend: Backend, kind: str, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    rows, queries = drawn(rng, 4300, 33, kind), rng.standard_normal((6, 33)).astype(np.float32)
    at_once = asx.top_k(queries, rows, 9, metric=metric)
    monkeypatch.setattr(flat, "SMALL_WORK", 0)
    assert_same(asx.top_k(queries, rows, 9, metric=metric, threads=2), at_once)
    if kind != "int8":
        rows[4299, 5] = np.nan
        for most in (0, 1 << 40):
            monkeypatch.setattr(flat, "SMALL_WORK", most)
            with pytest.raises(ValueError, match="row 4299 holds NaN"):
                asx.top_k(queries, rows, 9, metric=metric)


def test_zero_vectors_have_cosine_zero(backend: Backend) -> None:
    rows = np.array([[0, 0, 1], [0, 0, 0], [-1, 0, 0], [-0.0, 0, 0]], np.float32)
    found = asx.top_k([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], rows, 4, metric="cosine")
    assert found.ids.tolist() == [[0, 1, 3, 2], [0, 1, 2, 3]]
    assert found.scores.tolist() == [[0, 0, 0, -1], [0, 0, 0, 0]]
    prefix = asx.top_k([1.0, 0.0, 0.0], rows, 4, metric="cosine", dims=1)
    assert prefix.scores.tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize("metric", METRICS)
def test_huge_and_tiny_values_keep_their_order(backend: Backend, metric: Any) -> None:
    rows = np.array([[1e-30, 0], [1e-38, 1e-38], [1e18, 1e18], [-1e18, 1e18], [1e-45, 0], [0, 0]], np.float32)
    batch = np.array([[1e18, 1e18], [1e-30, 1e-30], [1e-45, 0]], np.float32)
    assert_same(asx.top_k(batch, rows, 6, metric=metric), expected(metric, batch, rows, 6))


# --- shapes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "n", "k", "width"), [(0, 5, 3, 3), (2, 0, 3, 0), (0, 0, 1, 0), (1, 1, 9, 1), (3, 5, 5, 5), (2, 5, 10**30, 5)]
)
def test_shapes(backend: Backend, queries: int, n: int, k: int, width: int) -> None:
    for found in (
        asx.top_k(np.zeros((queries, 4), np.float32), np.zeros((n, 4), np.float32), k),
        asx.top_k(np.zeros((queries, 4), np.int8), np.zeros((n, 4), np.int8), k),
        asx.hamming_top_k(np.zeros((queries, 4), np.uint8), np.zeros((n, 4), np.uint8), k),
    ):
        assert isinstance(found, asx.Neighbors)
        assert found.ids.shape == found.scores.shape == (queries, width)
        assert (found.ids == np.arange(width)).all()
    assert asx.dot(np.zeros((queries, 4)), np.zeros((n, 4))).shape == (queries, n)
    assert asx.hamming(np.zeros((queries, 4), np.uint8), np.zeros((n, 4), np.uint8)).shape == (queries, n)


def test_a_single_query_gives_flat_arrays(backend: Backend) -> None:
    rows = np.eye(4, dtype=np.float32)
    codes = np.packbits(rows > 0, axis=1)
    for found in (
        asx.top_k(rows[2], rows, 2),
        asx.hamming_top_k(codes[2], codes, 2),
        asx.rescore(rows[2], rows, [3, 2], 2),
        asx.top_k(rows[2], rows, 2, mask=[True, False, True, False]),
    ):
        assert found.ids.shape == found.scores.shape == (2,)
        assert found.ids[0] == 2
    assert asx.dot(rows[2], rows).tolist() == [0, 0, 1, 0]
    assert asx.hamming(codes[2], codes).tolist() == [2, 2, 0, 2]
    assert asx.top_k(rows[2], rows[:0], 2).ids.shape == (0,)


# --- masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 1.0])
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_only_allowed_rows_are_found(backend: Backend, metric: Any, per_query: bool, share: float) -> None:
    rng = np.random.default_rng(4)
    rows, batch = drawn(rng, 5000, 9), drawn(rng, 6, 9)
    mask = rng.random((6, 5000) if per_query else 5000) < share
    if per_query:
        mask[0] = False
        mask[1, 7:] = False
    for k in (1, 20, 5000):
        assert_same(asx.top_k(batch, rows, k, metric=metric, mask=mask), expected(metric, batch, rows, k, mask))


def test_a_query_with_fewer_rows_ends_in_no_id_and_nan(backend: Backend) -> None:
    mask = np.array([[True, False, True], [False, False, True], [False, False, False]])
    found = asx.top_k(np.ones((3, 2)), np.ones((3, 2)), 9, mask=mask)
    assert found.ids.tolist() == [[0, 2], [2, -1], [-1, -1]]
    assert np.isnan(found.scores).tolist() == [[False, False], [False, True], [True, True]]


@few_examples
@given(n=st.integers(1, 300), queries=st.integers(1, 9), k=st.integers(1, 20), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_selective_masks_give_the_answers_of_a_scan(backend: Backend, n: int, queries: int, k: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows, batch = drawn(rng, n, 5), drawn(rng, queries, 5)
    mask = rng.random((queries, n)) < share
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        for selective in (1, n + 1):
            patch.setattr(flat, "SELECTIVE", selective)
            patch.setattr(flat, "SELECTIVE_BATCH", selective)
            patch.setattr(flat, "CANDIDATE_ENTRIES", 50)
            answers.append(asx.top_k(batch, rows, k, mask=mask))
    assert_same(*answers)


def test_masks_in_any_layout(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    rows, batch = drawn(rng, 200, 5), drawn(rng, 4, 5)
    mask = rng.random((4, 200)) < 0.5
    wanted = asx.top_k(batch, rows, 9, mask=mask)
    assert_same(asx.top_k(batch, rows, 9, mask=np.asfortranarray(mask)), wanted)
    assert_same(asx.top_k(batch, rows, 9, mask=mask.repeat(2, axis=1)[:, ::2]), wanted)
    assert_same(asx.top_k(batch, rows, 9, mask=mask[0].repeat(2)[::2]), asx.top_k(batch, rows, 9, mask=mask[0].tolist()))


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_true_may_be_any_byte_but_zero(backend: Backend, share: float) -> None:
    """As in a view of other bytes: ``bytes.view(bool)``."""
    rng = np.random.default_rng(6)
    rows, batch, codes = drawn(rng, 5000, 9), drawn(rng, 5, 9), rng.integers(0, 256, (5000, 2)).astype(np.uint8)
    quantizer = asx.ProductQuantizer(3, bits=4).fit(rows)
    numbers = quantizer.encode(rows)
    for shape in (5000, (5, 5000)):
        mask = rng.random(shape) < share
        odd = awkward.of_any_true_bytes(mask)
        assert_same(asx.top_k(batch, rows, 9, mask=odd), asx.top_k(batch, rows, 9, mask=mask))
        assert_same(asx.hamming_top_k(codes[:5], codes, 9, mask=odd), asx.hamming_top_k(codes[:5], codes, 9, mask=mask))
        assert_same(quantizer.top_k(batch, numbers, 9, mask=odd), quantizer.top_k(batch, numbers, 9, mask=mask))


# --- dims ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_dims_compares_truncated_vectors(backend: Backend, kind: str, metric: Any) -> None:
    rng = np.random.default_rng(13)
    rows, batch = drawn(rng, 100, 40, kind), drawn(rng, 3, 40)
    candidates = rng.integers(0, 100, (3, 20))
    for dims in (1, 7, 39, 40):
        cut_rows, cut = np.ascontiguousarray(rows[:, :dims]), np.ascontiguousarray(batch[:, :dims])
        assert_same(asx.top_k(batch, rows, 9, metric=metric, dims=dims), asx.top_k(cut, cut_rows, 9, metric=metric))
        assert_same(asx.top_k(cut, rows, 9, metric=metric, dims=dims), asx.top_k(cut, cut_rows, 9, metric=metric))
        wanted = asx.rescore(cut, cut_rows, candidates, 9, metric=metric)
        assert_same(asx.rescore(batch, rows, candidates, 9, metric=metric, dims=dims), wanted)
        np.testing.assert_array_equal(asx.dot(batch, rows, dims=dims), asx.dot(cut, cut_rows))
