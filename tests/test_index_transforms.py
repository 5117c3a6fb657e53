"""An index with a transform: the same to the bit as a plain one of what the transform makes, and what goes wrong is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from index_cases import METRICS, assert_equal
from ml_dtypes import bfloat16

import adaptive_search as asx
from adaptive_search import execution, fitting, index as index_module
from adaptive_search.storage import NewSegment, read_state, write_state
from adaptive_search.transforms import PCA, Transform
from adaptive_search.types import F32, Array

DIM = 20
FLOATS = ("float32", "float16", "bfloat16")
CASCADE = asx.Cascade([asx.PQ(4, bits=4, keep=60), asx.Prefix(3, keep=40), asx.Int8(5, keep=30, rotation="pca"), asx.Full()])


def vectors(count: int, dim: int = DIM, seed: int = 0) -> F32:
    random = np.random.default_rng(seed)
    mixed = np.random.default_rng(99).standard_normal((dim, dim)) / np.sqrt(1 + np.arange(dim))[:, None]
    return (random.standard_normal((count, dim)) @ mixed + 0.3).astype(np.float32)


ROWS, QUERIES, IDS = vectors(400), vectors(6, seed=1), np.random.default_rng(2).permutation(400) * 7

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "pca": lambda: asx.PCA(),
    "few": lambda: asx.PCA(8, center=True),
    "whitening": lambda: asx.Whitening(),
    "random": lambda: asx.RandomRotation(3),
    "learned": lambda: asx.LearnedRotation([5], 8),
    "relative": lambda: asx.RelativeProjection(31),
    "anchors": lambda: asx.RelativeProjection(vectors(7, seed=5)),
    "chain": lambda: asx.Chain([asx.Whitening(12), asx.RandomRotation()]),
}


@pytest.fixture(params=TRANSFORMS.values(), ids=TRANSFORMS.keys())
def transform(request: pytest.FixtureRequest) -> Transform:
    made: Transform = request.param()
    return made.fit(vectors(300, seed=7))


def pair(transform: Transform, metric: Any = "cosine", kind: str = "float32", cascade: Any = None) -> tuple[asx.Index, asx.Index]:
    """An index with the transform, and a plain one of what it makes."""
    index = asx.Index(DIM, metric, kind, cascade, fit_rows=300, transform=transform)
    plain = asx.Index(transform.dims_out, metric, kind, cascade, fit_rows=300)
    index.add(ROWS, IDS)
    plain.add(transform.transform(ROWS), IDS)
    return index, plain


def assert_same_answers(index: asx.Index, plain: asx.Index, transform: Transform) -> None:
    turned = transform.transform(QUERIES)
    for recall in (None, 1.0):
        assert_equal(index.search(QUERIES, 25, recall=recall), plain.search(turned, 25, recall=recall))
    np.testing.assert_array_equal(index.ids, plain.ids)
    assert index.plan == plain.plan


# --- answers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cascade", [None, CASCADE], ids=["exact", "cascade"])
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("metric", METRICS)
def test_the_same_as_transforming_by_hand(transform: Transform, metric: str, kind: str, cascade: asx.Cascade | None) -> None:
    index, plain = pair(transform, metric, kind, cascade)
    assert (index.dim, plain.dim, index.dtype, len(index)) == (DIM, transform.dims_out, kind, 400)
    assert_same_answers(index, plain, transform)
    index.add(2 * ROWS[:50])
    plain.add(transform.transform(2 * ROWS[:50]))
    for each in (index, plain):
        each.remove(IDS[30:90])
    assert_same_answers(index, plain, transform)


def test_everything_that_takes_queries_takes_them_as_they_are(transform: Transform, backend: Any) -> None:
    index, plain = pair(transform, cascade=CASCADE)
    turned = transform.transform(QUERIES)
    assert_equal(index.search(QUERIES[2], 7), plain.search(turned[2], 7))
    assert index.search(QUERIES[2], 7).ids.shape == (7,)
    allowed = IDS[::3]
    assert_equal(index.search(QUERIES, 9, filter=allowed), plain.search(turned, 9, filter=allowed))
    filters = [np.arange(400) % 7 == number for number in range(6)]
    assert_equal(index.search(QUERIES, 9, filter=filters), plain.search(turned, 9, filter=filters))
    found, stats = index.search(QUERIES, 9, stats=True)
    other, counted = plain.search(turned, 9, stats=True)
    assert_equal(found, other)
    assert [stage.survivors.tolist() for stage in stats.stages] == [stage.survivors.tolist() for stage in counted.stages]
    assert index.audit(QUERIES, 5) == plain.audit(turned, 5)
    assert index.explain(QUERIES[1], int(IDS[3]), 5) == plain.explain(turned[1], int(IDS[3]), 5)
    index.fit(vectors(350, seed=4))
    plain.fit(transform.transform(vectors(350, seed=4)))
    assert_same_answers(index, plain, transform)
    assert index.search(np.empty((0, DIM)), 3).ids.shape == (0, 3)


@given(st.data())
def test_orthogonal_transforms_leave_exact_search_as_it_is(data: st.DataObject) -> None:
    dim, count = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    metric = data.draw(st.sampled_from(METRICS))
    orthogonal = st.sampled_from([asx.PCA(), asx.RandomRotation(1), asx.LearnedRotation([3], 2)])
    transform = data.draw(st.one_of(orthogonal, st.lists(orthogonal, min_size=1, max_size=3).map(asx.Chain)))
    rows, queries = vectors(count, dim, seed=data.draw(st.integers(0, 9))), vectors(4, dim, seed=11)
    index = asx.Index(dim, metric, transform=transform)
    index.fit(rows)
    index.add(rows)
    found = index.search(queries, 10)
    exact = oracles.score(metric, queries, rows)
    near = 1e-5 * (1.0 if metric == "cosine" else (np.linalg.norm(queries, axis=1).max() + np.linalg.norm(rows, axis=1).max()) ** 2)
    assert np.abs(found.scores - np.take_along_axis(exact, found.ids, axis=1)).max() <= near
    best = np.sort(exact, axis=1) if metric == "l2" else -np.sort(-exact, axis=1)
    assert np.abs(found.scores - best[:, : found.scores.shape[1]]).max() <= near


def test_what_is_no_rotation_changes_what_is_near() -> None:
    plain = asx.Index(DIM, "l2")
    plain.add(ROWS)
    for transform in (asx.Whitening(), asx.RelativeProjection(5), asx.PCA(2)):
        index = asx.Index(DIM, "l2", transform=transform.fit(ROWS))
        index.add(ROWS)
        assert not np.array_equal(index.search(QUERIES).ids, plain.search(QUERIES).ids)


def test_chains_go_from_the_first_to_the_last() -> None:
    first, second = asx.Whitening(12).fit(ROWS), asx.RelativeProjection(9)
    second.fit(first.transform(ROWS))
    index = asx.Index(DIM, "l2", transform=asx.Chain([first, second]))
    index.add(ROWS)
    plain = asx.Index(9, "l2")
    plain.add(second.transform(first.transform(ROWS)))
    assert_equal(index.search(QUERIES), plain.search(second.transform(first.transform(QUERIES))))


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array.astype(np.float64),
        lambda array: array.tolist(),
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=0)[::2],
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: array[:, ::-1].copy()[:, ::-1],
        lambda array: np.frombuffer(array.tobytes(), np.float32).reshape(array.shape),
        lambda array: np.frombuffer(b"x" + array.tobytes(), np.float32, offset=1).reshape(array.shape),
        lambda array: array.astype(">f4"),
    ],
    ids=["float64", "list", "fortran", "row strides", "dim strides", "backwards", "read-only", "unaligned", "big-endian"],
)
def test_vectors_of_any_form(form: Callable[[F32], Any]) -> None:
    transform = asx.Whitening(12).fit(ROWS)
    expected, _ = pair(transform)
    index = asx.Index(DIM, transform=transform)
    index.add(form(ROWS), IDS)
    assert_equal(index.search(form(QUERIES)), expected.search(QUERIES))
    fitted = asx.Index(DIM, transform=asx.Whitening(12))
    fitted.fit(form(ROWS))
    fitted.add(ROWS, IDS)
    assert_equal(fitted.search(QUERIES), expected.search(QUERIES))


@pytest.mark.parametrize("kind", ["float16", bfloat16, np.int8], ids=str)
def test_vectors_of_other_kinds_are_widened_first(kind: Any) -> None:
    rows, queries = (8 * ROWS).astype(kind), (8 * QUERIES).astype(kind)
    transform = asx.PCA().fit(ROWS)
    index, plain = asx.Index(DIM, "ip", transform=transform), asx.Index(DIM, "ip")
    index.add(rows)
    plain.add(transform.transform(rows.astype(np.float32)))
    assert_equal(index.search(queries), plain.search(transform.transform(queries.astype(np.float32))))


def test_rows_are_transformed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = asx.RelativeProjection(31).fit(ROWS)
    expected, _ = pair(transform)
    monkeypatch.setattr(fitting, "BLOCK_BYTES", 4 * 31 * 7)
    index, _ = pair(transform)
    assert_equal(index.search(QUERIES), expected.search(QUERIES))


# --- fitting ---------------------------------------------------------------------------------------------------------------
def test_build_fits_what_is_not_fitted() -> None:
    index = asx.Index.build(ROWS.astype(np.float16), IDS, "l2", transform=asx.Whitening(12))
    assert (index.dim, index.dtype) == (DIM, "float16")
    expected = asx.Index.build(ROWS.astype(np.float16), IDS, "l2", transform=asx.Whitening(12).fit(ROWS.astype(np.float16)))
    assert_equal(index.search(QUERIES), expected.search(QUERIES))
    empty = asx.Index.build(np.empty((0, DIM)), transform=asx.PCA())
    assert empty.transform is not None
    assert not empty.transform.fitted


def test_build_fits_to_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE_ROWS", 50)
    index = asx.Index.build(ROWS, transform=asx.PCA())
    assert index.transform is not None
    np.testing.assert_array_equal(index.transform.state()["matrix"], asx.PCA().fit(ROWS[::8]).state()["matrix"])


def test_fit_learns_from_a_bounded_part_of_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE_ROWS", 100)
    index, other = (asx.Index(DIM, "ip", cascade=asx.Cascade([asx.PQ(4)]), transform=asx.PCA(8)) for _ in range(2))
    index.fit(ROWS)
    other.fit(ROWS[::4])
    assert index.transform is not None
    np.testing.assert_array_equal(index.transform.state()["matrix"], asx.PCA(8).fit(ROWS[::4]).state()["matrix"])
    for one in (index, other):
        one.add(ROWS, IDS)
    assert_equal(index.search(QUERIES, 30), other.search(QUERIES, 30))
    bad = ROWS.copy()
    bad[7] = np.nan  # is not learned from
    with pytest.raises(ValueError, match="sample: row 7 holds NaN or infinity"):
        index.fit(bad)
    small = asx.Index(DIM, "ip", "float16", cascade=asx.Cascade([asx.PQ(4)]), transform=asx.PCA(8).fit(ROWS))
    bad = ROWS.copy()
    bad[8] = 1e6
    with pytest.raises(ValueError, match="sample: row 8 holds a number too large for float16 once transformed"):
        small.fit(bad)


def test_wide_transforms_are_fitted_to_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE_BYTES", 4 * 40 * 100)
    index = asx.Index.build(ROWS, transform=asx.RelativeProjection(40))
    assert index.transform is not None
    np.testing.assert_array_equal(index.transform.state()["anchors"], asx.RelativeProjection(40).fit(ROWS[::4]).state()["anchors"])


@pytest.mark.long
def test_a_tuned_index_keeps_its_promise_among_transformed_vectors() -> None:
    rows, queries = vectors(5_000, 64), vectors(400, 64, seed=1)
    index = asx.Index.build(rows, metric="ip", recall=0.9, queries=queries[:300], transform=asx.PCA(48))
    pca = index.transform
    assert pca is not None
    exact = asx.top_k(pca.transform(queries), pca.transform(rows), 10, metric="ip")
    assert_equal(index.search(queries, recall=1.0), exact)
    assert index.audit(queries[300:]).recall > 0.8

    index, plain = (
        asx.Index(dim, "ip", cascade=asx.Cascade([asx.Int8(12), asx.Full()]), transform=own) for dim, own in ((64, pca), (48, None))
    )
    index.add(rows)
    plain.add(pca.transform(rows))
    for asked, turned in ((queries[:300], pca.transform(queries[:300])), (None, None)):
        plan, other = index.tune(asked, recall=0.9), plain.tune(turned, recall=0.9)
        assert (plan.certified, plan.interval, plan.why) == (asked is not None, other.interval, other.why)
        assert_equal(index.search(queries[300:]), plain.search(pca.transform(queries[300:])))
        assert index.audit(queries[300:]) == plain.audit(pca.transform(queries[300:]))


@pytest.mark.parametrize("cascade", [None, CASCADE], ids=["exact", "cascade"])
def test_fit_fits_a_transform_once(cascade: asx.Cascade | None) -> None:
    index = asx.Index(DIM, "ip", "bfloat16", cascade, transform=asx.Whitening(12))
    assert index.search(QUERIES).ids.shape == (6, 0)
    with pytest.raises(ValueError, match=r"transform: Whitening\(dims=12, ridge=0.001\) is not fitted: call fit\(sample\)"):
        index.add(ROWS)
    with pytest.raises(ValueError, match="sample: expected vectors to fit Whitening"):
        index.fit()
    index.fit(ROWS)
    index.add(ROWS)
    whitening = asx.Whitening(12).fit(ROWS)
    plain = asx.Index(12, "ip", "bfloat16", cascade)
    plain.fit(whitening.transform(ROWS))
    plain.add(whitening.transform(ROWS))
    assert_same_answers(index, plain, whitening)
    index.fit(vectors(300, seed=3))
    plain.fit(whitening.transform(vectors(300, seed=3)))
    assert_same_answers(index, plain, whitening)


@pytest.mark.parametrize("failing", ["transform", "stages", "encoding"])
def test_an_interrupted_fit_changes_nothing(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = asx.Index(DIM, cascade=CASCADE, transform=asx.Chain([asx.PCA(), asx.Whitening(12)]))

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    where: dict[str, tuple[Any, str]] = {
        "transform": (asx.Whitening, "learn"),
        "stages": (asx.ProductQuantizer, "fit"),
        "encoding": (fitting, "encode_all"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*where[failing], interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.fit(ROWS)
    assert not index.fitted
    with pytest.raises(ValueError, match="is not fitted"):
        index.add(ROWS)
    index.fit(ROWS)
    index.add(ROWS)
    assert index.search(QUERIES).ids.shape == (6, 10)


@pytest.mark.parametrize("failing", ["transforming", "writing", "encoding"])
def test_an_interrupted_add_changes_nothing(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = pair(asx.PCA(8).fit(ROWS), cascade=CASCADE)
    before, plan = index.search(QUERIES, 20), index.plan
    calls = 0

    def interrupt(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    where: dict[str, tuple[Any, str]] = {
        "transforming": (asx.PCA, "apply"),
        "writing": (index_module, "write_vectors"),
        "encoding": (fitting, "encode"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*where[failing], interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.add(vectors(90, seed=2))
    assert calls == 1
    assert_equal(index.search(QUERIES, 20), before)
    assert (index.plan, len(index)) == (plan, 400)


@pytest.mark.parametrize("stop", ["search", "transform", "add"])
def test_transforming_is_stopped_between_ranges(stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = asx.PCA(8).fit(ROWS)
    index, _ = pair(transform)
    begun: list[int] = []
    apply = asx.PCA.apply

    def interrupted(self: asx.PCA, block: F32) -> F32:
        begun.append(len(block))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return apply(self, block)

    monkeypatch.setattr(asx.PCA, "apply", interrupted)
    many = np.tile(ROWS, (10, 1))
    calls: dict[str, Callable[[], Any]] = {
        "search": lambda: index.search(many, threads=1),
        "transform": lambda: transform.transform(many),
        "add": lambda: index.add(many),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[stop]()
    assert begun[0] < len(many) / 4
    assert len(index) == 400


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_threads_transform_than_search(transform: Transform, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index, plain = pair(transform)
    many = np.tile(QUERIES, (200, 1))
    expected = plain.search(transform.transform(many), 3)
    monkeypatch.setattr(execution, "WORTH_SECONDS", 0.0)
    used: set[int] = set()
    apply = type(transform).apply

    def noted(self: Any, block: F32) -> F32:
        used.add(threading.get_ident())
        return apply(self, block)

    monkeypatch.setattr(type(transform), "apply", noted)
    assert_equal(index.search(many, 3, threads=threads), expected)
    assert used if threads > 1 else used == {threading.get_ident()}


# --- its own ---------------------------------------------------------------------------------------------------------------
def test_the_transform_is_the_index_s_own() -> None:
    whitening = asx.Whitening(12).fit(ROWS)
    index, _ = pair(whitening)
    before = index.search(QUERIES)
    whitening.matrix *= 2
    whitening.fit(vectors(300, seed=3))
    shown = index.transform
    assert isinstance(shown, asx.Whitening)
    shown.matrix[:] = 0
    assert_equal(index.search(QUERIES), before)
    unfitted = asx.PCA(3)
    other = asx.Index(DIM, transform=unfitted)
    unfitted.fit(ROWS)
    other.fit(vectors(300, seed=3))
    assert other.transform is not None
    assert not np.array_equal(other.transform.state()["matrix"], unfitted.state()["matrix"])
    assert asx.Index(DIM).transform is None


def test_what_an_index_says_of_its_transform() -> None:
    index = asx.Index(DIM, transform=asx.PCA(8))
    assert "PCA(dims=8, center=False), not fitted" in str(index)
    index.fit(ROWS)
    assert "PCA(dims=8, center=False), to 8 dims" in str(index)
    assert repr(index) == "<Index: 0 rows, 20 dims, cosine, float32>"
    assert index.plan.bytes_per_row < asx.Index(DIM).plan.bytes_per_row


# --- errors ----------------------------------------------------------------------------------------------------------------
class Own(PCA):
    """A transform that no file can bring back."""


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"transform": "pca"}, TypeError, "transform: expected a transform such as"),
        ({"transform": asx.PCA}, TypeError, "transform: expected a transform such as"),
        ({"transform": Own()}, TypeError, "transform: expected one of PCA, .* which can be saved"),
        ({"transform": asx.Chain([asx.PCA(), Own()])}, TypeError, "transform: expected one of PCA, .* which can be saved"),
        ({"transform": asx.PCA(), "dtype": "int8"}, ValueError, "dtype: .* got 'int8'"),
        ({"transform": asx.PCA(21)}, ValueError, "transform: .* needs at least 21 dims, there are 20"),
        ({"transform": asx.PCA().fit(np.eye(7))}, ValueError, "transform: expected one that was fitted to 20 dims, .* fitted to 7"),
        ({"transform": asx.RelativeProjection(np.eye(7))}, ValueError, "transform: expected one that was fitted to 20 dims"),
        ({"transform": asx.RelativeProjection(40_000)}, ValueError, "transform: expected one that makes at most 32,768 dims"),
        ({"transform": asx.Chain([asx.PCA(5), asx.PCA(6)])}, ValueError, "transform: .* needs at least 6 dims, there are 5"),
        ({"transform": asx.PCA(5), "cascade": asx.Cascade([asx.Prefix(9, keep=9), asx.Full()])}, ValueError, "Prefix"),
    ],
)
def test_transforms_that_do_not_go_with_an_index(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asx.Index(DIM, **arguments)


def test_int8_vectors_are_not_built_with_a_transform() -> None:
    with pytest.raises(ValueError, match="dtype"):
        asx.Index.build(np.ones((5, DIM), np.int8), transform=asx.PCA())


TURN = asx.PCA().fit(ROWS - ROWS.mean(axis=0))


def row(values: Any, at: int = 5) -> Array:
    rows = ROWS.astype(np.float64)
    rows[at] = values
    return rows


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("float32", row(np.nan), "vectors: row 5 holds NaN or infinity"),
        ("float32", row(1e39), "vectors: row 5 holds a number too large for float32$"),
        ("float32", row(2e38), "vectors: row 5 holds a number too large for float32 once transformed"),
        (
            "float32",
            row(2e38 * TURN.matrix[[0, 2, 9]].sum(axis=0)),
            "row 5 has a norm too large for float32 once transformed",
        ),
        ("float16", row(3e4), "vectors: row 5 holds a number too large for float16 once transformed"),
        ("float32", ROWS[:, :9], r"vectors: expected 20 dims, got shape \(400, 9\)"),
        ("float32", ROWS[0], "vectors: expected shape"),
    ],
)
def test_a_failed_add_changes_nothing(kind: str, rows: Array, words: str) -> None:
    index, _ = pair(TURN, "ip", kind)
    before = index.search(QUERIES, 20)
    with pytest.raises(ValueError, match=words):
        index.add(rows)
    assert_equal(index.search(QUERIES, 20), before)
    assert len(index) == 400


def test_sums_that_cancel_are_beyond_float32_too(backend: Any) -> None:
    whitening = asx.Whitening(ridge=0.0).fit(1e-6 * ROWS)
    index = asx.Index(DIM, transform=whitening)
    with pytest.raises(ValueError, match="vectors: row 5 holds a number too large for float32 once transformed"):
        index.add(row(np.where(np.arange(DIM) % 2, 1e36, -1e36)))
    index.add(1e-6 * ROWS)
    with pytest.raises(ValueError, match="queries: row 5 holds a number too large for float32 once transformed"):
        index.search(row(np.where(np.arange(DIM) % 2, 1e36, -1e36)))
    for ask in (index.search, index.audit, lambda queries: index.tune(queries, recall=0.5)):
        with pytest.raises(ValueError, match=r"queries: row 5 holds NaN or infinity"):
            ask(row(np.nan))
        with pytest.raises(ValueError, match="queries: expected 20 dims"):
            ask(np.ones((9, 19)))
    with pytest.raises(ValueError, match=r"^query: row 0 holds NaN or infinity"):
        index.explain(row(np.nan)[5], 0)
    with pytest.raises(ValueError, match=r"^query: row 0 holds a number too large for float32 once transformed"):
        index.explain(np.where(np.arange(DIM) % 2, 1e36, -1e36), 0)
    with pytest.raises(ValueError, match=r"^query: expected 20 dims, got shape \(19,\)"):
        index.explain(np.ones(19), 0)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (row(np.inf), "sample: row 5 holds NaN or infinity"),
        (ROWS[:, :7], "sample: expected 20 dims"),
        (ROWS[:0], "sample: there are no rows to learn from"),
        (ROWS[:4], "sample: expected at least 9 rows, one for each anchor"),
    ],
)
def test_a_failed_fit_changes_nothing(sample: Array, words: str) -> None:
    index = asx.Index(DIM, transform=asx.RelativeProjection(9))
    with pytest.raises(ValueError, match=words):
        index.fit(sample)
    with pytest.raises(ValueError, match="not fitted"):
        index.add(ROWS)
    halved = asx.Index(DIM, dtype="float16", transform=asx.PCA())
    with pytest.raises(ValueError, match="sample: row 5 holds a number too large for float16 once transformed"):
        halved.fit(row(6e4))


LONG = (ROWS / np.abs(ROWS).max()).astype(np.float16)
LONG[392] = 6e4


@pytest.mark.parametrize(
    ("rows", "transform", "words"),
    [
        (row(np.nan, 392), asx.PCA(), "row 392 holds NaN or infinity"),
        (row(1e39, 392), asx.PCA(), "row 392 holds a number too large for float32$"),
        (LONG, asx.PCA(), "row 392 holds a number too large for float16 once transformed"),
        (ROWS[:8], asx.RelativeProjection(9), "expected at least 9 rows, one for each anchor, got shape"),
    ],
)
@pytest.mark.parametrize("most", [50, 1000])
def test_build_names_its_own_argument(rows: Array, transform: Transform, words: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE_ROWS", most)
    with pytest.raises(ValueError, match=f"^vectors: {words}"):
        asx.Index.build(rows, transform=transform)


# --- files -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mmap", [True, False])
def test_an_opened_index_is_the_saved_one(transform: Transform, mmap: bool, tmp_path: Path) -> None:
    index, plain = pair(transform, "l2", "float16", CASCADE)
    index.save(tmp_path / "index")
    opened = asx.Index.open(tmp_path / "index", mmap=mmap)
    opened.verify()
    assert (opened.dim, repr(opened.transform), str(opened)) == (DIM, repr(index.transform), str(index))
    assert_same_answers(opened, plain, transform)
    opened.add(QUERIES)
    plain.add(transform.transform(QUERIES))
    opened.save(tmp_path / "copy")
    assert_same_answers(asx.Index.open(tmp_path / "copy"), plain, transform)


def test_an_index_that_waits_for_its_sample_is_saved_too(tmp_path: Path) -> None:
    index = asx.Index(DIM, cascade=CASCADE, transform=asx.Chain([asx.RelativeProjection(vectors(7)), asx.PCA(5)]))
    index.save(tmp_path)
    for _ in range(2):
        opened = asx.Index.open(tmp_path)
        with pytest.raises(ValueError, match="not fitted"):
            opened.add(ROWS)
        for each in (index, opened):
            each.fit(ROWS)
            each.add(ROWS)
        assert_equal(opened.search(QUERIES), index.search(QUERIES))
        index = asx.Index.open(tmp_path)


def test_a_transform_is_written_once(tmp_path: Path) -> None:
    index, _ = pair(asx.PCA(8).fit(ROWS))
    index.save(tmp_path)
    (file,) = tmp_path.glob("transform-*")
    for each in (index, asx.Index.open(tmp_path)):
        each.add(QUERIES)
        each.save(tmp_path)
        assert list(tmp_path.glob("transform-*")) == [file]
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(asx.IndexFormatError, match="transform"):
        index.verify()


def test_only_readers_that_know_transforms_open_such_an_index(tmp_path: Path) -> None:
    for name, transform, version in (("plain", None, 1), ("unfitted", asx.PCA(), 2), ("fitted", asx.PCA().fit(ROWS), 2)):
        asx.Index(DIM, transform=transform).save(tmp_path / name)
        assert json.loads((tmp_path / name / "manifest.json").read_text())["version"] == version


PCA8 = {"transform": "PCA", "dims": 8, "center": False}


@pytest.mark.parametrize(
    ("meta", "arrays"),
    [
        ({"transform": None}, {}),
        ({"transform": "PCA"}, {}),
        ({"transform": {}}, {}),
        ({"transform": PCA8 | {"transform": "Index"}}, {}),
        ({"transform": PCA8 | {"dims": 9}}, {}),
        ({"transform": PCA8 | {"dims": -1}}, {}),
        ({"transform": PCA8 | {"center": 1}}, {}),
        ({"transform": PCA8 | {"more": 1}}, {}),
        ({"transform": {"transform": "Whitening", "dims": 8, "ridge": 10**400}}, {}),
        ({"transform": {"transform": "Chain", "transforms": [PCA8]}}, {}),
        ({"transform": {"transform": "RelativeProjection", "anchors": 10**9}}, {}),
        ({"transform": {"transform": "RandomRotation", "seed": 3}}, {}),
        ({"dim": 21}, {}),
        ({"dim": 8}, {}),
        ({"dtype": "int8"}, {}),
        ({}, None),
        ({}, {"matrix": None}),
        ({}, {"matrix": np.zeros((8, DIM), np.float32)}),
        ({}, {"matrix": np.eye(DIM, dtype=np.float32)[:7]}),
        ({}, {"matrix": np.eye(8, dtype=np.float32), "mean": np.zeros(8, np.float32)}),
        ({}, {"matrix": np.eye(DIM)[:8]}),
        ({}, {"mean": np.full(DIM, np.nan, np.float32)}),
        ({}, {"more": np.zeros(3)}),
    ],
    ids=lambda value: str(value)[:70],
)
def test_files_that_lie(meta: dict[str, Any], arrays: dict[str, Any] | None, tmp_path: Path) -> None:
    index, _ = pair(asx.PCA(8).fit(ROWS))
    index.save(tmp_path)
    state = read_state(tmp_path)
    aux: dict[str, Any] = {name: stored for name, stored in state.aux.items() if name != "transform"}
    if arrays is not None:
        changed = {**state.aux["transform"].arrays, **arrays}
        aux["transform"] = NewSegment({name: array for name, array in changed.items() if array is not None})
    write_state(tmp_path, state.segments, aux=aux, meta=state.meta | meta, version=2)
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(tmp_path)
