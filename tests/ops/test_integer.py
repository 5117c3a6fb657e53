"""int8 rows with int8 queries: exact integers, then one formula, to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import awkward
import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from adaptive_search.backends.protocol import Backend, DenseChunk, IntegerMetric

Array = NDArray[Any]

METRICS: tuple[IntegerMetric, ...] = ("ip", "l2", "ip_scaled", "l2_scaled", "l2_exact")
RANGES = {"7 bits": (-64, 64), "8 bits": (-128, 128), "extremes": (-128, -127)}
"""Codes of queries in -64..63 may take a faster way."""


def make(n: int, dims: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, (n, dims)).astype(np.int8)


class Problem:
    """Queries with their factors, and rows cut into chunks and pieces."""

    def __init__(
        self,
        backend: Backend,
        rows: Array,
        codes: Array,
        sizes: tuple[int, ...] = (10**9,),
        cuts: tuple[int, ...] = (),
        place: Any = None,
        ids: Array | None = None,
        factors: Array | None = None,
    ) -> None:
        rng = np.random.default_rng(5)
        self.backend, self.rows, self.codes, self.ids = backend, rows, codes, ids
        self.factors = rng.standard_normal(len(codes)).astype(np.float32) if factors is None else factors
        self.offsets = rng.standard_normal(len(codes)).astype(np.float32)
        self.norms2 = np.square(rows.astype(np.float32)).sum(axis=1) * np.float32(0.37)
        self.scales = np.exp(rng.standard_normal(len(rows)), dtype=np.float32)
        place = place or (lambda array: array)
        edges = [0, *cuts, rows.shape[1]]
        self.parts = awkward.cut(len(rows), sizes)
        self.chunks = [
            tuple(place(np.ascontiguousarray(rows[part, first:last])) for first, last in itertools.pairwise(edges)) for part in self.parts
        ]

    def prepared(self, metric: str) -> Any:
        return self.backend.dense_rows(
            "int8",
            [
                DenseChunk(
                    pieces,
                    self.norms2[part].copy() if metric in ("l2", "l2_scaled") else None,
                    self.scales[part].copy() if metric in ("ip_scaled", "l2_scaled") else None,
                )
                for pieces, part in zip(self.chunks, self.parts, strict=True)
            ],
            self.ids,
        )

    def check(self, metric: IntegerMetric, k: int, count: int, allowed: Array | None = None) -> None:
        """A scan with the first ``count`` queries."""
        prepared = self.prepared(metric)
        scan = self.backend.integer_scan(
            prepared, self.codes[:count], self.factors[:count], self.offsets[:count], k, metric, None if allowed is None else allowed
        )
        assert scan.bad_row == -1
        found = awkward.run(scan, prepared)
        self.compare(found, metric, k, count, allowed)

    def check_rescored(self, metric: IntegerMetric, k: int, candidates: Array) -> None:
        found = self.backend.integer_rescore(self.prepared(metric), self.codes, self.factors, self.offsets, candidates, k, metric)
        allowed = np.zeros((len(self.codes), len(self.rows)), bool)
        for query, some in enumerate(candidates):
            allowed[query, some[some >= 0]] = True
        self.compare(found, metric, k, len(self.codes), allowed)

    def compare(self, found: tuple[Array, Array], metric: IntegerMetric, k: int, count: int, allowed: Array | None) -> None:
        norms2 = self.norms2 if metric in ("l2", "l2_scaled") else None
        scales = self.scales if metric in ("ip_scaled", "l2_scaled") else None
        expected = oracles.canonical_integer(
            metric, self.codes[:count], self.rows, self.factors[:count], self.offsets[:count], norms2, scales
        )
        scores, numbers = oracles.best(expected, k, ids=self.ids, largest=metric in ("ip", "ip_scaled"), allowed=allowed)
        np.testing.assert_array_equal(found[1], numbers)
        assert oracles.same_bits(found[0], scores)


@pytest.mark.parametrize("dims", awkward.DIMS)
@pytest.mark.parametrize("values", RANGES)
def test_dims(backend: Backend, values: str, dims: int) -> None:
    codes = np.random.default_rng(1).integers(*RANGES[values], (21, dims)).astype(np.int8)
    problem = Problem(backend, make(230, dims), codes)
    for metric in METRICS:
        for count in (1, 6, 21):
            problem.check(metric, 7, count)


@pytest.mark.parametrize("query", [-128, -64, 63, 127])
@pytest.mark.parametrize("dims", [1023, 4096, 32768])
def test_extremes_do_not_overflow(backend: Backend, dims: int, query: int) -> None:
    """Sums reach 2**29, squares of differences almost 2**31."""
    rows = np.full((70, dims), -128, np.int8)
    rows[::2] = 127
    rows[::7, ::2] = 127
    rows[::5, ::2] *= -1
    codes = np.full((18, dims), query, np.int8)
    codes[3, ::2] = -128 if query != -128 else 127
    codes[4] = make(1, dims)[0]
    problem = Problem(backend, rows, codes)
    for metric in METRICS:
        for count in (1, 18):
            problem.check(metric, 12, count)


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5, 7, 9, 31, 33, 64, 67, 127, 769])
def test_neighbours_at_the_limit_of_16_bits(backend: Backend, dims: int) -> None:
    """Rows that just fit a multiplication whose pairs of products share 16 bits, and rows that just do not, at any place."""
    rng = np.random.default_rng(dims)
    rows = rng.choice(np.int8([-64, 64]), (120, dims))
    for number, place in enumerate((0, 1, dims // 2, dims - 4, dims - 3, dims - 2)):
        if 0 <= place < dims - 1:
            rows[7 * number, :] = 0
            rows[7 * number, place : place + 2] = 127
            rows[7 * number + 50, place : place + 2] = (-128, -128)
    rows[100:106] = 63
    rows[103, dims // 2] = 66
    codes = np.full((34, dims), 127, np.int8)
    codes[1], codes[2:9], codes[20] = -128, rng.integers(-128, 128, (7, dims)), make(1, dims)[0]
    for cuts in ((), (dims // 2,)) if dims > 2 else ((),):
        problem = Problem(backend, rows, codes, (75,), cuts)
        for metric in METRICS:
            for count in (1, 16, 34):
                problem.check(metric, 9, count)


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 4095, 4096, 4097, 9000])
def test_row_counts(backend: Backend, n: int) -> None:
    for sizes in ((10**9,), (64, 4097, 1000)):
        problem = Problem(backend, make(n, 24), make(9, 24, 1), sizes)
        for metric in METRICS:
            for count in (1, 9):
                problem.check(metric, 10, count)


@pytest.mark.parametrize("k", [1, 10, 100, 5000, 5001])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_smaller_id(backend: Backend, metric: IntegerMetric, k: int) -> None:
    """Few dims of few values tie everywhere; so does a factor so small that products vanish in the rounding."""
    rng = np.random.default_rng(6)
    ids = rng.permutation(5000).astype(np.int64)
    rows, codes = rng.integers(-1, 2, (5000, 3)).astype(np.int8), rng.integers(-1, 2, (6, 3)).astype(np.int8)
    for factors in (None, np.float32([1, -1, 0, 1e-9, 1e-8, 3])):
        for given_ids in (None, ids):
            Problem(backend, rows, codes, (2000,), ids=given_ids, factors=factors).check(metric, k, 6)
    Problem(backend, rows, codes, (2000,), ids=ids).check(metric, k, 1)


@pytest.mark.parametrize("count", awkward.BATCHES)
def test_batches(backend: Backend, count: int) -> None:
    problem = Problem(backend, make(700, 65), make(100, 65, 1), (300,))
    for metric in METRICS:
        problem.check(metric, 10, count)


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_masks(backend: Backend, share: float, count: int) -> None:
    rng = np.random.default_rng(7)
    problem = Problem(backend, make(5000, 33), make(count, 33, 1), (4097,))
    for shape in ((5000,), (count, 5000)):
        allowed = rng.random(shape) < share
        for metric in METRICS:
            for place in (awkward.before_forbidden_page, awkward.of_any_true_bytes):
                problem.check(metric, 10, count, place(allowed))


@pytest.mark.parametrize("place", awkward.ROW_PLACES)
def test_places_of_rows(backend: Backend, place: str) -> None:
    for dims in (1, 15, 31, 32, 63, 64, 65, 100):
        problem = Problem(backend, make(135, dims), make(19, dims, 1), (65,), place=awkward.ROW_PLACES[place])
        candidates = np.tile(np.array([[134, 0, 64, 65, 7]], np.int64), (19, 1))
        for metric in METRICS:
            for count in (1, 4, 19):
                problem.check(metric, 5, count)
            problem.check_rescored(metric, 5, candidates)


@pytest.mark.parametrize("place", awkward.FLAT_PLACES)
def test_places_of_queries(backend: Backend, place: str) -> None:
    put = awkward.FLAT_PLACES[place]
    for count in (1, 2, 5, 17):
        problem = Problem(backend, make(135, 33), make(count, 33, 1))
        problem.codes, problem.factors, problem.offsets = put(problem.codes), put(problem.factors), put(problem.offsets)
        for metric in METRICS:
            problem.check(metric, 5, count)


@pytest.mark.parametrize("cuts", [(1,), (31,), (32,), (33, 64), (3, 5, 11, 20, 21, 50, 64)], ids=str)
def test_pieces(backend: Backend, cuts: tuple[int, ...]) -> None:
    for place in (None, awkward.before_forbidden_page, awkward.strided):
        problem = Problem(backend, make(200, 75), make(18, 75, 1), (130,), cuts, place)
        for metric in METRICS:
            for count in (1, 18):
                problem.check(metric, 6, count)
            problem.check_rescored(metric, 3, np.tile(np.array([[199, 3, 130]], np.int64), (18, 1)))


@pytest.mark.parametrize("metric", METRICS)
def test_rescore(backend: Backend, metric: IntegerMetric) -> None:
    rng = np.random.default_rng(4)
    rows = make(3000, 50)
    rows[1000:2000] = rows[:1000]
    problem = Problem(backend, rows, make(9, 50, 1), (1, 999, 64), ids=rng.permutation(3000).astype(np.int64))
    for width in (0, 1, 7, 100, 4000):
        candidates = rng.integers(-1, 3000, (9, width))
        candidates[2] = -1
        candidates[3] = 17
        for k in (1, 10, 4000):
            problem.check_rescored(metric, k, candidates)


def test_forks(backend: Backend) -> None:
    problem = Problem(backend, make(30000, 5), make(6, 5, 1), (9000, 4096, 100))
    for metric in METRICS:
        prepared = problem.prepared(metric)
        scan = backend.integer_scan(prepared, problem.codes, problem.factors, problem.offsets, 300, metric)
        forks = [scan.fork(), scan]
        for visit in range(prepared.visits):
            forks[visit % 2].run(visit, visit + 1)
        scan.merge(forks[0])
        problem.compare(scan.finish(), metric, 300, 6, None)


@given(st.data())
def test_any_shape(backend: Backend, data: st.DataObject) -> None:
    n, dims, count = data.draw(st.integers(0, 300)), data.draw(st.integers(1, 150)), data.draw(st.integers(1, 40))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, max(dims - 1, 1)), max_size=7)) - {dims}))
    sizes = tuple(data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=3)))
    low = data.draw(st.sampled_from([-128, -64, -2]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, codes = (rng.integers(low, -low, (m, dims)).astype(np.int8) for m in (n, count))
    allowed = data.draw(st.sampled_from([None, rng.random(n) < 0.5, rng.random((count, n)) < 0.3]))
    ids = data.draw(st.sampled_from([None, rng.permutation(n).astype(np.int64)]))
    place = awkward.ROW_PLACES[data.draw(st.sampled_from(sorted(awkward.ROW_PLACES)))]
    problem = Problem(backend, rows, codes, sizes, cuts, place, ids)
    problem.check(data.draw(st.sampled_from(METRICS)), data.draw(st.integers(1, 320)), count, allowed)


@pytest.mark.parametrize("dim", [1, 7, 33, 384])
def test_queries_as_integers(backend: Backend, dim: int) -> None:
    """The nearest whole numbers of steps of the largest product; ties to even."""
    rng = np.random.default_rng(dim)
    queries = rng.standard_normal((9, dim)).astype(np.float32)
    scales = np.abs(rng.standard_normal(dim)).astype(np.float32)
    queries[1], queries[2] = 0, -1e-38
    queries[3] *= np.float32(1e30)
    queries[4], scales[::5] = 63 / np.maximum(np.arange(dim), 1), 0
    queries[5, 0] = 3e38
    codes, steps = np.empty((9, dim), np.int8), np.empty(9)
    backend.integer_queries(queries, scales, codes, steps)
    products = queries.astype(np.float64) * scales.astype(np.float64)
    np.testing.assert_array_equal(steps, np.abs(products).max(axis=1) / 63)
    exact = np.divide(products, steps[:, None], out=np.zeros_like(products), where=steps[:, None] > 0)
    np.testing.assert_array_equal(codes, np.round(exact))
    assert (np.abs(codes).max(axis=1) == np.where(steps > 0, 63, 0)).all()
