"""Adding, removing, fitting, ids, and what an index says of itself."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
from index_cases import (
    DIM,
    METRICS,
    assert_equal,
    assert_one_whole_bar,
    assert_same,
    cascades,
    collection,
    expected,
    filled,
    questions,
    shuffled_ids,
)
from ml_dtypes import bfloat16

import adaptive_search as asx
from adaptive_search import fitting, index as index_module

LEARNED = [
    asx.Cascade([stage, asx.Full()])
    for stage in (asx.Binary(keep=50), asx.RaBit(keep=50), asx.Int8(keep=50), asx.PQ(6, bits=4, keep=50), asx.Binary(7, 50, "itq"))
]


def contents(index: asx.Index) -> tuple[Any, ...]:
    """What must not change when something fails."""
    return (
        index.ids.tolist(),
        index.plan,
        index.fitted,
        index.search(questions(5), 20).ids.tolist(),
        index.search(questions(5), 20, recall=1.0).scores.tolist(),
    )


# --- ids -------------------------------------------------------------------------------------------------------------------
def test_automatic_ids_continue_after_the_largest_ever_used() -> None:
    index = asx.Index(DIM)
    index.add(collection(3))
    index.add(collection(2), [100, 7])
    index.add(collection(2))
    np.testing.assert_array_equal(index.ids, [0, 1, 2, 100, 7, 101, 102])
    index.remove([102, 0, 101])
    index.add(collection(1))
    np.testing.assert_array_equal(index.ids, [1, 2, 100, 7, 103])
    assert len(index) == 5
    assert 100 in index
    assert np.int32(103) in index
    assert 102 not in index
    assert -1 not in index
    assert "7" not in index
    assert 10**30 not in index


def test_no_ids_are_left_after_the_largest_possible() -> None:
    index = asx.Index(DIM)
    index.add(collection(1), [np.iinfo(np.int64).max])
    with pytest.raises(ValueError, match="ids: none are left"):
        index.add(collection(1))
    index.add(collection(1), [0])
    assert len(index) == 2


def test_an_id_can_be_used_again_once_its_row_is_gone() -> None:
    rows, queries = collection(40), questions(3)
    index = filled(rows[:20], "l2")
    for number in (5, 19, 5):
        index.remove(number)
        index.add(rows[20 + number : 21 + number], [number])
    order = np.append(np.delete(np.arange(20), [5, 19]), [39, 25])
    ids = np.append(np.delete(np.arange(20), [5, 19]), [19, 5])
    np.testing.assert_array_equal(index.ids, ids)
    assert_same(index.search(queries, 30), *expected("l2", rows[order], ids, queries, 30))


def test_ids_follow_a_long_history(backend: Any) -> None:
    """Against a plain dict, through compaction and both forms of the id map."""
    rng = np.random.default_rng(0)
    index = asx.Index(4, "l2", cascade=asx.Cascade([asx.Int8(keep=10_000), asx.Full()]), fit_rows=500)
    known: dict[int, np.ndarray] = {}
    for step in range(60):
        count = int(rng.integers(1, 300))
        rows = rng.integers(-50, 50, (count, 4)).astype(np.float32)
        ids = rng.choice(5_000, count, replace=False) if step % 4 else max(known, default=-1) + 5_000 + np.arange(count)
        fresh = np.array([number not in known for number in ids])
        index.add(rows[fresh], ids[fresh])
        known.update(zip(ids[fresh].tolist(), rows[fresh], strict=True))
        gone = rng.choice(list(known), int(len(known) * rng.choice([0.1, 0.7])), replace=False)
        if step % 2:
            index.remove(gone)
        else:
            for number in gone[:20]:
                index.remove(number)
            gone = gone[:20]
        for number in gone.tolist():
            del known[number]
        np.testing.assert_array_equal(index.ids, list(known))
        assert len(index) == len(known)
    queries = rng.integers(-50, 50, (4, 4)).astype(np.float32)
    assert_same(index.search(queries, 30), *expected("l2", np.stack(list(known.values())), np.array(list(known)), queries, 30))


# --- adding ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("cascade", [None, *cascades(keep=30)], ids=str)
def test_one_row_at_a_time_is_the_same_as_all_at_once(metric: str, cascade: asx.Cascade | None) -> None:
    rows, ids, queries = collection(150), shuffled_ids(150), questions(4)
    one_by_one = asx.Index(DIM, metric, cascade=cascade, fit_rows=150)
    for row, number in zip(rows, ids, strict=True):
        one_by_one.add(row[None].astype(np.float32), [number])
    assert_equal(one_by_one.search(queries, 20), filled(rows, metric, cascade=cascade, ids=ids).search(queries, 20))


@pytest.mark.parametrize("cascade", [None, *LEARNED], ids=str)
def test_rows_added_after_the_fit_are_encoded(cascade: asx.Cascade | None) -> None:
    rows, queries = collection(500), questions(4)
    index = asx.Index(DIM, "cosine", cascade=cascade)
    index.fit(rows[:300].astype(np.float32))
    whole = asx.Index(DIM, "cosine", cascade=cascade)
    whole.add(rows.astype(np.float32))
    whole.fit(rows[:300].astype(np.float32))
    for first, last in ((0, 1), (1, 77), (77, 400), (400, 500)):
        index.add(rows[first:last].astype(np.float32))
    assert_equal(index.search(queries, 20), whole.search(queries, 20))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_floats_are_rounded_to_the_nearest_of_the_dtype(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 9)) * 10.0 ** rng.integers(-6, 5, (300, 9))
    target = bfloat16 if kind == "bfloat16" else kind
    queries = rng.standard_normal((5, 9)).astype(np.float32)
    stored = rows.astype(np.float32).astype(target) if kind == "bfloat16" else rows.astype(target)
    answer = expected("ip", stored, np.arange(300), queries, 10)
    for given in (rows, rows[::-1][::-1], np.asfortranarray(rows), rows.tolist()):
        index = asx.Index(9, "ip", kind)
        index.add(given)
        assert_same(index.search(queries, 10), *answer)


def test_the_caller_may_change_an_array_that_was_added() -> None:
    rows = collection(50).astype(np.float32)
    index = filled(rows, "l2")
    before = index.search(questions(2), 5)
    rows[:] = 0
    assert_equal(index.search(questions(2), 5), before)
    index.ids[:] = 0
    assert_equal(index.search(questions(2), 5), before)


BIG = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("cascade", [None, *LEARNED], ids=str)
@pytest.mark.parametrize(
    ("vectors", "ids", "error", "words"),
    [
        (np.zeros(DIM, np.float32), None, ValueError, "vectors: expected shape"),
        (np.zeros((2, DIM - 1), np.float32), None, ValueError, f"vectors: expected {DIM} dims"),
        (np.zeros((2, 2, DIM), np.float32), None, ValueError, "vectors: expected shape"),
        (np.full((2, DIM), "a"), None, TypeError, "vectors"),
        (np.zeros((2, DIM), complex), None, TypeError, "vectors"),
        (np.zeros((2, DIM), object), None, TypeError, "vectors"),
        (np.zeros((2, DIM)), [1, 900], ValueError, "ids: 1 is in the index already"),
        (np.zeros((2, DIM)), [900, 900], ValueError, "ids: expected every id once, got 900 twice"),
        (np.zeros((2, DIM)), [900, -1], ValueError, "ids: expected ids from 0 up, got -1"),
        (np.zeros((2, DIM)), [900], ValueError, r"ids: expected shape \(2,\)"),
        (np.zeros((2, DIM)), [0.5, 1.5], TypeError, "ids: expected integers"),
        (np.concatenate([np.zeros((9_000, DIM)), np.full((3, DIM), np.nan)]), None, ValueError, "vectors: row 9000 holds NaN or infinity"),
        (np.array([[1.0] * DIM, [0.0] * (DIM - 1) + [-np.inf]]), None, ValueError, "vectors: row 1 holds NaN or infinity"),
        (np.full((2, DIM), 1e39), None, ValueError, "vectors: row 0 holds a number too large for float32"),
        (np.full((2, DIM), BIG), None, ValueError, "vectors: row 0 has a norm too large for float32"),
    ],
)
def test_a_failed_add_changes_nothing(cascade: asx.Cascade | None, vectors: Any, ids: Any, error: type[Exception], words: str) -> None:
    index = filled(collection(90), "cosine", cascade=cascade)
    before = contents(index)
    with pytest.raises(error, match=words):
        index.add(vectors, ids)
    assert contents(index) == before
    index.add(collection(9).astype(np.float32))
    again = filled(collection(90), "cosine", cascade=cascade)
    again.add(collection(9).astype(np.float32))
    assert contents(index) == contents(again)


@pytest.mark.parametrize(("kind", "value"), [("float16", 70_000.0), ("bfloat16", 3.4e38), ("int8", 128), ("int8", -129), ("int8", 1.0)])
def test_what_the_dtype_cannot_hold_is_an_error(kind: str, value: float) -> None:
    index = asx.Index(3, dtype=kind)
    with pytest.raises(TypeError if type(value) is float and kind == "int8" else ValueError, match="vectors"):
        index.add(np.array([[0, 0, 0], [0, value, 0]]))
    assert len(index) == 0


@pytest.mark.parametrize("integers", ["int8", "uint8", "int64"])
def test_int8_takes_any_integers_in_range(integers: str) -> None:
    rows = np.abs(collection(40)).astype(integers)
    index = asx.Index(DIM, "ip", "int8")
    index.add(rows)
    assert_same(index.search(questions(3), 5), *expected("ip", rows, np.arange(40), questions(3), 5))


@pytest.mark.parametrize("failing", ["first row", "encoding", "fitting"])
def test_an_interrupted_add_changes_nothing(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = asx.Index(DIM, cascade=LEARNED[1], fit_rows=300)
    index.add(collection(100).astype(np.float32))
    if failing == "encoding":
        index.fit()
    before = contents(index)

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    name = {"first row": (index_module, "write_vectors"), "encoding": (fitting, "encode"), "fitting": (fitting, "encode_all")}[failing]
    with monkeypatch.context() as patch:
        patch.setattr(*name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.add(collection(400, seed=5).astype(np.float32))
    assert contents(index) == before
    index.add(collection(400, seed=6).astype(np.float32))
    assert len(index) == 500


def test_no_rows_are_no_work() -> None:
    index = asx.Index(DIM)
    index.add(np.empty((0, DIM)))
    index.add(np.empty((0, DIM)), [])
    index.remove([])
    assert len(index) == 0


def test_progress_bars(capsys: pytest.CaptureFixture[str]) -> None:
    index = asx.Index(DIM, cascade=LEARNED[0], fit_rows=50)
    index.add(collection(90).astype(np.float32), progress=True)
    index.fit(progress=True)
    index.search(questions(3), progress=True)
    shown = capsys.readouterr()
    assert {"adding", "fitting", "searching"} <= set(re.findall(r"(\w+): ", shown.err))
    assert shown.out == ""


def test_bars_do_not_begin_again_when_stages_are_learned(reports: list[tuple[int, int]]) -> None:
    index = asx.Index(DIM, cascade=LEARNED[0], fit_rows=50)
    for work in (lambda: index.add(collection(90).astype(np.float32)), index.fit):
        reports.clear()
        work()
        assert_one_whole_bar(reports)


# --- removing --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("cascade", [None, *cascades(keep=500)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.45, 0.8])
def test_removed_rows_are_found_no_more(metric: str, cascade: asx.Cascade | None, share: float) -> None:
    rows, ids, queries = collection(500), shuffled_ids(500), questions(4)
    index = filled(rows, metric, cascade=cascade, ids=ids)
    gone = np.random.default_rng(0).random(500) < share
    index.remove(ids[gone][::-1])
    np.testing.assert_array_equal(index.ids, ids[~gone])
    assert_same(index.search(queries, 400), *expected(metric, rows[~gone], ids[~gone], queries, 400))
    index.add(rows[gone].astype(np.float32), ids[gone])
    rows, ids = (np.concatenate([part[~gone], part[gone]]) for part in (rows, ids))
    assert_same(index.search(queries, 400), *expected(metric, rows, ids, queries, 400))


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([3, 20], ValueError, "ids: 20 is not in the index"),
        (-1, ValueError, "ids: -1 is not in the index"),
        ([3, 4, 3], ValueError, "3 twice"),
        (7, ValueError, "ids: 7 is not in the index"),
        ([[1, 2]], ValueError, "ids"),
        ([1.0], TypeError, "ids"),
        ("a", TypeError, "ids"),
    ],
)
def test_a_failed_remove_changes_nothing(ids: Any, error: type[Exception], words: str) -> None:
    index = filled(collection(20), "cosine")
    index.remove([7, 0])
    before = contents(index)
    with pytest.raises(error, match=words):
        index.remove(ids)
    assert contents(index) == before


# --- fitting ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stages", "rows"),
    [
        ([asx.Binary(keep=5)], 1_000),
        ([asx.Int8(keep=5), asx.Binary(keep=5)], 1_000),
        ([asx.Binary(keep=5), asx.PQ(2, keep=5)], 10_000),
        ([asx.Prefix(2, keep=5)], 0),
    ],
    ids=str,
)
def test_a_cascade_is_fitted_by_the_add_that_brings_enough_rows(stages: Any, rows: int) -> None:
    index = asx.Index(4, cascade=asx.Cascade(stages))
    assert index.fit_rows == rows
    vectors = np.random.default_rng(0).standard_normal((rows + 1, 4)).astype(np.float32)
    index.add(vectors[: rows - 1] if rows else vectors)
    assert index.fitted == (rows == 0)
    if rows:
        assert index.plan.stages == (asx.Full(),)
        assert f"{rows:,} rows" in index.plan.why
        truth = index.search(vectors[:5], 3)
        assert_equal(truth, index.search(vectors[:5], 3, recall=1.0))
        index.add(vectors[rows - 1 :])
    assert index.fitted
    assert index.plan.stages == (*stages, asx.Full())


def test_removed_rows_do_not_count_for_the_fit() -> None:
    index = asx.Index(DIM, cascade=LEARNED[0], fit_rows=100)
    index.add(collection(99).astype(np.float32))
    index.remove(np.arange(50))
    index.add(collection(50).astype(np.float32))
    assert not index.fitted
    index.fit_rows = 100
    index.add(collection(1).astype(np.float32))
    assert index.fitted


def test_fit_rows_can_be_set() -> None:
    index = asx.Index(DIM, cascade=LEARNED[0])
    index.fit_rows = 20
    index.add(collection(20).astype(np.float32))
    assert index.fitted
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="fit_rows"):
            index.fit_rows = wrong


@pytest.mark.parametrize("cascade", LEARNED, ids=str)
def test_fitting_to_a_sample_is_fitting_to_these_rows(cascade: asx.Cascade) -> None:
    rows, sample, queries = collection(200), collection(300, seed=9), questions(4)
    index = filled(rows, "ip", cascade=cascade)
    own = index.search(queries, 20)
    index.fit(sample.astype(np.float32))
    other = filled(sample, "ip", cascade=cascade)
    other.add(rows.astype(np.float32), np.arange(200) + 1000)
    other.remove(np.arange(300))
    found = index.search(queries, 20)
    assert_same(found, other.search(queries, 20).ids - 1000, other.search(queries, 20).scores)
    index.fit()
    assert_equal(index.search(queries, 20), own)


def test_a_failed_fit_changes_nothing() -> None:
    index = asx.Index(DIM, cascade=LEARNED[2])
    with pytest.raises(ValueError, match="sample: there are no rows"):
        index.fit()
    index.add(collection(30).astype(np.float32))
    before = contents(index)
    for sample in (np.full((3, DIM), np.nan), np.zeros((3, DIM + 1)), np.zeros(DIM), np.empty((0, DIM))):
        with pytest.raises(ValueError, match="sample"):
            index.fit(sample)
    assert contents(index) == before


def test_a_large_index_is_learned_from_a_thinned_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE_ROWS", 60)
    rows = np.arange(200.0, dtype=np.float32)[:, None] + np.zeros((1, 3), np.float32)
    index = filled(rows, "l2")
    index.remove(np.arange(20))
    sample = fitting.sample_rows(index._slabs, index._store)
    np.testing.assert_array_equal(sample[:, 0], 20 + np.arange(60) * 180 // 60)


# --- what an index says ------------------------------------------------------------------------------------------------------
def test_properties_and_summary() -> None:
    index = asx.Index(96, "l2", "float16", asx.Cascade([asx.Binary(keep=200), asx.Prefix(32, keep=50), asx.Full()]))
    assert (index.dim, index.metric, index.dtype, len(index), index.fit_rows) == (96, "l2", "float16", 0, 1_000)
    text = str(index)
    for words in ("0 of 96 dims, float16", "l2", "Full()", "Binary(keep=200) → Prefix(dims=32, keep=50) → Full(), when fitted"):
        assert words in text
    index.add(np.random.default_rng(0).standard_normal((2000, 96)))
    assert "search   Binary(keep=200) → Prefix(dims=32, keep=50) → Full()" in str(index)
    assert repr(index) == "<Index: 2,000 rows, 96 dims, l2, float16>"
    # Slabs of 32 and 64 dims, one norm and two more at the boundary, 96 bits padded to a power of two, id and flag.
    assert index.plan.bytes_per_row == 64 + 128 + 4 + 8 + 16 + 8 + 1
    assert index.plan.recall is None
    assert not index.plan.certified
    assert "not calibrated" in index.plan.why


def test_bytes_per_row_are_those_held() -> None:
    rows = np.random.default_rng(0).standard_normal((64_000, 48)).astype(np.float32)
    index = asx.Index(48, "l2", cascade=asx.Cascade([asx.PQ(6, bits=4, keep=9), asx.Int8(keep=9), asx.Prefix(10, keep=5), asx.Full()]))
    index.add(rows)
    held = sum(array.nbytes for chunk in index._store.chunks for array in chunk.arrays.values())
    assert held == (index.plan.bytes_per_row - 9) * 64_000


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dim": 0}, ValueError, "dim: expected 1 to 32768"),
        ({"dim": 40_000}, ValueError, "dim: expected 1 to 32768"),
        ({"dim": 2.0}, TypeError, "dim"),
        ({"metric": "dot"}, ValueError, "metric: expected one of 'ip', 'cosine', 'l2'"),
        ({"dtype": "float64"}, ValueError, "dtype: expected one of"),
        ({"cascade": [asx.Full()]}, TypeError, "cascade: expected a Cascade"),
        ({"fit_rows": 0}, ValueError, "fit_rows"),
        ({"cascade": asx.Cascade([asx.Prefix(9), asx.Full()])}, ValueError, r"Prefix\(dims=9\)"),
        ({"cascade": asx.Cascade([asx.Int8(9), asx.Full()])}, ValueError, r"Int8\(dims=9\)"),
        ({"cascade": asx.Cascade([asx.Binary(9), asx.Full()])}, ValueError, r"Binary\(bits=9\)"),
        ({"cascade": asx.Cascade([asx.PQ(9), asx.Full()])}, ValueError, r"PQ\(subspaces=9\)"),
        ({"cascade": asx.Cascade([asx.RaBit(dims=9), asx.Full()])}, ValueError, r"RaBit\(dims=9\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asx.Index(**{"dim": 8, **arguments})


@pytest.mark.parametrize("dtype", [np.float16, np.dtype(np.float16), "float16", bfloat16])
def test_dtypes_may_be_given_as_numpy_has_them(dtype: Any) -> None:
    assert asx.Index(4, dtype=dtype).dtype == ("bfloat16" if dtype is bfloat16 else "float16")


def test_an_index_is_made_while_others_search() -> None:
    """Indexes share nothing but the threads."""
    failures = []

    def work(seed: int) -> None:
        rows = collection(300, seed=seed)
        for _ in range(5):
            index = filled(rows, "l2", cascade=cascades(keep=300)[3])
            found = index.search(questions(3), 10, threads=2)
            if not np.array_equal(found.ids, expected("l2", rows, np.arange(300), questions(3), 10)[0]):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
