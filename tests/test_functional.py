"""The functional API on every backend: what scores mean and their bits, ties, shapes, masks, dtypes, use in place, errors."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from ops import awkward

import adaptive_search as asx
from adaptive_search import arrays, flat
from adaptive_search.backends.protocol import Backend
from adaptive_search.types import MAX_DIM

METRICS = ("ip", "cosine", "l2")
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
on_every_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
few_examples = settings(on_every_backend, max_examples=max(1, on_every_backend.max_examples // 3))


def drawn(rng: np.random.Generator, n: int, dim: int, kind: str = "float32") -> Any:
    """Rows with repeats, zeros and negative zeros, so that ties and zero vectors happen."""
    rows = rng.standard_normal((n, dim))
    if kind == "int8":
        rows = np.clip(np.rint(rows * 60), -128, 127)
    if n > 3:
        rows[rng.integers(n, size=n // 4)] = rows[rng.integers(n, size=n // 4)]
        rows[rng.integers(n)] = 0
        rows[rng.integers(n)] = -0.0
    return rows.astype(DTYPES[kind])


def expected(metric: str, queries: Any, rows: Any, k: int, allowed: Any = None) -> asx.Neighbors:
    """The canonical answer: (Q, min(k, m))."""
    queries, rows = queries.astype(np.float32), rows.astype(np.float32)
    counts = np.count_nonzero(np.ones(len(rows), bool) if allowed is None else allowed, axis=-1)
    width = min(k, int(np.max(counts, initial=0)))
    scores, ids = oracles.best(oracles.canonical_score(metric, queries, rows), width, largest=metric != "l2", allowed=allowed)
    return asx.Neighbors(ids, scores)


def assert_same(found: asx.Neighbors, wanted: asx.Neighbors) -> None:
    assert found.ids.dtype == np.int64
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert oracles.same_bits(np.ascontiguousarray(found.scores), np.ascontiguousarray(wanted.scores))


# --- top_k: answers -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("metric", METRICS)
def test_plain_arguments_are_looked_at_by_the_backend(backend: Backend, metric: Any) -> None:
    rng = np.random.default_rng(6)
    wide, batch = drawn(rng, 200, 40), rng.standard_normal((32, 33)).astype(np.float32)
    for rows in (wide[:, :33], wide[::-3, :33], np.ascontiguousarray(wide[:9, :33])):
        for queries in (batch, batch[0], batch[:1]):
            plain = backend.plain_top_k(queries, rows, 12, metric, 1 << 20)
            assert (plain is None) == (backend.name == "numba")
            # mask= goes the other way.
            found = asx.top_k(queries, rows, 12, metric=metric, mask=np.ones(len(rows), bool))
            assert_same(asx.top_k(queries, rows, 12, metric=metric), found)
            assert_same(asx.top_k(queries, rows, 12, metric=metric, threads=2), found)
            if plain is not None:
                assert_same(asx.Neighbors(*plain), found)


def test_plain_codes_are_looked_at_by_the_backend(backend: Backend) -> None:
    rng = np.random.default_rng(7)
    for width in (1, 5, 8, 33, 64):
        wide, batch = rng.integers(0, 256, (200, width + 7), np.uint8), rng.integers(0, 256, (32, width), np.uint8)
        for codes in (wide[:, :width], wide[::-3, 7:], np.ascontiguousarray(wide[:9, :width])):
            for queries in (batch, batch[0], batch[:1]):
                plain = backend.plain_hamming_top_k(queries, codes, 12, 1 << 20)
                assert (plain is None) == (backend.name == "numba")
                found = asx.hamming_top_k(queries, codes, 12, bits=8 * width)
                assert_same(asx.hamming_top_k(queries, codes, 12), found)
                assert_same(asx.hamming_top_k(queries, codes, 12, threads=2), found)
                if plain is not None:
                    assert_same(asx.Neighbors(*plain), found)


class Subclass(np.ndarray):
    pass


QUERIES, ROWS = np.ones((2, 3), np.float32), np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"queries": QUERIES.tolist()},
        {"queries": QUERIES.astype(np.float64)},
        {"queries": QUERIES.astype(">f4")},
        {"queries": QUERIES.view(Subclass)},
        {"queries": np.ma.array(QUERIES)},
        {"queries": np.asfortranarray(QUERIES)},
        {"queries": np.frombuffer(bytes(25), np.uint8)[1:].view(np.float32).reshape(2, 3)},
        {"queries": QUERIES[:0]},
        {"queries": QUERIES[:, :2]},
        {"queries": QUERIES[None]},
        {"queries": np.ones((33, 3), np.float32)},
        {"queries": np.float32([0, np.inf, 0])},
        {"queries": np.float32([0, np.nan, 0])},
        {"rows": ROWS.astype(np.float16)},
        {"rows": ROWS.astype(np.int32)},
        {"rows": ROWS[:, ::-1]},
        {"rows": ROWS[:0]},
        {"rows": ROWS[0]},
        {"rows": np.where(ROWS == 5, np.float32(np.nan), ROWS)},
        {"k": 0},
        {"k": -1},
        {"k": True},
        {"k": 2.0},
        {"k": np.int64(2)},
        {"k": 1 << 70},
        {"metric": "dot"},
        {"metric": b"ip"},
        {"metric": None},
        {"most": 127},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_all_other_arguments_are_left_to_the_caller(backend: Backend, changed: dict[str, Any]) -> None:
    arguments = {"queries": QUERIES, "rows": ROWS, "k": 2, "metric": "ip", "most": 128}
    assert (backend.plain_top_k(**arguments) is None) == (backend.name == "numba")
    assert backend.plain_top_k(**arguments | changed) is None


CODES = np.arange(12, dtype=np.uint8).reshape(4, 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"queries": CODES.tolist()},
        {"queries": CODES.astype(np.int8)},
        {"queries": CODES.view(Subclass)},
        {"queries": np.asfortranarray(CODES)},
        {"queries": CODES[:0]},
        {"queries": CODES[:, :2]},
        {"queries": np.ones((33, 3), np.uint8)},
        {"codes": CODES.astype(bool)},
        {"codes": CODES[:, ::-1]},
        {"codes": CODES[:0]},
        {"codes": CODES[:, :0]},
        {"codes": CODES[0]},
        {"k": 0},
        {"k": True},
        {"k": 1 << 70},
        {"most": 47},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_all_other_codes_are_left_to_the_caller(backend: Backend, changed: dict[str, Any]) -> None:
    arguments = {"queries": CODES, "codes": CODES, "k": 2, "most": 48}
    assert (backend.plain_hamming_top_k(**arguments) is None) == (backend.name == "numba")
    assert backend.plain_hamming_top_k(**arguments | changed) is None


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2"])
def test_small_work_looks_at_threads(threads: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="threads"):
        asx.top_k(QUERIES, ROWS, 2, threads=threads)
    with pytest.raises((TypeError, ValueError), match="threads"):
        asx.hamming_top_k(CODES, CODES, 2, threads=threads)


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


# --- shapes ---------------------------------------------------------------------------------------------------------------


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


# --- masks ----------------------------------------------------------------------------------------------------------------


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


# --- element types and layouts ----------------------------------------------------------------------------------------------


def test_float64_is_rounded_to_float32(backend: Backend) -> None:
    rng = np.random.default_rng(6)
    rows, batch = rng.standard_normal((500, 17)), rng.standard_normal((4, 17))
    wanted = expected("cosine", batch, rows, 9)
    for wide in (np.float64, np.longdouble):
        assert_same(asx.top_k(batch.astype(wide), rows.astype(wide), 9, metric="cosine"), wanted)


LAYOUTS = {
    "strided": awkward.strided,
    "backwards": awkward.backwards,
    "read-only": awkward.read_only,
    "mapped": awkward.mapped,
    "unaligned": awkward.unaligned,
    "every other column": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "columns first": np.asfortranarray,
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder()) if array.dtype.kind == "f" else array,
    "one row broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", DTYPES)
def test_rows_in_any_layout(backend: Backend, kind: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 8000)
    rng = np.random.default_rng(7)
    rows, batch = drawn(rng, 300, 13, kind), drawn(rng, 3, 13)
    placed = LAYOUTS[layout](rows)
    plain = np.ascontiguousarray(placed).astype(rows.dtype)
    for metric in METRICS:
        assert_same(asx.top_k(batch, placed, 7, metric=metric), asx.top_k(batch, plain, 7, metric=metric))
    candidates = rng.integers(-1, 300, (3, 40))
    assert_same(asx.rescore(batch, placed, candidates, 7), asx.rescore(batch, plain, candidates, 7))
    np.testing.assert_allclose(
        asx.dot(batch, placed), oracles.dot(batch, plain.astype(np.float32)), rtol=1e-4, atol=1e-4 * np.abs(plain.astype(float)).max()
    )
    np.testing.assert_array_equal(np.asarray(placed, rows.dtype), plain)


@pytest.mark.parametrize("kind", DTYPES)
def test_queries_in_any_type_and_layout(backend: Backend, kind: str) -> None:
    rng = np.random.default_rng(8)
    rows, batch = drawn(rng, 100, 13), drawn(rng, 5, 13, kind)
    wanted = asx.top_k(batch.astype(np.float32), rows, 7)
    for layout in LAYOUTS.values():
        if layout is not LAYOUTS["one row broadcast"]:
            assert_same(asx.top_k(layout(batch), rows, 7), wanted)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("view", ["whole", "prefix"])
def test_rows_are_used_in_place(backend: Backend, kind: str, view: str) -> None:
    rng = np.random.default_rng(9)
    rows = drawn(rng, 20_000, 64, kind)
    rows.flags.writeable = False
    rows = rows[:, :48] if view == "prefix" else rows
    batch = drawn(rng, 2, rows.shape[1])
    candidates = rng.integers(0, len(rows), (2, 30))
    calls = (lambda: asx.top_k(batch, rows, 5, threads=1), lambda: asx.rescore(batch, rows, candidates, 5, threads=1))
    for call in calls:
        call()  # compiles, on Numba
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < rows.nbytes / 3


@pytest.mark.unemulated
def test_converted_rows_are_never_held_at_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 1 << 20)
    rows = np.random.default_rng(10).standard_normal((40_000, 64))
    batch = rows[:2].astype(np.float32)
    wanted = asx.top_k(batch, rows.astype(np.float32), 5)
    tracemalloc.start()
    found = asx.top_k(batch, rows, 5, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_same(found, wanted)
    assert peak < rows.nbytes / 5


def test_plain_lists_are_taken(backend: Backend) -> None:
    found = asx.top_k([0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], 1)
    assert (found.ids.tolist(), found.scores.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("bad", [np.int64, np.uint8, np.bool_, np.complex64, np.object_, "U4", "datetime64[s]", "S2"])
def test_other_element_types_are_refused(bad: Any) -> None:
    good = np.ones((3, 2), np.float32)
    wrong = np.ones((3, 2)).astype("i8").astype(bad)
    for name, queries, rows in (("queries", wrong, good), ("rows", good, wrong)):
        for call in (lambda q, x: asx.top_k(q, x, 1), asx.dot, lambda q, x: asx.rescore(q, x, [[0]] * 3, 1)):
            with pytest.raises(TypeError, match=rf"^{name}: expected floats .* or int8, got"):
                call(queries, rows)
    with pytest.raises(TypeError, match="masked array"):
        asx.dot(good, np.ma.masked_array(good))


# --- int8 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dim", [1, 15, 64, 1000, 5000])
def test_int8_queries_score_as_exact_integers(backend: Backend, metric: Any, dim: int) -> None:
    rng = np.random.default_rng(11)
    rows = rng.integers(-128, 128, (200, dim)).astype(np.int8)
    batch = rng.integers(-128, 128, (5, dim)).astype(np.int8)
    rows[:2], batch[0], batch[1] = -128, -128, 127
    exact = oracles.score(metric, batch.astype(np.int64), rows.astype(np.int64)).astype(np.float32)
    scores, ids = oracles.best(exact, 30, largest=metric == "ip")
    assert_same(asx.top_k(batch, rows, 30, metric=metric), asx.Neighbors(ids, scores))
    candidates = np.broadcast_to(np.arange(200), (5, 200))
    assert_same(asx.rescore(batch, rows, candidates, 30, metric=metric), asx.Neighbors(ids, scores))


def test_int8_cosine_and_mixed_types_take_the_float_path(backend: Backend) -> None:
    rng = np.random.default_rng(12)
    rows, batch = drawn(rng, 100, 31, "int8"), drawn(rng, 4, 31, "int8")
    assert_same(asx.top_k(batch, rows, 9, metric="cosine"), expected("cosine", batch, rows, 9))
    assert_same(asx.top_k(batch, rows.astype(np.float16), 9), expected("ip", batch, rows, 9))
    assert_same(asx.top_k(batch.astype(np.float64), rows, 9), expected("ip", batch, rows, 9))


def test_the_largest_dim_does_not_overflow(backend: Backend) -> None:
    extreme = np.full((2, MAX_DIM), -128, np.int8)
    assert asx.top_k(extreme, extreme, 1).scores.tolist() == [[2.0**29]] * 2
    assert asx.top_k(extreme, np.full((1, MAX_DIM), 127, np.int8), 1, metric="l2").scores[0, 0] == np.float32(255**2 * MAX_DIM)


# --- dims -----------------------------------------------------------------------------------------------------------------


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


# --- NaN, infinity, overflow ------------------------------------------------------------------------------------------------


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


# --- dot and hamming --------------------------------------------------------------------------------------------------------


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


# --- rescore --------------------------------------------------------------------------------------------------------------


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


# --- errors ---------------------------------------------------------------------------------------------------------------

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
