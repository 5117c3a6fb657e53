"""Intersection and Jaccard of packed codes against counting unpacked bits."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from ops import awkward

import adaptive_search as asx
from adaptive_search import arrays, execution, overlaps
from adaptive_search.backends.protocol import Backend
from adaptive_search.types import F32, I64, U8, Array

BITS = (1, 7, 8, 9, 15, 31, 33, 63, 64, 65, 127, 128, 200, 511, 513, 768, 1000, 4095)
ALL = {"intersection": asx.intersection, "jaccard": asx.jaccard}
BEST: dict[str, Callable[..., asx.Neighbors]] = {"intersection": asx.intersection_top_k, "jaccard": asx.jaccard_top_k}
MEASURES = list(ALL)


def common(queries: U8, codes: U8, bits: int) -> tuple[I64, I64]:
    """Bits that are set in both, and in either: (Q, N) each."""
    a, b = (np.unpackbits(array, axis=1)[:, :bits].astype(np.float64) for array in (queries, codes))
    both = a @ b.T  # of whole numbers, exactly
    either = a.sum(axis=1)[:, None] + b.sum(axis=1) - both
    return both.astype(np.int64), either.astype(np.int64)


@oracles.once
def wanted(measure: str, queries: U8, codes: U8, bits: int) -> Array:
    both, either = common(queries, codes, bits)
    if measure == "intersection":
        return both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0).astype(np.float32)


def drawn(n: int, bits: int, seed: int = 0, share: float = 0.3) -> U8:
    """Codes of which so many bits are set, those beyond ``bits`` being rubbish; the first one is empty."""
    rng = np.random.default_rng(seed)
    flags = rng.random((n, -(-bits // 8) * 8)) < share
    flags[:, bits:] = rng.random((n, flags.shape[1] - bits)) < 0.5
    flags[:1, :bits] = False
    return np.packbits(flags, axis=1)


def assert_found(found: asx.Neighbors, scores: F32, ids: I64) -> None:
    np.testing.assert_array_equal(found.ids, ids)
    assert found.scores.dtype == np.float32
    assert oracles.same_bits(np.ascontiguousarray(found.scores), np.ascontiguousarray(scores))


@pytest.mark.parametrize("measure", MEASURES)
def test_all_pairs_of_awkward_widths(backend: Backend, measure: str) -> None:
    for bits in BITS:
        codes, queries = drawn(150, bits), drawn(9, bits, 1)
        found = ALL[measure](queries, codes, bits=bits)
        expected = wanted(measure, queries, codes, bits)
        assert found.dtype == (np.int32 if measure == "intersection" else np.float32)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(ALL[measure](queries[3], codes, bits=bits), expected[3])
        whole = 8 * codes.shape[1]
        np.testing.assert_array_equal(ALL[measure](queries, codes), wanted(measure, queries, codes, whole))


@pytest.mark.parametrize("measure", MEASURES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 400),
    queries=st.integers(1, 40),
    bits=st.integers(1, 300),
    k=st.integers(1, 500),
    share=st.sampled_from([0.0, 0.02, 0.3, 0.9]),
    seed=st.integers(0, 99),
)
def test_the_best_of_any_shape(backend: Backend, measure: str, n: int, queries: int, bits: int, k: int, share: float, seed: int) -> None:
    codes, batch = drawn(n, bits, seed, share), drawn(queries, bits, seed + 1, share)
    expected = wanted(measure, batch, codes, bits)
    scores, ids = oracles.best(expected, min(k, n))
    assert_found(BEST[measure](batch, codes, k, bits=bits), scores, ids)
    assert_found(BEST[measure](batch[0], codes, k, bits=bits), scores[0], ids[0])
    rng = np.random.default_rng(seed)
    for mask in (rng.random(n) < 0.5, rng.random((queries, n)) < 0.05):
        most = int(mask.sum(axis=-1).max(initial=0))
        scores, ids = oracles.best(expected, min(k, most), allowed=mask)
        assert_found(BEST[measure](batch, codes, k, bits=bits, mask=mask), scores, ids)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("k", [1, 10, 300, 5000])
def test_many_blocks_of_rows(backend: Backend, measure: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scores, so that nearly all rows are tied; rising and falling rows."""
    monkeypatch.setattr(overlaps, "PAIRS_AT_ONCE", 40 * 32)
    batch = drawn(40, 12, 1, 0.5)
    random = drawn(1000, 12, 2, 0.4)
    order = np.argsort(wanted(measure, batch[1:2], random, 12)[0], kind="stable")
    for codes in (random, random[order], random[order[::-1]]):
        scores, ids = oracles.best(wanted(measure, batch, codes, 12), min(k, 1000))
        for threads in (1, 2):
            assert_found(BEST[measure](batch, codes, k, bits=12, threads=threads), scores, ids)
        assert_found(BEST[measure](batch[1:3], codes, k, bits=12), scores[1:3], ids[1:3])


@pytest.mark.parametrize("measure", MEASURES)
def test_threads_share_out_the_rows(backend: Backend, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(overlaps, "PAIRS_AT_ONCE", 2000)
    codes = drawn(30_000, 100)
    scores, ids = oracles.best(wanted(measure, codes[:3], codes, 100), 50)
    for threads in (1, 2, 3):
        assert_found(BEST[measure](codes[:3], codes, 50, bits=100, threads=threads), scores, ids)
        np.testing.assert_array_equal(ALL[measure](codes[:3], codes, bits=100, threads=threads), wanted(measure, codes[:3], codes, 100))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("share", [0.5, 0.001, 0.0])
def test_masks(backend: Backend, measure: str, share: float) -> None:
    codes, batch = drawn(9000, 30), drawn(5, 30, 1)
    expected = wanted(measure, batch, codes, 30)
    rng = np.random.default_rng(3)
    for shape in (9000, (5, 9000)):
        mask = rng.random(shape) < share
        most = int(np.count_nonzero(mask, axis=-1).max())
        scores, ids = oracles.best(expected, min(12, most), allowed=mask)
        assert_found(BEST[measure](batch, codes, 12, bits=30, mask=mask), scores, ids)


def test_empty_sets_are_equal(backend: Backend) -> None:
    codes = np.array([[0, 0], [0, 1], [255, 255]], np.uint8)
    assert asx.jaccard(codes, codes).tolist() == [[1, 0, 0], [0, 1, 1 / 16], [0, 1 / 16, 1]]
    assert asx.intersection(codes, codes).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 16]]
    # The only set bit is not counted.
    assert asx.jaccard(codes[0], codes, bits=15).tolist() == [1, 1, 0]
    assert asx.jaccard_top_k(codes[0], codes, 3).ids.tolist() == [0, 1, 2]


def test_quotients_are_rounded_to_nearest(backend: Backend) -> None:
    """Also where sizes themselves are beyond float32."""
    bits = 2**24 + 64
    one, other = (np.full(bits // 8, 255, np.uint8) for _ in range(2))
    one[:2], other[-1] = 0, 0b0111_1111
    both, either = bits - 17, bits
    assert asx.intersection(one, other[None]).tolist() == [both]
    assert asx.jaccard(one, other[None])[0] == np.float32(both / either)
    few = np.packbits(np.tri(70, 70, dtype=bool), axis=1)
    for a, row in enumerate(asx.jaccard(few, few, bits=70).tolist()):
        for b, found in enumerate(row):
            assert found == np.float32(min(a + 1, b + 1) / max(a + 1, b + 1))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("place", awkward.ROW_PLACES)
def test_places_of_rows(backend: Backend, measure: str, place: str) -> None:
    for bits in (5, 64, 77):
        codes, batch = drawn(135, bits), drawn(4, bits, 1)
        placed = awkward.ROW_PLACES[place](codes)
        expected = wanted(measure, batch, codes, bits)
        np.testing.assert_array_equal(ALL[measure](batch, placed, bits=bits), expected)
        assert_found(BEST[measure](batch, placed, 7, bits=bits), *oracles.best(expected, 7))


@pytest.mark.parametrize("measure", MEASURES)
def test_columns_first(backend: Backend, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 500)
    codes = drawn(300, 88)
    expected = wanted(measure, codes[:3], codes, 88)
    np.testing.assert_array_equal(ALL[measure](codes[:3], np.asfortranarray(codes)), expected)
    assert_found(BEST[measure](codes[:3], np.asfortranarray(codes), 9), *oracles.best(expected, 9))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("queries", "n"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_compare(backend: Backend, measure: str, queries: int, n: int) -> None:
    batch, codes = np.zeros((queries, 4), np.uint8), np.zeros((n, 4), np.uint8)
    assert ALL[measure](batch, codes).shape == (queries, n)
    assert BEST[measure](batch, codes, 3).ids.shape == (queries, min(3, n))


CODES = np.zeros((4, 3), np.uint8)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("queries", "codes", "options", "error", "message"),
    [
        (CODES[:, :2], CODES, {}, ValueError, r"^queries: expected 3 bytes as the codes have, got 2"),
        (CODES > 0, CODES, {}, TypeError, r"^queries: expected uint8, got bool \(pack bits with np.packbits"),
        (CODES, CODES.astype(np.int8), {}, TypeError, r"^codes: expected uint8, got int8"),
        (CODES, CODES[0], {}, ValueError, r"^codes: expected shape \(n, bytes\), got \(3,\)"),
        (CODES, CODES, {"bits": 25}, ValueError, r"^bits: expected 1 to 24, got 25"),
        (CODES, CODES, {"threads": 0}, ValueError, r"^threads: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_explained(measure: str, queries: Any, codes: Any, options: Any, error: type[Exception], message: str) -> None:
    for call in (lambda: ALL[measure](queries, codes, **options), lambda: BEST[measure](queries, codes, 1, **options)):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match=r"^k: expected at least 1, got 0"):
        BEST[measure](CODES, CODES, 0)
    with pytest.raises(ValueError, match=r"^mask: expected shape \(4,\) or \(4, 4\), got \(3,\)"):
        BEST[measure](CODES, CODES, 1, mask=np.ones(3, bool))


def test_the_measures_agree_with_each_other(backend: Backend) -> None:
    codes = drawn(60, 90)
    both, apart = asx.intersection(codes, codes, bits=90), asx.hamming(codes, codes, bits=90)
    sizes = np.diag(both)
    np.testing.assert_array_equal(sizes[:, None] + sizes - 2 * both, apart)
    shares = asx.jaccard(codes, codes, bits=90)
    assert all(math.isclose(share, 1.0) for share in np.diag(shares))
    np.testing.assert_array_equal(shares, shares.T)


@pytest.mark.parametrize("measure", MEASURES)
def test_no_matrix_of_scores_is_held(measure: str) -> None:
    codes = drawn(40_000, 64)
    tracemalloc.start()
    try:
        BEST[measure](codes[:200], codes, 10, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Scores of all pairs would take 32 MB.
    assert peak < 8 << 20


@pytest.mark.parametrize("measure", MEASURES)
def test_masked_rows_are_copied_in_blocks(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 1 << 16)
    codes = np.random.default_rng(0).integers(0, 256, (20_000, 512), np.uint8)
    mask = np.arange(20_000) % 20 == 7
    tracemalloc.start()
    try:
        found = BEST[measure](codes[:2], codes, 10, bits=4095, mask=mask, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    ids = np.flatnonzero(mask)
    scores, places = oracles.best(wanted(measure, codes[:2], codes[ids], 4095), 10)
    assert_found(found, scores, ids[places])
    # The codes of all allowed rows would take 512 KB.
    assert peak < 400_000
