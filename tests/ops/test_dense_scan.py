"""Dense scans against float64 and, to the bit, against the canonical model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import awkward
import numpy as np
import oracles
import pytest
from dense_cases import FLOATS, Array, check, chunks, make, make_queries
from hypothesis import given, strategies as st

from adaptive_search.backends.protocol import Backend
from adaptive_search.types import KINDS, METRICS, Kind, Metric

# --- scans --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", awkward.DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_dims(backend: Backend, kind: Kind, dims: int) -> None:
    rows, queries = make(kind, 230, dims), make_queries(21, dims)
    prepared = backend.dense_rows(kind, chunks(rows))
    for metric in METRICS:
        for count in (1, 6, 21):
            found = awkward.run(backend.dense_scan(prepared, queries[:count], 7, metric), prepared)
            check(found, metric, kind, queries[:count], rows, 7)


@pytest.mark.parametrize("sizes", [(10**9,), (1,), (63, 65), (4097, 1, 64)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 257])
def test_row_counts(backend: Backend, n: int, sizes: tuple[int, ...]) -> None:
    rows, queries = make("float32", n, 33), make_queries(5, 33)
    prepared = backend.dense_rows("float32", chunks(rows, sizes))
    assert len(prepared) == n
    for metric in METRICS:
        for k in (1, 10):
            found = awkward.run(backend.dense_scan(prepared, queries, k, metric), prepared)
            check(found, metric, "float32", queries, rows, k)


@pytest.mark.parametrize("sizes", [(10**9,), (4095, 4096, 4097), (5000, 64, 1)], ids=str)
@pytest.mark.parametrize("n", [4095, 4096, 4097, 9000])
def test_row_counts_around_a_visit(backend: Backend, n: int, sizes: tuple[int, ...]) -> None:
    rows, queries = make("float16", n, 20), make_queries(9, 20)
    prepared = backend.dense_rows("float16", chunks(rows, sizes))
    assert prepared.visits >= -(-n // 4096)
    for count in (1, 9):
        found = awkward.run(backend.dense_scan(prepared, queries[:count], 10, "ip"), prepared)
        check(found, "ip", "float16", queries[:count], rows, 10)


@pytest.mark.parametrize("k", [1, 2, 10, 100, 1000, 4200, 4300])
def test_k(backend: Backend, k: int) -> None:
    """The first of a larger k are the smaller k; beyond the rows there are, row -1 and score NaN."""
    rows, queries = make("float32", 4200, 24), make_queries(6, 24)
    prepared = backend.dense_rows("float32", chunks(rows, (1000, 1300)))
    for metric in METRICS:
        scan = backend.dense_scan(prepared, queries, k, metric)
        found = awkward.run(scan, prepared)
        assert found[0].shape == (6, k)
        check(found, metric, "float32", queries, rows, k)


def test_no_queries(backend: Backend) -> None:
    prepared = backend.dense_rows("float32", chunks(make("float32", 100, 8)))
    scores, numbers = awkward.run(backend.dense_scan(prepared, np.zeros((0, 8), np.float32), 3, "ip"), prepared)
    assert scores.shape == numbers.shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_batches_do_not_change_bits(backend: Backend, metric: Metric, kind: Kind) -> None:
    rows, queries = make(kind, 700, 65), make_queries(100, 65)
    prepared = backend.dense_rows(kind, chunks(rows, (300,)))
    alone = [awkward.run(backend.dense_scan(prepared, queries[i : i + 1], 10, metric), prepared) for i in range(100)]
    for count in awkward.BATCHES:
        scores, numbers = awkward.run(backend.dense_scan(prepared, queries[:count], 10, metric), prepared)
        np.testing.assert_array_equal(numbers, np.concatenate([one[1] for one in alone[:count]]))
        assert oracles.same_bits(scores, np.concatenate([one[0] for one in alone[:count]]))


# --- ties ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 100, 5000])
@pytest.mark.parametrize("distinct", [1, 7, 300])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_smaller_id(backend: Backend, metric: Metric, distinct: int, k: int) -> None:
    rng = np.random.default_rng(distinct)
    rows = make("float32", distinct, 16)[rng.integers(0, distinct, 5000)]
    ids = rng.permutation(5000).astype(np.int64) * 3
    queries = make_queries(5, 16)
    for given_ids in (None, awkward.read_only(ids)):
        prepared = backend.dense_rows("float32", chunks(rows, (1024, 3000)), given_ids)
        for count in (1, 5):
            found = awkward.run(backend.dense_scan(prepared, queries[:count], k, metric), prepared)
            check(found, metric, "float32", queries[:count], rows, k, given_ids)


def test_ties_between_zeros_of_either_sign(backend: Backend) -> None:
    """-0 and +0 are one score. A cosine that underflows is -0."""
    rows = np.zeros((40, 4), np.float32)
    rows[::3, 0] = -1e-38
    rows[::3, 1] = 3e38
    queries = np.array([[1e-30, 0, 1, 0]], np.float32).repeat(5, axis=0)
    prepared = backend.dense_rows("float32", chunks(rows))
    for count in (1, 5):
        found = awkward.run(backend.dense_scan(prepared, queries[:count], 9, "cosine"), prepared)
        check(found, "cosine", "float32", queries[:count], rows, 9)


def test_nearly_equal_rows(backend: Backend) -> None:
    """Differences in the last bits of the score decide: no filter's rounding may."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal(96).astype(np.float32)
    rows = np.nextafter(base, np.where(rng.random((5000, 96)) < 0.5, -9, 9).astype(np.float32))
    queries = np.concatenate([make_queries(16, 96), base[None]])
    prepared = backend.dense_rows("float32", chunks(rows, (2500,)))
    for metric in METRICS:
        for count in (2, 17):
            found = awkward.run(backend.dense_scan(prepared, queries[-count:], 50, metric), prepared)
            check(found, metric, "float32", queries[-count:], rows, 50)


@pytest.mark.parametrize("shape", ["ascending", "descending", "organ pipe", "saw"])
@pytest.mark.parametrize("k", [10, 6000, 12000])
def test_sorted_rows(backend: Backend, shape: str, k: int) -> None:
    n = 12000
    ramp = np.arange(n, dtype=np.float32)
    height = {"ascending": ramp, "descending": -ramp, "organ pipe": -np.abs(ramp - n // 2), "saw": ramp % 97}[shape]
    rows = np.stack([height, np.ones(n, np.float32)], axis=1)
    queries = np.array([[1, 0], [1, 0], [-1, 2], [2, 2]], np.float32)
    prepared = backend.dense_rows("float32", chunks(rows, (5000,)))
    found = awkward.run(backend.dense_scan(prepared, queries, k, "ip"), prepared)
    check(found, "ip", "float32", queries, rows, k)


# --- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-20, 1e-10, 1e10, 1e18, 1e25, 1e30])
@pytest.mark.parametrize("metric", METRICS)
def test_extreme_norms(backend: Backend, metric: Metric, scale: float) -> None:
    """All rows of one scale, and rows of that scale among ordinary ones and zeros. Sums that overflow keep their defined order."""
    dims = 40
    rows = make("float32", 600, dims)
    with np.errstate(under="ignore"):
        tiny_or_huge = (rows * np.float64(scale)).astype(np.float32)
    mixed = np.where(np.arange(600)[:, None] % 3 == 0, tiny_or_huge, rows)
    mixed[::50] = 0
    queries = make_queries(20, dims)
    queries[7] = 0
    queries[3] *= np.float32(min(max(scale, 1e-38), 1e30))
    for some in (tiny_or_huge, mixed):
        for norms in (None, oracles.canonical_norms(some)):
            prepared = backend.dense_rows("float32", chunks(some, (333,), norms=norms))
            for batch in (queries[7:8], queries[2:5], queries):
                found = awkward.run(backend.dense_scan(prepared, batch, 10, metric), prepared)
                check(found, metric, "float32", batch, some, 10, overflows=scale > 1e15)


@pytest.mark.parametrize("metric", METRICS)
def test_sums_that_overflow_both_ways_come_last(backend: Backend, metric: Metric) -> None:
    """Finite rows whose score overflows are no bad rows; NaN counts as the worst score."""
    rng = np.random.default_rng(8)
    rows = rng.choice(np.array([-3e38, 3e38, 1, 2, -1], np.float32), (300, 24))
    rows[rng.random(300) < 0.3] /= np.float32(1e30)
    queries = rng.choice(np.array([-3, 3, 0, 1, 2e8], np.float32), (20, 24))
    prepared = backend.dense_rows("float32", chunks(rows))
    for count in (1, 20):
        for k in (10, 300):
            scan = backend.dense_scan(prepared, queries[:count], k, metric)
            found = awkward.run(scan, prepared)
            assert scan.bad_row == -1
            check(found, metric, "float32", queries[:count], rows, k, overflows=True)


def test_zero_rows_and_zero_queries(backend: Backend) -> None:
    rows = make("float32", 300, 48)
    rows[::2] = 0
    queries = np.concatenate([np.zeros((2, 48), np.float32), make_queries(18, 48)])
    prepared = backend.dense_rows("float32", chunks(rows))
    for metric in METRICS:
        for batch in (queries[:1], queries):
            found = awkward.run(backend.dense_scan(prepared, batch, 200, metric), prepared)
            check(found, metric, "float32", batch, rows, 200)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_16_bit_pattern(backend: Backend, kind: Kind) -> None:
    """Subnormals, infinities and NaN included: 65,536 rows of one dim against the query 1."""
    patterns = np.arange(65536, dtype=np.uint16)
    rows = patterns[:, None].view(np.float16) if kind == "float16" else patterns[:, None]
    wide = oracles.widened(kind, rows)
    finite = np.isfinite(wide[:, 0])
    stored = np.ascontiguousarray(rows[finite])
    for count in (1, 16):
        queries = np.ones((count, 1), np.float32)
        out = np.empty((count, len(stored)), np.float32)
        prepared = backend.dense_rows(kind, chunks(stored))
        assert backend.dense_dot(prepared, queries, out, 0, len(stored)) == -1
        np.testing.assert_array_equal(out, np.broadcast_to(wide[finite, 0], out.shape))
    for number in np.flatnonzero(~finite)[:: 1 if kind == "bfloat16" else 64]:
        one = backend.dense_rows(kind, chunks(rows[number : number + 1]))
        scan = backend.dense_scan(one, np.ones((1, 1), np.float32), 1, "ip")
        scan.run(0, one.visits)
        assert scan.bad_row == 0


# --- bad rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", FLOATS)
def test_bad_rows_are_found(backend: Backend, kind: Kind, metric: Metric, count: int) -> None:
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    queries = make_queries(count, 37)
    queries[0] = 0  # 0 * infinity is NaN: still found
    for turn, bad in enumerate([(0,), (4999,), (63, 64), (4096, 77, 4500), (1300, 4097)]):
        rows = oracles.widened(kind, make(kind, 5000, 37))
        for i, number in enumerate(bad):
            rows[number, (turn * 7 + i * 5) % 37] = values[(turn + i) % 3]
        prepared = backend.dense_rows(kind, chunks(oracles.narrowed(kind, rows), (1200, 3000)))
        scan = backend.dense_scan(prepared, queries, 5, metric)
        assert scan.bad_row == -1
        scan.run(0, prepared.visits)
        assert scan.bad_row == min(bad)
        candidates = np.tile(np.array([[77, 4500, 1, 4999, -1, 63, 1300, 4097, 0]], np.int64), (count, 1))
        wanted = [number for number in bad if number in candidates]
        assert backend.dense_rescore(prepared, queries, candidates, 3, metric)[2] == min(wanted)
        out = np.empty((count, 5000), np.float32)
        assert backend.dense_dot(prepared, queries, out, 0, 5000) == min(bad)
        assert backend.dense_dot(prepared, queries, out, max(bad) + 1, 5000) == -1


@pytest.mark.parametrize("count", [1, 20])
def test_bad_rows_of_forks_are_merged(backend: Backend, count: int) -> None:
    rows = make("float32", 20000, 8)
    rows[[700, 13000]] = np.nan
    prepared = backend.dense_rows("float32", chunks(rows))
    scan = backend.dense_scan(prepared, make_queries(count, 8), 5, "l2")
    forks = [scan.fork() for _ in range(prepared.visits)]
    for visit, fork in enumerate(forks):
        fork.run(visit, visit + 1)
    assert sorted(fork.bad_row for fork in forks if fork.bad_row >= 0) == [700, 13000]
    for fork in reversed(forks):
        scan.merge(fork)
    assert scan.bad_row == 700


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_no_query_may_return_are_not_looked_at(backend: Backend, metric: Metric, count: int) -> None:
    rows, queries = make("float32", 500, 19), make_queries(count, 19)
    rows[[3, 400]] = np.nan
    allowed = np.ones(500, bool)
    allowed[3] = False
    prepared = backend.dense_rows("float32", chunks(rows))
    for mask in (allowed, np.tile(allowed, (count, 1))):
        scan = backend.dense_scan(prepared, queries, 5, metric, mask)
        scan.run(0, prepared.visits)
        assert scan.bad_row == 400
    allowed[400] = False
    for mask in (allowed, np.tile(allowed, (count, 1))):
        scan = backend.dense_scan(prepared, queries, 5, metric, mask)
        check(awkward.run(scan, prepared), metric, "float32", queries, np.nan_to_num(rows), 5, allowed=mask)
        assert scan.bad_row == -1


# --- masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 20, 33])
@pytest.mark.parametrize("metric", METRICS)
def test_masks(backend: Backend, metric: Metric, count: int) -> None:
    rng = np.random.default_rng(11)
    rows, queries = make("float32", 5000, 33), make_queries(count, 33)
    modelled = oracles.canonical_score(metric, queries, rows)
    prepared = backend.dense_rows("float32", chunks(rows, (4097,)))
    for share in (0.0, 0.002, 0.5, 1.0):
        for shape in ((5000,), (count, 5000)):
            allowed = rng.random(shape) < share
            expected = None
            for mask in (allowed, awkward.before_forbidden_page(allowed), awkward.of_any_true_bytes(allowed)):
                found = awkward.run(backend.dense_scan(prepared, queries, 10, metric, mask), prepared)
                if expected is None:
                    check(found, metric, "float32", queries, rows, 10, allowed=allowed, modelled=modelled)
                    expected = found
                np.testing.assert_array_equal(found[1], expected[1])
                assert oracles.same_bits(found[0], expected[0])


def test_mask_with_fewer_rows_than_k_for_some_queries(backend: Backend) -> None:
    rows, queries = make("int8", 300, 16), make_queries(6, 16)
    allowed = np.zeros((6, 300), bool)
    for query in range(6):
        allowed[query, 299 - 50 * query :: 7][: 3 * query] = True
    prepared = backend.dense_rows("int8", chunks(rows))
    found = awkward.run(backend.dense_scan(prepared, queries, 10, "ip", allowed), prepared)
    check(found, "ip", "int8", queries, rows, 10, allowed=allowed)


# --- forks --------------------------------------------------------------------------------------------------------------


@pytest.mark.unemulated
@pytest.mark.parametrize("k", [1, 10, 3000])
@pytest.mark.parametrize("metric", METRICS)
def test_forks_over_interleaved_visits(backend: Backend, metric: Metric, k: int) -> None:
    rows, queries = make("bfloat16", 30000, 12), make_queries(18, 12)
    rows[20000:] = rows[:10000]
    prepared = backend.dense_rows("bfloat16", chunks(rows, (9000, 4096, 100)))
    whole = awkward.run(backend.dense_scan(prepared, queries, k, metric), prepared)
    scan = backend.dense_scan(prepared, queries, k, metric)
    forks = [scan.fork(), scan.fork(), scan]
    for visit in range(prepared.visits):
        forks[visit % 3].run(visit, visit + 1)
    forks[0].merge(forks[1])
    scan.merge(forks[0])
    scores, numbers = scan.finish()
    np.testing.assert_array_equal(numbers, whole[1])
    assert oracles.same_bits(scores, whole[0])
    check(whole, metric, "bfloat16", queries, rows, k)


def test_forks_look_for_what_is_better_than_all_of_them_have(backend: Backend) -> None:
    """One that begins when others have run finds nothing where these have found all."""
    rows, queries = make("float32", 5 * 4096, 16), make_queries(7, 16)
    rows[:210] = np.tile(queries, (30, 1))  # The first visit is that of the first rows.
    prepared = backend.dense_rows("float32", chunks(rows))
    scan = backend.dense_scan(prepared, queries, 5, "l2")
    fork = scan.fork()
    scan.run(0, 1)
    fork.run(1, prepared.visits)
    assert (fork.finish()[1] == -1).all()
    scan.merge(fork)
    scores, numbers = scan.finish()
    whole = awkward.run(backend.dense_scan(prepared, queries, 5, "l2"), prepared)
    np.testing.assert_array_equal(numbers, whole[1])
    assert oracles.same_bits(scores, whole[0])


@pytest.mark.unemulated
def test_threads(backend: Backend) -> None:
    """Forks of one scan run at the same time, and so do scans over the same rows."""
    rows, queries = make("float32", 40000, 16), make_queries(10, 16)
    prepared = backend.dense_rows("float32", chunks(rows, (10000,)))
    whole = awkward.run(backend.dense_scan(prepared, queries, 20, "ip"), prepared)

    def one_scan(_: int) -> tuple[Array, Array]:
        scan = backend.dense_scan(prepared, queries, 20, "ip")
        forks = [scan.fork() for _ in range(4)]

        def work(turn: int) -> None:
            for visit in range(turn, prepared.visits, 4):
                forks[turn].run(visit, visit + 1)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        for fork in forks:
            scan.merge(fork)
        found: tuple[Array, Array] = scan.finish()
        return found

    with ThreadPoolExecutor(3) as pool:
        for scores, numbers in pool.map(one_scan, range(6)):
            np.testing.assert_array_equal(numbers, whole[1])
            assert oracles.same_bits(scores, whole[0])


# --- anything -----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_any_shape(backend: Backend, data: st.DataObject) -> None:
    kind, metric = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(METRICS))
    n, dims, count = data.draw(st.integers(0, 300)), data.draw(st.integers(1, 80)), data.draw(st.integers(1, 40))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, max(dims - 1, 1)), max_size=7)) - {dims}))
    sizes = tuple(data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=3)))
    k, levels = data.draw(st.integers(1, 320)), data.draw(st.sampled_from([2, 5, 1000]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = oracles.narrowed(kind, rng.integers(-levels, levels + 1, (n, dims)) / (1 if kind == "int8" else 8))
    queries = (rng.integers(-levels, levels + 1, (count, dims)) / 8).astype(np.float32)
    allowed = data.draw(st.sampled_from([None, rng.random(n) < 0.5, rng.random((count, n)) < 0.3]))
    ids = data.draw(st.sampled_from([None, rng.permutation(n).astype(np.int64)]))
    place = awkward.ROW_PLACES[data.draw(st.sampled_from(sorted(awkward.ROW_PLACES)))]
    prepared = backend.dense_rows(kind, chunks(rows, sizes, cuts, place), ids)
    found = awkward.run(backend.dense_scan(prepared, queries, k, metric, allowed), prepared)
    check(found, metric, kind, queries, rows, k, ids, allowed)


@pytest.mark.parametrize("scale", [1e-36, 1e-38, 1e-39, 1e-41, 1e-44])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_tiny_queries_in_a_batch(backend: Backend, kind: Kind, scale: float) -> None:
    """Arithmetic that takes subnormal numbers for zero must not decide."""
    rows, queries = make(kind, 1000, 64), (make_queries(16, 64) * np.float32(scale)).astype(np.float32)
    prepared = backend.dense_rows(kind, chunks(rows))
    for metric in METRICS:
        found = awkward.run(backend.dense_scan(prepared, queries, 10, metric), prepared)
        alone = [awkward.run(backend.dense_scan(prepared, query[None], 10, metric), prepared) for query in queries]
        np.testing.assert_array_equal(found[1], np.concatenate([numbers for _, numbers in alone]))
        check(found, metric, kind, queries, rows, 10, overflows=True)
