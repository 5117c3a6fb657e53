"""How rows lie in memory and on disk, and how ids find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from index_cases import DIM, KINDS, as_kind, collection, filled

import adaptive_search as asx
from adaptive_search import identifiers
from adaptive_search.backends.protocol import Backend
from adaptive_search.layout import CHUNK_ROWS, Column, Slabs, padded_bytes
from adaptive_search.rows import RowStore
from adaptive_search.types import Array

STAGES = [
    asx.Binary(9, keep=9),
    asx.PQ(5, bits=4, keep=9),
    asx.RaBit(keep=9),
    asx.Int8(10, keep=9, rotation="pca"),
    asx.Prefix(7, keep=9),
    asx.Prefix(3, keep=9),
]


# --- layout ----------------------------------------------------------------------------------------------------------------
def test_rows_take_whole_cache_lines_or_a_power_of_two() -> None:
    sizes = [1, 2, 3, 8, 9, 31, 33, 63, 64, 65, 100, 128, 200]
    assert [padded_bytes(size) for size in sizes] == [1, 2, 4, 8, 16, 32, 64, 64, 64, 128, 128, 128, 256]


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_starts_on_a_cache_line(kind: str, tmp_path: Path) -> None:
    index = filled(collection(200), "l2", kind, asx.Cascade(STAGES))
    index.save(tmp_path)
    for each in (index, asx.Index.open(tmp_path), asx.Index.open(tmp_path, mmap=False)):
        for chunk in each._store.chunks:
            for name, array in chunk.arrays.items():
                column = each._store.columns[name]
                assert array.ctypes.data % 64 == 0
                assert array.flags.c_contiguous
                assert column.blocked or array.strides[0] == column.row_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_slabs_are_cut_at_the_prefixes_and_lose_nothing(kind: str, backend: Backend) -> None:
    rows = as_kind(collection(200), kind)
    index = filled(collection(200), "ip", kind, asx.Cascade([asx.Prefix(5, keep=9), asx.Prefix(24, keep=9), asx.Prefix(16, keep=9)]))
    (chunk,) = index._store.chunks
    assert [column.width for column in index._slabs.columns] == [5, 11, 8]
    joined = np.concatenate([array for slab in index._slabs.columns for array in index._store.used(slab.name)], axis=1)
    np.testing.assert_array_equal(joined, rows.view(np.uint16) if kind == "bfloat16" else rows)

    whole = rows.astype(np.float32)
    assert oracles.same_bits(chunk.arrays["norm"][:200], oracles.canonical_norms(whole))
    for dims in (5, 16):
        assert oracles.same_bits(chunk.arrays[f"norm.first.{dims}"][:200], oracles.canonical_norms(whole[:, :dims]))
        rest, exact = chunk.arrays[f"norm.rest.{dims}"][:200], oracles.norms(whole[:, dims:])
        assert (rest >= exact).all()
        np.testing.assert_allclose(rest, exact, rtol=1e-6)
    assert not {"norm.first.24", "norm.rest.24"} & chunk.arrays.keys()


@given(st.data(), st.integers(1, 40), st.lists(st.integers(1, 40), max_size=10))
def test_pieces_cover_any_range_of_dims(data: st.DataObject, dim: int, boundaries: list[int]) -> None:
    slabs = Slabs(dim, "float32", tuple(sorted({cut for cut in boundaries if cut < dim})))
    assert len(slabs.columns) <= 8
    whole = np.arange(3 * dim, dtype=np.float32).reshape(3, dim)
    arrays = []
    for column, start, stop in zip(slabs.columns, slabs.edges[:-1], slabs.edges[1:], strict=True):
        arrays.append(column.allocate(3))
        column.write(arrays[-1], 0, whole[:, start:stop])
    first = data.draw(st.integers(0, dim))
    last = data.draw(st.integers(first, dim))
    pieces = slabs.pieces(arrays, slice(1, 3), first, last)
    np.testing.assert_array_equal(np.concatenate([np.empty((2, 0)), *pieces], axis=1), whole[1:, first:last])


@given(st.integers(1, 9), st.lists(st.integers(1, 150), max_size=4))
def test_a_blocked_column_interleaves_64_rows(width: int, counts: list[int]) -> None:
    column = Column("codes", np.dtype(np.uint8), width, blocked=True)
    values = np.random.default_rng(0).integers(1, 256, (sum(counts), width)).astype(np.uint8)
    array = column.allocate(max(len(values), 1))
    array[...] = 77
    first = 0
    for count in counts:
        column.write(array, first, values[first : first + count])
        first += count
    used = column.used(array, len(values))
    for row, value in enumerate(values):
        np.testing.assert_array_equal(used[row // 64, :, row % 64], value)
    if len(values):
        assert not used[-1, :, (len(values) - 1) % 64 + 1 :].any()
    np.testing.assert_array_equal(column.read(array, np.arange(len(values))[::-3]), values[::-3])
    np.testing.assert_array_equal(column.read(array, slice(1, len(values))), values[1:])


# --- adding and removing -----------------------------------------------------------------------------------------------------
def test_adding_one_row_at_a_time_copies_each_row_a_few_times_only() -> None:
    store = RowStore([Column("x", np.dtype(np.int64))])
    arrays = set()
    for number in range(5_000):
        spans = store.stage(1)
        spans[0].chunk.arrays["x"][spans[0].first] = number
        store.commit(spans, np.array([number]))
        arrays.add(store.chunks[0].arrays["x"].ctypes.data)
    assert len(arrays) < 10
    np.testing.assert_array_equal(store.used("x")[0], np.arange(5_000))


def test_chunks_are_full_before_another_begins() -> None:
    store = RowStore([Column("x", np.dtype(np.int64))])
    for count in (1, CHUNK_ROWS, 2 * CHUNK_ROWS + 5):
        store.commit(store.stage(count), np.arange(store.total, store.total + count))
    assert [chunk.rows for chunk in store.chunks] == [CHUNK_ROWS] * 3 + [6]
    positions = np.array([0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, 3 * CHUNK_ROWS + 5])
    parts = [(store.chunks.index(chunk), local.tolist()) for chunk, _, local in store.split(positions)]
    assert parts == [(0, [0, 1, CHUNK_ROWS - 1]), (1, [0]), (3, [5])]


def test_memory_of_removed_rows_is_given_back() -> None:
    index = filled(collection(10_000), "cosine", cascade=asx.Cascade(STAGES))
    size = sum(array.nbytes for chunk in index._store.chunks for array in chunk.arrays.values())
    index.remove(np.arange(9_000))
    (chunk,) = index._store.chunks
    assert chunk.rows == 1_024
    assert sum(array.nbytes for array in chunk.arrays.values()) < size / 9
    index.remove(index.ids)
    assert index._store.chunks == []
    assert len(index) == index._store.total == 0


def test_chunks_but_the_last_hold_whole_groups_of_64(backend: Backend, tmp_path: Path) -> None:
    """Which the blocked layout needs, whatever was removed, saved and added before."""
    rng = np.random.default_rng(0)
    index = asx.Index(DIM, "l2", cascade=asx.Cascade([asx.PQ(5, keep=10_000), asx.Full()]), fit_rows=300)
    for number, count in enumerate((300, 5, 130, 1, 700)):
        index.add(collection(count + 4, seed=number)[:count].astype(np.float32))
        index.remove(rng.choice(index.ids, len(index) // 7, replace=False))
        index.save(tmp_path / "index")
        assert all(chunk.rows % 64 == 0 for chunk in index._store.chunks[:-1])
        queries = np.eye(3, DIM, dtype=np.float32)
        exact = index.search(queries, 50, recall=1.0)
        np.testing.assert_array_equal(index.search(queries, 50).ids, exact.ids)


# --- ids -------------------------------------------------------------------------------------------------------------------
def known_positions(ids: list[int], alive: list[bool]) -> dict[int, int]:
    return {number: position for position, (number, lives) in enumerate(zip(ids, alive, strict=True)) if lives}


@given(st.data())
def test_ids_are_found_as_in_a_dict(data: st.DataObject) -> None:
    found = identifiers.IdMap()
    ids: list[int] = []
    alive: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identifiers, "TAIL_LIMIT", data.draw(st.sampled_from([0, 3, 100])))
        for _ in range(data.draw(st.integers(1, 6))):
            known = known_positions(ids, alive)
            fresh = data.draw(st.lists(st.integers(0, 40).filter(lambda number: number not in known), max_size=9, unique=True))  # noqa: B023
            if data.draw(st.booleans()):
                fresh = sorted(number + len(ids) for number in fresh if number + len(ids) not in known)
            first = len(ids)
            ids += fresh
            alive += [True] * len(fresh)
            as_arrays = np.array(ids, np.int64), np.array(alive, bool)
            if fresh:
                found, latest, more = found.adding(np.array(fresh, np.int64), first, *as_arrays)
                latest |= more
            for position in data.draw(st.lists(st.integers(0, max(len(ids) - 1, 0)), max_size=5)):
                if position < len(alive):
                    alive[position] = False
            if data.draw(st.integers(0, 4)) == 0:
                found.rebuild(as_arrays[0], np.array(alive, bool))
            wanted = data.draw(st.lists(st.integers(-1, 100), max_size=20))
            places = found.find(np.array(wanted, np.int64), as_arrays[0], np.array(alive, bool))
            known = known_positions(ids, alive)
            np.testing.assert_array_equal(places, [known.get(number, -1) for number in wanted])


def test_rising_ids_take_no_memory() -> None:
    index = filled(collection(200), "cosine")
    before = index.plan.bytes_per_row
    index.add(collection(5).astype(np.float32), [1_000, 1_001, 5_000, 6_000, 7_000])
    assert index.plan.bytes_per_row == before
    index.add(collection(1).astype(np.float32), [999])
    assert index.plan.bytes_per_row == before + 16


def reads(index: asx.Index) -> Array:
    return np.concatenate([array for slab in index._slabs.columns for array in index._store.used(slab.name)], axis=1)


def test_an_opened_index_is_mapped_until_it_changes(tmp_path: Path) -> None:
    index = filled(collection(300), "cosine", cascade=asx.Cascade(STAGES))
    index.save(tmp_path)
    opened = asx.Index.open(tmp_path)
    (chunk,) = opened._store.chunks
    assert not any(array.flags.writeable for array in chunk.arrays.values())
    before = reads(opened)
    opened.add(collection(70).astype(np.float32))
    assert opened._store.chunks[0] is chunk
    np.testing.assert_array_equal(before, reads(asx.Index.open(tmp_path)))
    opened.remove(np.arange(200))
    assert all(array.flags.writeable for array in opened._store.chunks[0].arrays.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_removal_removes_nothing(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    index = asx.Index(4)
    index.add(np.eye(4, dtype=np.float32)[np.arange(600) % 4])

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(identifiers.IdMap, "rebuild", fail)
    with pytest.raises(error):
        index.remove(np.arange(500))
    monkeypatch.undo()
    assert len(index) == 600
    assert 0 in index
    np.testing.assert_array_equal(index.search(np.eye(4)[1], 3).ids, [1, 5, 9])
    index.remove(np.arange(500))
    np.testing.assert_array_equal(index.ids, np.arange(500, 600))
    np.testing.assert_array_equal(index.search(np.eye(4)[1], 3).ids, [501, 505, 509])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("method", ["rebuild", "adding"])
def test_an_interrupted_add_adds_nothing(monkeypatch: pytest.MonkeyPatch, method: str, error: type[BaseException]) -> None:
    index = asx.Index(4)
    index.add(np.eye(4, dtype=np.float32)[np.arange(600) % 4])
    before = index.plan

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(identifiers.IdMap, method, fail)
    with pytest.raises(error):
        index.add(np.ones((70_000, 4), np.float32), np.arange(70_600, 600, -1))
    monkeypatch.undo()
    assert len(index) == len(index.ids) == 600
    assert 601 not in index
    assert index.plan == before
    index.add(np.ones((70_000, 4), np.float32), np.arange(70_600, 600, -1))
    np.testing.assert_array_equal(index.search(np.ones(4), 3).ids, [601, 602, 603])
    np.testing.assert_array_equal(index.search(np.eye(4)[1], 3).ids, [1, 5, 9])


@pytest.mark.long
@pytest.mark.parametrize("stages", [[asx.Int8(8), asx.Full()], [asx.PQ(4, keep=50), asx.Full()]], ids=str)
def test_what_is_learned_anew_is_installed_as_a_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, stages: list[Any]) -> None:
    rows = collection(5_000).astype(np.float32)
    index = filled(rows, "cosine", cascade=asx.Cascade(stages))
    index.tune(rows[:60] + 1, recall=0.8)
    before, answer = index.plan, index.search(rows[:50] + 1)
    exchanged = RowStore.exchanged

    def fail(*arguments: Any) -> None:
        exchanged(*arguments)
        raise KeyboardInterrupt

    for change in (lambda: index.tune(rows[:90] + 1, recall=0.9), lambda: index.fit(rows[:50])):
        monkeypatch.setattr(RowStore, "exchanged", fail)
        with pytest.raises(KeyboardInterrupt):
            change()
        monkeypatch.undo()
        assert index.plan == before
        np.testing.assert_array_equal(index.search(rows[:50] + 1).ids, answer.ids)
    index.add(rows[:70] + 1)
    assert index.search(rows[:50] + 1).ids.shape == (50, 10)
