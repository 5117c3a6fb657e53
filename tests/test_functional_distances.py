"""`dot`, `hamming` and `hamming_top_k` on every backend."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from functional_cases import DTYPES, LAYOUTS, assert_same, drawn, few_examples, on_every_backend
from hypothesis import given, strategies as st
from ops import awkward

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends.protocol import Backend


@pytest.mark.parametrize("kind", DTYPES)
@on_every_backend
@given(n=st.integers(0, 70), queries=st.integers(1, 40), dim=st.sampled_from(awkward.DIMS), seed=st.integers(0, 99))
def test_dot_is_within_its_bound(backend: Backend, kind: str, n: int, queries: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, batch = drawn(rng, n, dim, kind), drawn(rng, queries, dim)
    wide = rows.astype(np.float32)
    bound = oracles.error_bound("ip", batch, wide) + np.outer(oracles.norms(batch), oracles.norms(wide)) * 2.0**-8
    for threads in (1, 2):
        products = asx.dot(batch, rows, threads=threads)
        assert products.dtype == np.float32
        assert (np.abs(products - oracles.dot(batch, wide)) <= bound).all()


@pytest.mark.unemulated
def test_dot_of_many_queries_and_rows(backend: Backend) -> None:
    rng = np.random.default_rng(16)
    rows, batch = rng.integers(-3, 4, (9000, 5)).astype(np.float32), rng.integers(-3, 4, (600, 5)).astype(np.float32)
    np.testing.assert_array_equal(asx.dot(batch, rows, threads=2), batch @ rows.T)
    np.testing.assert_array_equal(asx.dot(batch, rows.astype(np.float64)), batch @ rows.T)


@few_examples
@given(n=st.integers(0, 300), queries=st.integers(1, 40), bits=st.integers(1, 300), k=st.integers(1, 40), seed=st.integers(0, 99))
def test_hamming_counts_differing_bits(backend: Backend, n: int, queries: int, bits: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = -(-bits // 8)
    codes, batch = (rng.integers(0, 256, (count, width)).astype(np.uint8) for count in (n, queries))
    for given_bits, counted in ((bits, bits), (None, 8 * width)):
        distances = oracles.hamming(batch, codes, counted)
        found = asx.hamming(batch, codes, bits=given_bits)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, distances)
        scores, ids = oracles.best(distances, min(k, n), largest=False)
        assert_same(asx.hamming_top_k(batch, codes, k, bits=given_bits), asx.Neighbors(ids, scores))


def test_hamming_masks_and_ties(backend: Backend) -> None:
    rng = np.random.default_rng(17)
    codes, batch = rng.integers(0, 4, (9000, 1)).astype(np.uint8), rng.integers(0, 4, (5, 1)).astype(np.uint8)
    distances = oracles.hamming(batch, codes, 8)
    for share in (0.5, 0.002):
        for shape in (9000, (5, 9000)):
            mask = rng.random(shape) < share
            width = min(11, np.count_nonzero(mask, axis=-1).max())
            scores, ids = oracles.best(distances, width, largest=False, allowed=mask)
            assert_same(asx.hamming_top_k(batch, codes, 11, mask=mask), asx.Neighbors(ids, scores))


@pytest.mark.parametrize("layout", ["strided", "backwards", "read-only", "mapped", "every other column", "columns first"])
def test_codes_in_any_layout(backend: Backend, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 500)
    codes = np.random.default_rng(18).integers(0, 256, (300, 11)).astype(np.uint8)
    placed = LAYOUTS[layout](codes)
    for bits in (None, 77):
        assert_same(asx.hamming_top_k(placed[:3], placed, 9, bits=bits), asx.hamming_top_k(codes[:3], codes, 9, bits=bits))
        np.testing.assert_array_equal(asx.hamming(placed[:3], placed, bits=bits), asx.hamming(codes[:3], codes, bits=bits))


def test_bits_compares_a_common_prefix(backend: Backend) -> None:
    codes = np.array([[0b1010_1010, 0xFF], [0b1010_1011, 0x00]], np.uint8)
    assert asx.hamming(codes[0, :1], codes, bits=7).tolist() == [0, 0]
    assert asx.hamming(codes[0, :1], codes, bits=8).tolist() == [0, 1]
