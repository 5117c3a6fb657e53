"""4-bit codes of rows with scales: what sums of entries say of scores, to the bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import awkward
import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from test_pq import TABLES, WIDER, blocked, make, make_tables, rounded_at_its_worst, steep, whole

from adaptive_search.backends.protocol import Backend, Bound, CodeChunk, Rows, Scaling

Array = NDArray[Any]

SUBSPACES = (1, 2, 7, 8, 9, 32, 33, 97)


class Scaled(NamedTuple):
    """Codes (N, M), one an entry, with scales and terms of every row."""

    codes: Array
    scales: Array
    terms: Array

    def rows(self, backend: Backend, sizes: tuple[int, ...] = (64 * 10**6,), ids: Any = None, place: Any = None) -> Rows:
        put = place or np.copy
        parts = awkward.cut(len(self.codes), sizes)
        chunks = [CodeChunk(put(blocked(self.codes[p], 4)), len(self.codes[p]), put(self.scales[p]), put(self.terms[p])) for p in parts]
        return backend.pq_rows(chunks, self.codes.shape[1], 4, ids)

    def scores(self, tables: Array, scaling: Scaling, largest: bool) -> Array:
        return oracles.canonical_scaled(oracles.canonical_adc(tables, self.codes), scaling, self.scales, self.terms, largest)


def made(n: int, subspaces: int, seed: int = 0) -> Scaled:
    rng = np.random.default_rng(seed)
    scales, terms = rng.lognormal(0, 0.5, n).astype(np.float32), (5 * rng.standard_normal(n) + 3).astype(np.float32)
    return Scaled(make(n, subspaces, 4, seed), scales, terms)


def terms(count: int, seed: int = 3) -> Scaling:
    rng = np.random.default_rng(seed)
    offset, base, weight = (rng.standard_normal(count) * size for size in (10, 30, 2))
    return Scaling(offset, base, rng.lognormal(-3, 1, count), weight)


def whole_tables(count: int, subspaces: int) -> Array:
    return whole(make_tables(count, subspaces, 4), 0, 63)


def check(backend: Backend, data: Scaled, tables: Array, scaling: Scaling, k: int, counts: tuple[int, ...], **options: Any) -> None:
    """Scans with the first so many queries, for the largest and for the smallest scores."""
    ids, allowed = options.get("ids"), options.pop("allowed", None)
    prepared = data.rows(backend, **options)
    for count in counts:
        mask = allowed if allowed is None or allowed.ndim == 1 else allowed[:count]
        own = scaling.part(slice(0, count))
        for largest in (True, False):
            found = awkward.run(backend.pq_scan(prepared, tables[:count], k, largest, mask, own), prepared)
            expected = oracles.best(data.scores(tables[:count], own, largest), k, ids=ids, largest=largest, allowed=mask)
            np.testing.assert_array_equal(found[1], expected[1])
            assert found[0].dtype == np.float32
            assert oracles.same_bits(found[0], expected[0])


@pytest.mark.parametrize("subspaces", SUBSPACES)
def test_subspaces(backend: Backend, subspaces: int) -> None:
    for tables in (whole_tables(21, subspaces), make_tables(21, subspaces, 4)):
        check(backend, made(230, subspaces), tables, terms(21), 7, (1, 6, 21), sizes=(128, 64))


@pytest.mark.parametrize("n", [0, 1, 2, 31, 33, 63, 64, 65, 4095, 4097, 9000])
def test_row_counts(backend: Backend, n: int) -> None:
    for sizes in ((64 * 10**6,), (64, 4096, 128)):
        check(backend, made(n, 5), whole_tables(9, 5), terms(9), 10, (1, 9), sizes=sizes)


@pytest.mark.parametrize("count", awkward.BATCHES)
def test_batches(backend: Backend, count: int) -> None:
    check(backend, made(700, 13), whole_tables(100, 13), terms(100), 10, (count,), sizes=(320,))


@pytest.mark.parametrize("subspaces", [1040, 1041, 3000])
def test_many_subspaces_do_not_overflow(backend: Backend, subspaces: int) -> None:
    data = made(400, subspaces)
    check(backend, data, np.full((1, subspaces, 16), 63, np.float32), terms(1), 20, (1,))
    check(backend, data, whole_tables(5, subspaces), terms(5), 20, (5,))


@pytest.mark.parametrize("k", [1, 10, 5001])
def test_ties_go_to_the_smaller_id(backend: Backend, k: int) -> None:
    rng = np.random.default_rng(k)
    seven, chosen = made(7, 6), rng.integers(0, 7, 5000)
    data = Scaled(*(values[chosen] for values in seven))
    for ids in (None, awkward.read_only(rng.permutation(5000).astype(np.int64) * 5)):
        check(backend, data, whole_tables(5, 6), terms(5), k, (1, 5), sizes=(1024, 2048), ids=ids)


@pytest.mark.parametrize("shape", TABLES)
def test_tables_of_all_shapes(backend: Backend, shape: str) -> None:
    with np.errstate(all="ignore"):
        check(backend, made(1500, 9), TABLES[shape](make_tables(18, 9, 4)), terms(18), 25, (1, 18))


@pytest.mark.parametrize("wide", [0, 20, 47])
def test_steep_ranges(backend: Backend, wide: int) -> None:
    for ratio in (1e3, 1e6):
        check(backend, made(2000, 48), steep(make_tables(8, 48, 4), wide, ratio), terms(8), 20, (1, 4, 8))


@pytest.mark.parametrize("wider", WIDER, ids=str)
def test_rounding_at_its_worst(backend: Backend, wider: dict[int, int]) -> None:
    tables, codes = rounded_at_its_worst(wider, 4)
    data = Scaled(codes, np.ones(len(codes), np.float32), np.zeros(len(codes), np.float32))
    none = np.zeros(len(tables))
    for sign in (1, -1):
        check(backend, data, sign * tables, Scaling(none, none, none + 1, none), 20, (1, len(tables)))


ROWS = {
    "equal": lambda x: np.ones_like(x),
    "zero": lambda x: np.zeros_like(x),
    "zero but for one": lambda x: np.where(np.arange(len(x)) == 700, np.float32(2), np.float32(0)),
    "of all sizes": lambda x: np.logspace(-44, 29.9, len(x)).astype(np.float32),
    "of both signs": lambda x: np.where(np.arange(len(x)) % 2, x, -x),
    "nearly equal": lambda x: np.nextafter(np.float32(1), np.sign(x - np.median(x))).astype(np.float32),
}

TERMS = {
    "plain": lambda t: t,
    "a small step": lambda t: t._replace(step=t.step * 1e-30),
    "a large step": lambda t: t._replace(step=t.step * 1e35),
    "a base that dwarfs the steps": lambda t: t._replace(base=t.base * 1e9),
    "an offset that dwarfs all": lambda t: t._replace(offset=t.offset * 1e30),
    "no offset": lambda t: t._replace(offset=t.offset * 0),
    "far below zero": lambda t: t._replace(base=t.base - 1e6),
    "no weight": lambda t: t._replace(weight=t.weight * 0),
    "a small weight": lambda t: t._replace(weight=t.weight * 1e-41),
    "a weight beyond float32": lambda t: t._replace(weight=t.weight * 1e60),
    "a weight that dwarfs all": lambda t: t._replace(weight=t.weight * 1e9),
}


@pytest.mark.parametrize("said", TERMS)
@pytest.mark.parametrize("shape", ROWS)
def test_what_float32_cannot_tell_apart(backend: Backend, shape: str, said: str) -> None:
    """Whether a row passes is decided in float32, of what may overflow, underflow or round to the same; its score is not."""
    data = made(1500, 9)
    for odd in (data._replace(scales=np.abs(ROWS[shape](data.scales))), data._replace(terms=ROWS[shape](data.terms))):
        for tables in (whole_tables(5, 9), make_tables(5, 9, 4)):
            check(backend, odd, tables, TERMS[said](terms(5)), 20, (1, 5))


def test_limits_beyond_float32(backend: Backend) -> None:
    """What thresholds and terms come to in steps of a query is infinite there; their scores are not."""
    data = made(4200, 9)
    far = data._replace(terms=np.float32(-6e18) * (1 + np.abs(data.terms) / 100))
    check(backend, far, make_tables(3, 9, 4), Scaling(np.zeros(3), np.zeros(3), np.full(3, 1e-11), np.full(3, -1.7e11)), 7, (1, 3))


@pytest.mark.parametrize("order", [1, -1])
def test_sorted_rows(backend: Backend, order: int) -> None:
    data = made(9000, 5)
    tables, scaling = whole_tables(6, 5), terms(6)
    ranks = np.argsort(data.scores(tables[:1], scaling.part(slice(0, 1)), True)[0], kind="stable")[::order]
    check(backend, Scaled(*(values[ranks] for values in data)), tables, scaling, 10, (1, 6), sizes=(4992,))


def test_distances_too_small_for_float32_are_plus_zero(backend: Backend) -> None:
    data = made(130, 5)._replace(scales=np.full(130, 1e-30, np.float32), terms=np.zeros(130, np.float32))
    scaling = Scaling(*np.zeros((2, 3)), np.float64([1e-33, 1e-30, 1e-20]), np.ones(3))
    rows, tables = data.rows(backend), whole_tables(3, 5)
    for found in (
        awkward.run(backend.pq_scan(rows, tables, 9, False, None, scaling), rows),
        backend.pq_rescore(rows, tables, np.tile(np.arange(130), (3, 1)), 9, False, scaling),
    ):
        assert found[0].tobytes() == np.zeros((3, 9), np.float32).tobytes()
        np.testing.assert_array_equal(found[1], np.tile(np.arange(9), (3, 1)))


def test_rows_without_terms(backend: Backend) -> None:
    data, tables, scaling = made(700, 9), whole_tables(5, 9), terms(5)
    chunk = CodeChunk(blocked(data.codes, 4), 700, data.scales)
    rows = backend.pq_rows([chunk], 9, 4)
    expected = oracles.best(oracles.canonical_scaled(oracles.canonical_adc(tables, data.codes), scaling, data.scales, None, True), 20)
    for found in (
        awkward.run(backend.pq_scan(rows, tables, 20, True, None, scaling), rows),
        backend.pq_rescore(rows, tables, np.tile(np.arange(700), (5, 1)), 20, True, scaling),
    ):
        np.testing.assert_array_equal(found[1], expected[1])
        assert oracles.same_bits(found[0], expected[0])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_masks(backend: Backend, share: float) -> None:
    rng = np.random.default_rng(7)
    for shape in ((5000,), (20, 5000)):
        mask = awkward.before_forbidden_page(rng.random(shape) < share)
        check(backend, made(5000, 5), whole_tables(20, 5), terms(20), 10, (1, 3, 20), sizes=(4096,), allowed=mask)


@pytest.mark.parametrize("place", awkward.FLAT_PLACES)
def test_places(backend: Backend, place: str) -> None:
    put = awkward.FLAT_PLACES[place]
    for subspaces in (1, 2, 33):
        tables, scaling = put(whole_tables(19, subspaces)), Scaling(*map(put, terms(19)))
        check(backend, made(135, subspaces), tables, scaling, 5, (1, 4, 19), sizes=(64,), place=put)


@pytest.mark.parametrize("largest", [True, False])
def test_rescore_and_level(backend: Backend, largest: bool) -> None:
    rng = np.random.default_rng(4)
    data, tables, scaling = made(3000, 11), whole_tables(9, 11), terms(9)
    prepared = data.rows(backend, (64, 1024))
    scores = data.scores(tables, scaling, largest)
    candidates = rng.integers(-1, 3000, (9, 100))
    allowed = np.zeros((9, 3001), bool)
    np.put_along_axis(allowed, candidates, True, axis=1)
    for k in (1, 10, 200):
        found = backend.pq_rescore(prepared, tables, candidates, k, largest, scaling)
        expected = oracles.best(scores, k, largest=largest, allowed=allowed[:, :3000])
        np.testing.assert_array_equal(found[1], expected[1])
        assert oracles.same_bits(found[0], expected[0])
    level = backend.pq_level(prepared, tables, largest, Bound(0.0, 1.0), True, scaling)
    found = awkward.run(backend.level_scan(level, 12), prepared)
    expected = oracles.best(scores, 12, largest=largest)
    np.testing.assert_array_equal(found[1], expected[1])
    assert oracles.same_bits(found[0], expected[0])
    # A cascade of this level alone: the first stage says of itself what the second one does.
    scan = awkward.run(backend.cascade_scan([level], level, 12), prepared)
    np.testing.assert_array_equal(scan[1], expected[1])


@given(st.data())
def test_any_shape(backend: Backend, data: st.DataObject) -> None:
    n, subspaces, count = data.draw(st.integers(0, 300)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    sizes = tuple(64 * size for size in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = data.draw(st.sampled_from([1, 3, 31, 1000]))
    tables = rng.integers(-levels, levels + 1, (count, subspaces, 16)).astype(np.float32)
    codes = made(n, subspaces, int(rng.integers(1000)))
    coarse = codes._replace(scales=np.ceil(codes.scales), terms=np.ceil(codes.terms))
    offset, base, step, weight = terms(count)
    scaling = Scaling(np.round(offset), np.round(base), data.draw(st.sampled_from([np.ones(count), step])), np.round(weight))
    allowed = data.draw(st.sampled_from([None, rng.random(n) < 0.5, rng.random((count, n)) < 0.3]))
    ids = data.draw(st.sampled_from([None, rng.permutation(n).astype(np.int64)]))
    check(backend, coarse, tables, scaling, data.draw(st.integers(1, 320)), (count,), sizes=sizes, ids=ids, allowed=allowed)
