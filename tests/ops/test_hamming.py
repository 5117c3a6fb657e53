"""Packed binary codes against counting unpacked bits."""

from __future__ import annotations

from typing import Any

import awkward
import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from adaptive_search.backends.protocol import Backend

Array = NDArray[Any]

BITS = (*range(1, 131), 192, 255, 256, 257, 384, 511, 512, 513, 768, 1000, 1024, 2048, 4095)


def make(n: int, bits: int, seed: int = 0, extra: int = 0) -> Array:
    """Random bytes: the bits beyond ``bits`` are rubbish, and so are ``extra`` bytes."""
    return np.random.default_rng(seed).integers(0, 256, (n, -(-bits // 8) + extra)).astype(np.uint8)


def chunks(codes: Array, sizes: tuple[int, ...] = (10**9,), place: Any = None) -> list[Array]:
    return [(place or np.ascontiguousarray)(codes[part]) for part in awkward.cut(len(codes), sizes)]


def check(found: tuple[Array, Array], queries: Array, codes: Array, bits: int, k: int, ids: Any = None, allowed: Any = None) -> None:
    scores, numbers = oracles.best(oracles.hamming(queries, codes, bits), k, ids=ids, largest=False, allowed=allowed)
    np.testing.assert_array_equal(found[1], numbers)
    assert found[0].dtype == np.float32
    assert oracles.same_bits(found[0], scores)


@pytest.mark.parametrize("count", [1, 5, 21])
def test_bits(backend: Backend, count: int) -> None:
    for bits in BITS:
        codes, queries = make(150, bits), make(count, bits, 1)
        prepared = backend.bit_rows(chunks(codes, (67,)), bits)
        check(awkward.run(backend.hamming_scan(prepared, queries, 9), prepared), queries, codes, bits, 9)
        out = awkward.Guarded((count, 150), np.int32)
        backend.hamming_distances(prepared, queries, out.array, 0, 150)
        np.testing.assert_array_equal(out.array, oracles.hamming(queries, codes, bits))
        assert out.intact


@pytest.mark.parametrize("bits", [7936, 7937, 8192, 65528, 65536, 300001])
def test_very_long_codes(backend: Backend, bits: int) -> None:
    """Counters of 8 bits, of 32 registers of 32 bytes, or of 16 bits would overflow."""
    codes = np.zeros((70, -(-bits // 8)), np.uint8)
    codes[::2] = 255
    codes[::3, ::2] = 255
    for count in (1, 18):
        queries = make(count, bits, 1)
        queries[0] = 255
        prepared = backend.bit_rows(chunks(codes), bits)
        check(awkward.run(backend.hamming_scan(prepared, queries, 9), prepared), queries, codes, bits, 9)


def test_distances_beyond_float32_tie(backend: Backend) -> None:
    """2**24 and 2**24 + 1 are one score, so that ids decide."""
    bits = 2**24 + 64
    query, near = np.zeros((1, bits // 8), np.uint8), np.full(bits // 8, 255, np.uint8)
    near[-8:] = 0
    far = near.copy()
    far[-1] = 1
    parts = [np.broadcast_to(near, (200, bits // 8)), np.broadcast_to(far, (5, bits // 8))]
    prepared = backend.bit_rows(parts, bits, np.r_[5:205, 0:5].astype(np.int64))
    scores, rows = awkward.run(backend.hamming_scan(prepared, query, 7), prepared)
    np.testing.assert_array_equal(rows, [[200, 201, 202, 203, 204, 0, 1]])
    np.testing.assert_array_equal(scores, np.full((1, 7), 2**24))


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 4095, 4096, 4097, 9000])
def test_row_counts(backend: Backend, n: int) -> None:
    for bits in (60, 128, 200):
        codes, queries = make(n, bits), make(9, bits, 1)
        for sizes in ((10**9,), (64, 4097, 1000)):
            prepared = backend.bit_rows(chunks(codes, sizes), bits)
            for count in (1, 9):
                for k in (1, 10):
                    found = awkward.run(backend.hamming_scan(prepared, queries[:count], k), prepared)
                    check(found, queries[:count], codes, bits, k)


@pytest.mark.parametrize("k", [1, 10, 100, 5000, 5001])
@pytest.mark.parametrize("bits", [1, 3, 8, 300])
def test_ties_go_to_the_smaller_id(backend: Backend, bits: int, k: int) -> None:
    rng = np.random.default_rng(bits)
    codes, queries = make(7, bits)[rng.integers(0, 7, 5000)], make(5, bits, 1)
    for ids in (None, awkward.read_only(rng.permutation(5000).astype(np.int64) * 5)):
        prepared = backend.bit_rows(chunks(codes, (1024, 3000)), bits, ids)
        for count in (1, 5):
            found = awkward.run(backend.hamming_scan(prepared, queries[:count], k), prepared)
            check(found, queries[:count], codes, bits, k, ids)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("k", [10, 6000])
def test_sorted_rows(backend: Backend, k: int, order: int) -> None:
    bits = 200
    flags = np.arange(12000)[::order, None] * bits // 12000 > np.arange(bits)
    codes, queries = np.packbits(flags, axis=1), np.zeros((10, 25), np.uint8)
    queries[3:] = make(7, bits)
    prepared = backend.bit_rows(chunks(codes, (5000,)), bits)
    for count in (1, 10):
        found = awkward.run(backend.hamming_scan(prepared, queries[:count], k), prepared)
        check(found, queries[:count], codes, bits, k)


# Rows of none, one, two and three whole registers of 64 bytes and some of the next, less or more than half; every number of queries up to
# eight has code of its own.
@pytest.mark.parametrize("bits", [48, 768, 1000, 1200, 2000])
def test_batches(backend: Backend, bits: int) -> None:
    codes, queries = make(700, bits), make(100, bits, 1)
    prepared = backend.bit_rows(chunks(codes, (300,)), bits)
    for count in sorted({*range(1, 9), *awkward.BATCHES}):
        found = awkward.run(backend.hamming_scan(prepared, queries[:count], 10), prepared)
        check(found, queries[:count], codes, bits, 10)


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_masks(backend: Backend, share: float, count: int) -> None:
    rng = np.random.default_rng(7)
    codes, queries = make(5000, 72), make(count, 72, 1)
    prepared = backend.bit_rows(chunks(codes, (4097,)), 72)
    for shape in ((5000,), (count, 5000)):
        allowed = rng.random(shape) < share
        for mask in (allowed, awkward.before_forbidden_page(allowed), awkward.of_any_true_bytes(allowed)):
            found = awkward.run(backend.hamming_scan(prepared, queries, 10, mask), prepared)
            check(found, queries, codes, 72, 10, allowed=allowed)


@pytest.mark.parametrize("place", awkward.ROW_PLACES)
def test_places_of_rows(backend: Backend, place: str) -> None:
    put = awkward.ROW_PLACES[place]
    for bits in (1, 8, 17, 56, 63, 64, 65, 71, 72, 120, 128, 129, 511, 512, 520, 1000):
        for extra in (0, 3):
            codes, queries = make(135, bits, extra=extra), make(19, bits, 1)
            prepared = backend.bit_rows(chunks(codes, (65,), put), bits)
            for count in (1, 4, 19):
                found = awkward.run(backend.hamming_scan(prepared, queries[:count], 5), prepared)
                check(found, queries[:count], codes, bits, 5)
            candidates = np.tile(np.array([[134, 0, 64, 65, 7]], np.int64), (19, 1))
            allowed = np.isin(np.arange(135), candidates[0])
            check(backend.hamming_rescore(prepared, queries, candidates, 5), queries, codes, bits, 5, allowed=allowed)


@pytest.mark.parametrize("place", awkward.FLAT_PLACES)
def test_places_of_queries(backend: Backend, place: str) -> None:
    for bits in (5, 64, 65, 120, 1000):
        codes = make(135, bits)
        prepared = backend.bit_rows(chunks(codes), bits)
        for count in (1, 2, 5, 17):
            queries = make(count, bits, 1)
            found = awkward.run(backend.hamming_scan(prepared, awkward.FLAT_PLACES[place](queries), 5), prepared)
            check(found, queries, codes, bits, 5)


@pytest.mark.parametrize("bits", [100, 900])
def test_distances_of_a_range(backend: Backend, bits: int) -> None:
    codes, queries = make(300, bits), make(10, bits, 1)
    prepared = backend.bit_rows(chunks(codes, (67,)), bits)
    for count in range(1, 11):
        expected = oracles.hamming(queries[:count], codes, bits)
        for first, last in ((0, 300), (3, 3), (66, 68), (299, 300), (5, 210)):
            out = awkward.Guarded((count, 300), np.int32)
            out.array[...] = -7
            backend.hamming_distances(prepared, queries[:count], out.array, first, last)
            assert (out.array[:, :first] == -7).all()
            assert (out.array[:, last:] == -7).all()
            np.testing.assert_array_equal(out.array[:, first:last], expected[:, first:last])
            assert out.intact


def test_rescore(backend: Backend) -> None:
    rng = np.random.default_rng(4)
    codes, queries = make(3000, 100), make(9, 100, 1)
    codes[1000:2000] = codes[:1000]
    ids = rng.permutation(3000).astype(np.int64)
    prepared = backend.bit_rows(chunks(codes, (1, 999, 64)), 100, ids)
    for width in (0, 1, 7, 100, 4000):
        candidates = rng.integers(-1, 3000, (9, width))
        candidates[2] = -1
        candidates[3] = 17
        allowed = np.zeros((9, 3000), bool)
        for query, some in enumerate(candidates):
            allowed[query, some[some >= 0]] = True
        for k in (1, 10, 4000):
            check(backend.hamming_rescore(prepared, queries, candidates, k), queries, codes, 100, k, ids, allowed)


def test_forks(backend: Backend) -> None:
    codes, queries = make(30000, 40), make(10, 40, 1)
    prepared = backend.bit_rows(chunks(codes, (9000, 4096, 100)), 40)
    for count in (1, 10):
        scan = backend.hamming_scan(prepared, queries[:count], 300)
        forks = [scan.fork(), scan]
        for visit in range(prepared.visits):
            forks[visit % 2].run(visit, visit + 1)
        scan.merge(forks[0])
        check(scan.finish(), queries[:count], codes, 40, 300)


@given(st.data())
def test_any_shape(backend: Backend, data: st.DataObject) -> None:
    n, bits, count = data.draw(st.integers(0, 300)), data.draw(st.integers(1, 700)), data.draw(st.integers(1, 40))
    sizes = tuple(data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=3)))
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    codes, queries = make(n, bits, seed, data.draw(st.integers(0, 9))), make(count, bits, seed + 1)
    allowed = data.draw(st.sampled_from([None, rng.random(n) < 0.5, rng.random((count, n)) < 0.3]))
    ids = data.draw(st.sampled_from([None, rng.permutation(n).astype(np.int64)]))
    place = awkward.ROW_PLACES[data.draw(st.sampled_from(sorted(awkward.ROW_PLACES)))]
    k = data.draw(st.integers(1, 320))
    prepared = backend.bit_rows(chunks(codes, sizes, place), bits, ids)
    check(awkward.run(backend.hamming_scan(prepared, queries, k, allowed), prepared), queries, codes, bits, k, ids, allowed)
