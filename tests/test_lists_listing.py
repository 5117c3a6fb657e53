"""The backends' lists: rows by the keys of their centroids, and searches of some lists alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptive_search.backends.protocol import Backend, Bound, CodeChunk


def coded(backend: Backend, count: int, subspaces: int = 2) -> Any:
    """Rows whose codes, of 8 bits, are 0, 1, 2 and so on."""
    packed = np.zeros((-(-count // 64), subspaces, 64), np.uint8)
    packed[:] = np.arange(len(packed) * 64).reshape(len(packed), 1, 64)
    return backend.pq_rows([CodeChunk(packed, count)], subspaces, 8)


def test_backends_check_what_they_are_given(backend: Backend) -> None:
    numbers = np.array([0, 2, 1, 2], np.uint16)
    with pytest.raises(ValueError, match="lists: expected numbers below"):
        backend.list_rows([numbers], coded(backend, 2))
    with pytest.raises((TypeError, AttributeError)):
        backend.list_rows([[0, 2, 1]], coded(backend, 3))  # type: ignore[list-item]
    if backend.name == "numba":
        return
    rows, codes = backend.list_rows([numbers], coded(backend, 3)), coded(backend, 4)
    with pytest.raises(ValueError, match="centroids: expected codes"):
        backend.list_rows([numbers], rows)
    with pytest.raises(ValueError, match="centroids: expected 1 to 65,536"):
        backend.list_rows([numbers], coded(backend, 0))
    assert backend.listing(rows, codes) is not None
    with pytest.raises(ValueError, match="rows: expected those of lists"):
        backend.listing(codes, codes)
    with pytest.raises(ValueError, match="codes: expected those of product"):
        backend.listing(rows, rows)
    others = coded(backend, 5)
    with pytest.raises(ValueError, match="rows: expected the same chunks"):
        backend.listing(rows, others)
    with pytest.raises(ValueError, match="tables: expected"):
        backend.list_rescore(rows, np.zeros((2, 4, 256), np.float32), np.zeros((2, 1), np.int64), 1, True)


def test_a_listing_goes_with_its_own_codes(backend: Backend) -> None:
    """Codes of another width would be read beyond their end."""
    rows = backend.list_rows([np.array([0, 2, 1, 2], np.uint16)], coded(backend, 3))
    small, large = coded(backend, 4), coded(backend, 4, 30)
    listing = backend.listing(rows, small)
    if listing is None:
        return
    bound = Bound(0.0, 1.0)
    lists, judge = (
        backend.list_level(rows, np.zeros((1, 2, 256), np.float32), True, bound),
        backend.pq_level(small, np.zeros((1, 2, 256), np.float32), True, bound),
    )
    for codes, m in ((small, 2), (large, 30)):
        levels = [backend.pq_level(codes, np.zeros((1, m, 256), np.float32), True, bound), lists]
        if codes is small:
            assert backend.listed_top_k(listing, levels, judge, 4, None, 0, 1)[1].tolist() == [[0, 1, 2, 3]]
            with pytest.raises(ValueError, match="k: expected at least one"):
                backend.listed_top_k(listing, levels, judge, 0, None, 0, 1)
            with pytest.raises(ValueError, match="first: expected queries"):
                backend.listed_top_k(listing, levels, judge, 4, None, 0, 2)
        else:
            with pytest.raises(ValueError, match="expected the codes of the listing, then its lists"):
                backend.listed_top_k(listing, levels, judge, 4, None, 0, 1)


@pytest.mark.parametrize(("subspaces", "bits"), [(30, 8), (2, 4)], ids=str)
def test_centroids_are_coded_as_rows_are(subspaces: int, bits: int, backend: Backend) -> None:
    """Their keys are looked up in the tables of the rows' codes, which would be read beyond their end."""
    packed = np.zeros((1, subspaces if bits == 8 else subspaces // 2, 64), np.uint8)
    centroids = backend.pq_rows([CodeChunk(packed, 3)], subspaces, bits)
    rows, codes = backend.list_rows([np.array([0, 2, 1, 2], np.uint16)], centroids), coded(backend, 4)
    if backend.name == "numba":
        return
    with pytest.raises(ValueError, match="codes: expected the subspaces and bits of the centroids"):
        backend.listing(rows, codes)


def test_equal_keys_go_to_the_smaller_id_and_rows_count_once(backend: Backend) -> None:
    numbers, ids = [np.array([1, 0, 1, 0], np.uint16), np.array([2], np.uint16)], np.array([9, 8, 7, 6, 5])
    rows = backend.list_rows(numbers, coded(backend, 3), ids)
    tables = np.zeros((2, 2, 256), np.float32)
    tables[0, 1, :3] = 1.0, 2.0, 0.5
    candidates = np.array([[0, 1, 2, -1, 2, 4], [3, 2, 1, 0, 4, 4]])
    scores, found = backend.list_rescore(rows, tables, candidates, 5, True)
    assert found.tolist() == [[2, 0, 1, 4, -1], [4, 3, 2, 1, 0]]
    assert scores[0, :4].tolist() == [2.0, 2.0, 1.0, 0.5]
    assert np.isnan(scores[0, 4])
    scores, found = backend.list_rescore(rows, tables, candidates, 5, False)
    assert found.tolist() == [[4, 1, 2, 0, -1], [4, 3, 2, 1, 0]]
    assert scores[0, :4].tolist() == [0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("lists", [1, 31, 33, 64, 97, 4_200])
def test_lists_are_as_good_as_their_centroids(lists: int, whole: bool, bits: int, backend: Backend) -> None:
    """Whether keys are looked up for rows, or made for all lists at once: one row of each list, its number as its only code."""
    random = np.random.default_rng(lists)
    numbers = random.permutation(lists).astype(np.uint16)
    packed = random.integers(0, 256, (-(-lists // 64), 5 if bits == 8 else 3, 64), np.uint8)
    centroids = backend.pq_rows([CodeChunk(packed, lists)], 5, bits)
    rows = backend.list_rows([numbers], centroids)
    codes = backend.pq_rows([CodeChunk(np.zeros_like(packed), lists)], 5, bits)
    tables = random.integers(0, 63, (3, 5, 1 << bits)).astype(np.float32)
    if not whole:
        tables += random.standard_normal(tables.shape, np.float32)
    everything = np.tile(np.arange(lists), (3, 1))
    scores, found = backend.list_rescore(rows, tables, everything, lists, True)
    of_centroids, best = backend.pq_rescore(centroids, tables, everything, lists, True)
    assert np.array_equal(scores, of_centroids)
    np.testing.assert_array_equal(np.sort(numbers[found], axis=1), np.sort(best, axis=1))
    listing = backend.listing(rows, codes)
    if listing is None:
        return
    # All codes are alike, and lists decide: their keys are the scores of what the search finds.
    flat = backend.pq_level(codes, tables, True, Bound(1e9, 1.0))
    levels = [flat, backend.list_level(rows, tables, True, Bound(0.0, 1.0))]
    k = min(lists, 7)
    judge = backend.list_level(rows, tables, True, Bound(0.0, 1.0))
    got, _, _, left = backend.listed_top_k(listing, levels, judge, k, None, 0, 3)
    assert not left.any()
    assert np.array_equal(got, scores[:, :k])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("subspaces", [1, 8, 17, 33, 64, 97])
def test_lists_of_any_length_with_codes_of_any_width(subspaces: int, whole: bool, bits: int, backend: Backend) -> None:
    """Rows are those of their list's centroid but for some entries; keys are scores, and lists bound them too low for some rows."""
    random = np.random.default_rng(subspaces)
    lengths = np.array([0, 1, 2, 63, 64, 65, 127, 128, 129, 192, 193, 500])
    numbers = random.permutation(np.repeat(np.arange(len(lengths)), lengths)).astype(np.uint16)
    of_lists = random.integers(0, 1 << bits, (len(lengths), subspaces), np.uint8)
    of_rows = np.where(random.random((len(numbers), subspaces)) < 0.2, random.integers(0, 1 << bits, (1, subspaces)), of_lists[numbers])

    def stored(codes: Any) -> Any:
        by_rows = np.pad(codes.astype(np.uint8), ((0, -len(codes) % 64), (0, subspaces % 2 if bits == 4 else 0)))
        if bits == 4:
            by_rows = by_rows[:, ::2] | by_rows[:, 1::2] << 4
        packed = np.ascontiguousarray(by_rows.reshape(-1, 64, by_rows.shape[1]).transpose(0, 2, 1))
        return backend.pq_rows([CodeChunk(packed, len(codes))], subspaces, bits)

    rows, codes = backend.list_rows([numbers], stored(of_lists)), stored(of_rows)
    listing = backend.listing(rows, codes)
    if listing is None:
        return
    tables = random.integers(0, 64, (5, subspaces, 1 << bits)).astype(np.float32)
    if not whole:
        tables += random.standard_normal(tables.shape, np.float32)
    everything = np.tile(np.arange(len(numbers)), (5, 1))

    def scores_of(found: Any) -> Any:
        return np.take_along_axis(found[0], np.argsort(found[1], axis=1), axis=1).astype(np.float64)

    for largest in (True, False):
        sign = 1.0 if largest else -1.0
        scores = sign * scores_of(backend.pq_rescore(codes, tables, everything, len(numbers), largest))
        bounds = sign * scores_of(backend.list_rescore(rows, tables, everything, len(numbers), largest)) + 3.0 * subspaces**0.5
        values = np.minimum(scores, bounds)
        levels = [
            backend.pq_level(codes, tables, largest, Bound(0.0, 1.0)),
            backend.list_level(rows, tables, largest, Bound(3.0 * subspaces**0.5, 1.0)),
        ]
        got, found, _, left = backend.listed_top_k(listing, levels, levels[0], 9, None, 0, 5)
        assert not left.all()
        for query in np.flatnonzero(~left):
            best = np.lexsort((np.arange(len(numbers)), -scores[query], -values[query]))[:9]
            best = best[np.lexsort((best, -scores[query, best]))]
            assert found[query].tolist() == best.tolist()
            assert (sign * got[query]).tolist() == scores[query, best].tolist()


def test_a_listing_is_kept_part_by_part(backend: Backend) -> None:
    """Chunks that come, change and go: what was kept of the listing before tells nothing else than one made anew."""
    if not backend.passes_by:
        pytest.skip("has no listings")
    random = np.random.default_rng(8)
    packed = random.integers(0, 256, (1, 2, 64), np.uint8)
    centroids = backend.pq_rows([CodeChunk(packed, 20)], 2, 8)
    tables = random.integers(0, 63, (5, 2, 256)).astype(np.float32)

    def chunk(rows: int) -> tuple[CodeChunk, Any]:
        return CodeChunk(random.integers(0, 256, (2, 2, 64), np.uint8), rows), random.integers(0, 20, rows).astype(np.uint16)

    chunks = [chunk(70)]
    before = None
    for step in range(14):
        if step == 9:
            chunks[2] = chunk(90)
        elif step == 11:
            del chunks[0]
        else:
            chunks.append(chunk(65 + step))
        codes = backend.pq_rows([codes for codes, _ in chunks], 2, 8)
        rows = backend.list_rows([numbers for _, numbers in chunks], centroids)
        levels = [backend.pq_level(codes, tables, True, Bound(20.0, 1.0)), backend.list_level(rows, tables, True, Bound(125.0, 1.0))]
        judge = backend.pq_level(codes, tables, True, Bound(0.0, 1.0))
        listing, anew = backend.listing(rows, codes, before), backend.listing(rows, codes)
        assert listing is not None
        assert anew is not None
        kept, fresh = (backend.listed_top_k(one, levels, judge, 9, None, 0, 5) for one in (listing, anew))
        for one, other in zip(kept, fresh, strict=True):
            np.testing.assert_array_equal(one, other)
        everything = np.tile(np.arange(len(codes)), (5, 1))
        np.testing.assert_array_equal(kept[1], backend.pq_rescore(codes, tables, everything, 9, True)[1])
        before = listing
