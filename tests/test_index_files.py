"""Saving and opening: nothing is lost, only changes are written, and no directory is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_cases import (
    DIM,
    KINDS,
    METRICS,
    as_kind,
    assert_equal,
    assert_same,
    cascades,
    collection,
    expected,
    filled,
    questions,
    shuffled_ids,
)
from pairwise import pairwise

import adaptive_search as asx
from adaptive_search.storage import NewSegment, read_state, write_state


def assert_alike(one: asx.Index, other: asx.Index) -> None:
    """Equal in everything that a user can see."""
    for name in ("dim", "metric", "dtype", "fit_rows", "cascade", "plan"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.ids, other.ids)
    for recall in (None, 1.0):
        assert_equal(one.search(questions(5), 30, recall=recall), other.search(questions(5), 30, recall=recall))


def segments(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("segment-*")}


# --- round trips -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "metric", "cascade", "mmap"), pairwise(KINDS, METRICS, [None, *cascades(keep=40)], [True, False]), ids=str
)
def test_an_opened_index_is_the_saved_one(kind: str, metric: str, cascade: asx.Cascade | None, mmap: bool, tmp_path: Path) -> None:
    rows, ids = collection(300), shuffled_ids(300)
    index = filled(rows, metric, kind, cascade, ids)
    index.remove(ids[20:50])
    index.save(tmp_path / "index")
    opened = asx.Index.open(tmp_path / "index", mmap=mmap)
    assert_alike(opened, index)
    opened.verify()
    opened.save(tmp_path / "copy")
    assert_alike(asx.Index.open(tmp_path / "copy"), index)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("metric", METRICS)
def test_backends_search_mapped_files(metric: str, tmp_path: Path) -> None:
    rows, ids, queries = collection(300), shuffled_ids(300), questions(5)
    filled(rows, metric, "bfloat16", cascades(keep=300)[3], ids).save(tmp_path)
    opened = asx.Index.open(tmp_path)
    assert_same(opened.search(queries, 20), *expected(metric, rows, ids, queries, 20))
    assert_same(opened.search(queries, 20, recall=1.0), *expected(metric, rows, ids, queries, 20))


def test_an_unfitted_and_an_empty_index(tmp_path: Path) -> None:
    index = asx.Index(DIM, "l2", "bfloat16", asx.Cascade([asx.PQ(4, keep=9), asx.Full()]))
    index.save(tmp_path / "empty")
    index.fit_rows = 35
    index.add(as_kind(collection(30), "bfloat16"))
    index.save(tmp_path / "unfitted")
    assert len(asx.Index.open(tmp_path / "empty")) == 0
    opened = asx.Index.open(tmp_path / "unfitted")
    assert_alike(opened, index)
    for either in (index, opened):
        either.add(as_kind(collection(5, seed=3), "bfloat16"))
    assert opened.fitted
    assert_alike(opened, index)
    index.remove(index.ids)
    index.save(tmp_path / "unfitted")
    opened = asx.Index.open(tmp_path / "unfitted")
    assert (len(opened), opened.fitted) == (0, True)
    opened.add(as_kind(collection(1), "bfloat16"))
    np.testing.assert_array_equal(opened.ids, [35])


def test_what_a_build_was_asked_for_is_kept(tmp_path: Path) -> None:
    index = asx.Index.build(np.eye(DIM, dtype=np.float32), recall=0.9, k=3)
    index.save(tmp_path)
    assert asx.Index.open(tmp_path).plan == index.plan


@pytest.mark.parametrize("cascade", [None, *cascades(keep=60)], ids=str)
def test_a_long_life_on_disk(cascade: asx.Cascade | None, tmp_path: Path) -> None:
    """Changes and saves in turn, the index sometimes opened anew, against one that never was on disk."""
    rng = np.random.default_rng(0)
    index = asx.Index(DIM, "cosine", "float16", cascade, fit_rows=100)
    other = asx.Index(DIM, "cosine", "float16", cascade, fit_rows=100)
    for step in range(12):
        rows = as_kind(collection(int(rng.integers(4, 120)), seed=step), "float16")
        ids = rng.choice(10_000, len(rows), replace=False)
        ids = ids[~np.isin(ids, index.ids)]
        gone = rng.choice(index.ids, int(len(index) * (0.7 if step % 5 == 4 else 0.1)), replace=False)
        for each in (index, other):
            each.remove(gone)
            each.add(rows[: len(ids)], ids)
        index.save(tmp_path)
        if step % 3:
            index = asx.Index.open(tmp_path, mmap=bool(step % 2))
        index.verify()
        assert_alike(index, other)


# --- only what changed -------------------------------------------------------------------------------------------------------
def test_a_small_change_writes_only_the_change(tmp_path: Path) -> None:
    index = filled(collection(4_000), "cosine", cascade=asx.Cascade([asx.Int8(keep=30), asx.Full()]))
    index.save(tmp_path)
    first = {path.name for path in tmp_path.glob("*.safetensors")}
    index.save(tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == first

    index.add(collection(10).astype(np.float32))
    index.save(tmp_path)
    assert segments(tmp_path) > {name for name in first if name.startswith("segment")}
    assert len(segments(tmp_path)) == 2
    for opened in (index, asx.Index.open(tmp_path)):
        before = segments(tmp_path)
        opened.remove(opened.ids[3:5])
        opened.save(tmp_path)
        assert segments(tmp_path) == before
        assert_alike(asx.Index.open(tmp_path), opened)


LEARNED = [
    asx.Binary(keep=20, rotation="itq"),
    asx.Binary(9, 20, "random"),
    asx.Int8(keep=20),
    asx.Int8(9, keep=20, rotation="pca"),
    asx.Int8(9, keep=20, bounded=True, bound_dims=5),
    asx.Int8(9, keep=20, rotation="learned"),
    asx.Int8(9, keep=20, rotation="random"),
    asx.PQ(4, keep=20),
    asx.PQ(4, 4, 20, 9, "pca"),
    asx.PQ(4, 4, 20, 9, "learned"),
    asx.PQ(4, 4, 20, 9, "random"),
    asx.PQ(4, 4, 20, 9, "opq"),
    asx.RaBit(keep=20),
    asx.RaBit(2, 20, 9, "pca"),
]
STAGES_THAT_LEARN = [(stage, "l2") for stage in LEARNED] + [(asx.PQ(4, 4, 20, anisotropy=3), "ip")]


@pytest.mark.parametrize(("stage", "metric"), STAGES_THAT_LEARN, ids=str)
def test_what_is_learned_later_is_saved_too(stage: Any, metric: Any, tmp_path: Path) -> None:
    index = asx.Index(DIM, metric, cascade=asx.Cascade([stage, asx.Full()]))
    index.add(collection(200).astype(np.float32))
    index.save(tmp_path)
    for seed in (1, 2):
        index.fit(collection(300, seed=seed).astype(np.float32) / seed)
        index.save(tmp_path)
        assert_alike(asx.Index.open(tmp_path), index)


def test_saving_little_by_little_leaves_few_segments(tmp_path: Path) -> None:
    index = asx.Index(DIM)
    for number in range(40):
        index.add(collection(5, seed=number).astype(np.float32))
        index.save(tmp_path)
    assert len(segments(tmp_path)) <= 5
    np.testing.assert_array_equal(asx.Index.open(tmp_path).ids, np.arange(200))


def test_a_mostly_deleted_segment_is_written_anew(tmp_path: Path) -> None:
    index = filled(collection(1_000), "cosine")
    index.save(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    index.remove(np.arange(900))
    index.save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < size / 4
    np.testing.assert_array_equal(asx.Index.open(tmp_path).ids, np.arange(900, 1_000))


def test_changes_before_a_save_stay_in_memory(tmp_path: Path) -> None:
    index = filled(collection(100), "cosine")
    index.save(tmp_path)
    opened = asx.Index.open(tmp_path)
    opened.remove(np.arange(80))
    opened.add(collection(5).astype(np.float32))
    assert len(asx.Index.open(tmp_path)) == 100
    opened.save(tmp_path)
    assert len(asx.Index.open(tmp_path)) == 25


def test_a_failed_save_leaves_both_index_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(collection(100), "cosine", cascade=cascades(keep=20)[2])
    index.save(tmp_path)
    index.remove(np.arange(70))
    index.add(collection(9, seed=2).astype(np.float32))
    before = index.search(questions(4), 20)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("adaptive_search.persistence.write_state", fail)
        with pytest.raises(OSError, match="disk full"):
            index.save(tmp_path)
    assert_equal(index.search(questions(4), 20), before)
    assert len(asx.Index.open(tmp_path)) == 100
    index.add(collection(1).astype(np.float32))
    index.save(tmp_path)
    assert_alike(asx.Index.open(tmp_path), index)


def test_verify_without_files_and_after_damage(tmp_path: Path) -> None:
    index = filled(collection(100), "cosine")
    index.verify()
    index.save(tmp_path)
    (segment,) = tmp_path.glob("segment-*")
    damaged = bytearray(segment.read_bytes())
    damaged[-1] ^= 1
    segment.write_bytes(damaged)
    with pytest.raises(asx.IndexFormatError, match=segment.name):
        index.verify()
    with pytest.raises(asx.IndexFormatError, match=segment.name):
        asx.Index.open(tmp_path, mmap=False)


# --- directories that are no index, or lie -----------------------------------------------------------------------------------
def test_open_refuses_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asx.Index.open(tmp_path / "nothing")
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(asx.IndexFormatError):
        asx.Index(DIM).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An index with two segments, a learned stage and deletions."""
    index = filled(
        collection(200), "l2", cascade=asx.Cascade([asx.Int8(dims=9, keep=20), asx.PQ(6, keep=10), asx.Prefix(5, keep=5), asx.Full()])
    )
    index.save(tmp_path)
    index.add(collection(70).astype(np.float32))
    index.remove([3, 4])
    index.save(tmp_path)
    assert len(segments(tmp_path)) == 2
    return tmp_path


Changes = Mapping[str, Any]


def lying(folder: Path, *, meta: Changes = {}, segment: Changes = {}, aux: Changes = {}, rows: int = 0) -> None:  # noqa: B006
    """Replace some of what an index says, with checksums that are right; None takes away."""
    state = read_state(folder)
    first, *others = state.segments
    arrays = {name: array for name, array in {**first.arrays, **segment}.items() if array is not None}
    files: dict[str, NewSegment] = {}
    for name, stored in state.aux.items():
        if (changes := aux.get(name, {})) is not None:
            files[name] = NewSegment({**stored.arrays, **changes})
    write_state(folder, [NewSegment(arrays, rows or first.rows), *others], aux=files, meta=state.meta | dict(meta))


@pytest.mark.parametrize(
    "meta",
    [
        {"dim": 25},
        {"dim": 0},
        {"dim": "24"},
        {"dim": 10**9},
        {"metric": "l3"},
        {"metric": ["l2"]},
        {"dtype": "float16"},
        {"dtype": "float64"},
        {"cascade": None},
        {"cascade": []},
        {"cascade": [{"stage": "Full"}]},
        {"cascade": [{"stage": "Stage"}]},
        {"cascade": [{"stage": ["Full"]}]},
        {"cascade": [{"stage": "PQ", "subspaces": 10**9, "keep": 5}]},
        {"cascade": [{"stage": "PQ", "subspaces": 25, "keep": 5}]},
        {"cascade": [{"stage": "PQ", "keep": 5}]},
        {"cascade": [{"stage": "Prefix", "dims": 5, "renormalize": 3}]},
        {"cascade": [{"keep": 5}]},
        {"cascade": [7]},
        {"cascade": {"stage": "Full"}},
        {"fit_rows": -1},
        {"fit_rows": None},
        {"fitted": False},
        {"fitted": 1},
        {"largest_id": 100},
        {"largest_id": 2**63},
        {"largest_id": -2},
        {"largest_id": None},
        {"asked": [0.9]},
        {"asked": ["x", 3]},
        {"asked": [2.0, 3]},
        {"asked": [0.9, 0]},
        {"asked": [10**400, 3]},
        {"asked": {}},
    ],
    ids=str,
)
def test_a_manifest_that_lies(saved: Path, meta: dict[str, Any]) -> None:
    lying(saved, meta=meta)
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(saved)


def test_a_manifest_that_lacks_something(saved: Path) -> None:
    state = read_state(saved)
    # Indexes of the first release say nothing of these.
    for name in state.meta.keys() - {"tuned", "changed", "chosen"}:
        write_state(saved, state.segments, aux=state.aux, meta={key: value for key, value in state.meta.items() if key != name})
        with pytest.raises(asx.IndexFormatError, match=name):
            asx.Index.open(saved)


IDS = np.arange(256)


@pytest.mark.parametrize(
    "segment",
    [
        {"ids": None},
        {"norm": None},
        {"vectors.1": None},
        {"stage.1.codes": None},
        {"ids": IDS.astype(np.int32)},
        {"ids": IDS[:192]},
        {"ids": np.where(IDS == 7, -1, IDS)},
        {"ids": np.where(IDS == 7, 8, IDS)},
        {"ids": np.where(IDS == 7, 10**9, IDS)},
        {"vectors.0": np.zeros((256, 5), np.float32)},
        {"vectors.0": np.zeros((192, 8), np.float32)},
        {"vectors.0": np.zeros((256, 8), np.int32)},
        {"stage.1.codes": np.zeros((4, 6, 32), np.uint8)},
        {"stage.1.codes": np.zeros((3, 6, 64), np.uint8)},
        {"more": IDS},
    ],
    ids=lambda segment: f"{next(iter(segment))}",
)
def test_a_segment_that_lies(saved: Path, segment: dict[str, Any]) -> None:
    lying(saved, segment=segment)
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(saved)


@pytest.mark.parametrize("rows", [1, 63, 192, 320, 65_536, 65_600, 2**40])
def test_a_segment_with_other_rows_than_it_says(saved: Path, rows: int) -> None:
    lying(saved, rows=rows)
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(saved)


@pytest.mark.parametrize("rotation", ["pca", "learned", "random"])
@pytest.mark.parametrize(
    "directions",
    [
        None,
        np.eye(DIM, dtype=np.float32)[:8],
        np.eye(DIM, dtype=np.float32),
        np.eye(DIM)[:9],
        np.full((9, DIM), np.nan, np.float32),
        np.full((9, DIM), 3e38, np.float32),
        np.repeat(np.eye(DIM, dtype=np.float32)[:3], 3, axis=0),
    ],
    ids=["none", "too few", "too many", "float64", "NaN", "huge", "repeated"],
)
def test_directions_that_lie(rotation: Any, directions: Any, tmp_path: Path) -> None:
    for stage in (asx.Int8(9, keep=20, rotation=rotation), asx.PQ(3, 4, 20, 9, rotation)):
        filled(collection(50), "l2", cascade=asx.Cascade([stage, asx.Full()])).save(tmp_path)
        asx.Index.open(tmp_path)
        state = read_state(tmp_path)
        changed = {**state.aux["stage_0"].arrays, "directions": directions}
        learned = NewSegment({name: array for name, array in changed.items() if array is not None})
        write_state(tmp_path, state.segments, aux={**state.aux, "stage_0": learned}, meta=state.meta)
        with pytest.raises(asx.IndexFormatError, match="stage_0"):
            asx.Index.open(tmp_path)


@pytest.mark.parametrize(
    "aux",
    [
        {"deletions": None},
        {"deletions": {"positions": np.array([-1])}},
        {"deletions": {"positions": np.array([5, 5])}},
        {"deletions": {"positions": np.array([6, 5])}},
        {"deletions": {"positions": np.array([10**6])}},
        {"deletions": {"positions": np.array([[1]])}},
        {"deletions": {"positions": np.array([1], np.int32)}},
        {"stage_0": None},
        {"stage_0": {"limits": np.zeros(8, np.float32)}},
        {"stage_0": {"limits": np.full(9, np.nan, np.float32)}},
        {"stage_1": None},
        {"stage_1": {"codebooks": np.zeros((6, 256, 5), np.float32)}},
        {"stage_1": {"codebooks": np.zeros((6, 16, 4), np.float32)}},
        {"stage_1": {"dim": np.array([23])}},
        {"stage_1": {"dim": np.array([2**62])}},
    ],
    ids=str,
)
def test_arrays_beside_the_rows_that_lie(saved: Path, aux: dict[str, Any]) -> None:
    lying(saved, aux=aux)
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(saved)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (asx.Binary(9, 20), asx.Binary(9, 20, "itq")),
        (asx.Binary(9, 20, "itq"), asx.Binary(9, 20)),
        (asx.Binary(9, 20, "itq"), asx.Binary(9, 20, "random")),
        (asx.Binary(9, 20, "itq"), asx.Binary(8, 20, "itq")),
    ],
    ids=str,
)
def test_sign_bits_of_other_directions_than_the_manifest_says(stage: asx.Binary, more: asx.Binary, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, own in zip(folders, (stage, more), strict=True):
        filled(collection(300), "l2", cascade=asx.Cascade([own, asx.Full()])).save(folder)
    state, others = (read_state(folder) for folder in folders)
    write_state(folders[0], state.segments, aux={"stage_0": others.aux["stage_0"]}, meta=state.meta)
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(folders[0])


@pytest.mark.parametrize(
    "state",
    [
        {"rotation": np.array([1])},
        {"rotation": np.array([7])},
        {"directions": np.eye(9, 24)},
        {"directions": np.eye(24, 9, dtype=np.float32)},
        {"directions": np.full((9, 24), 0.2, np.float32)},
        {"mean": np.full(24, np.nan, np.float32)},
        {"mean": np.zeros(9, np.float32)},
        {"radius": np.array([-1.0])},
        {"radius": np.array([1.0], np.float32)},
    ],
    ids=lambda state: f"{next(iter(state))}",
)
def test_directions_of_sign_bits_that_lie(state: dict[str, Any], tmp_path: Path) -> None:
    filled(collection(300), "l2", cascade=asx.Cascade([asx.Binary(9, 20, "itq"), asx.Full()])).save(tmp_path)
    asx.Index.open(tmp_path)
    lying(tmp_path, aux={"stage_0": state})
    with pytest.raises(asx.IndexFormatError):
        asx.Index.open(tmp_path)
