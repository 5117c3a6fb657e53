"""Saving and opening directories: what is kept, what is refused, what damage does."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_search.storage import NewSegment, State, StoredSegment, directory, read_state, verify_state, write_state
from adaptive_search.types import IndexFormatError


def rows(first: int, count: int) -> NewSegment:
    ids = np.arange(first, first + count)
    return NewSegment({"ids": ids, "vectors": np.outer(ids, np.ones(3, "f4"))}, rows=count)


def ids(state: State) -> list[list[int]]:
    return [segment.arrays["ids"].tolist() for segment in state.segments]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """What a rewritten file cannot keep: its inode and time of modification."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def save_example(folder: Path) -> State:
    aux = {"deletions": NewSegment({"rows": np.array([2], "i8")}), "codebooks": NewSegment({"pq": np.ones((4, 16, 2), "f4")})}
    return write_state(folder, [rows(0, 5), rows(5, 2)], aux=aux, meta={"dim": 3, "kind": "bfloat16"})


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "loaded"])
def test_a_state_comes_back(tmp_path: Path, mmap: bool) -> None:
    saved = save_example(tmp_path)
    for state in (saved, read_state(tmp_path, mmap=mmap)):
        assert ids(state) == [[0, 1, 2, 3, 4], [5, 6]]
        assert [segment.rows for segment in state.segments] == [5, 2]
        assert list(state.aux) == ["deletions", "codebooks"]
        assert state.aux["deletions"].arrays["rows"].tolist() == [2]
        assert state.aux["codebooks"].arrays["pq"].shape == (4, 16, 2)
        assert state.meta == {"dim": 3, "kind": "bfloat16"}
    assert len(files(tmp_path)) == 5


def test_an_empty_state_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path, [])
    state = read_state(tmp_path)
    assert (state.segments, dict(state.aux), state.meta) == ((), {}, {})
    verify_state(tmp_path)


def test_a_segment_without_rows_or_arrays_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path, [rows(0, 0), NewSegment({})])
    first, second = read_state(tmp_path, mmap=False).segments
    assert first.arrays["vectors"].shape == (0, 3)
    assert dict(second.arrays) == {}


def test_missing_parents_are_made_and_relative_paths_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_state("a/b/index", [rows(0, 1)])
    assert ids(read_state("a/b/index")) == [[0]]
    monkeypatch.chdir("a/b")
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    write_state(".", [rows(1, 1)])
    assert ids(read_state("../empty")) == [[1]]


def test_saving_a_change_writes_only_the_change(tmp_path: Path) -> None:
    first = save_example(tmp_path)
    before = files(tmp_path)
    second = write_state(
        tmp_path,
        [*first.segments, rows(7, 1)],
        aux={**first.aux, "deletions": NewSegment({"rows": np.array([2, 3], "i8")})},
        meta=first.meta,
    )
    after = files(tmp_path)
    kept = [segment.entry.file for segment in (*first.segments, first.aux["codebooks"])]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert first.aux["deletions"].entry.file not in after
    assert len(after) == 6
    for state in (second, read_state(tmp_path)):
        assert ids(state) == [[0, 1, 2, 3, 4], [5, 6], [7]]
        assert state.aux["deletions"].arrays["rows"].tolist() == [2, 3]
    verify_state(tmp_path)


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "loaded"])
def test_arrays_stay_valid_when_their_files_are_superseded(tmp_path: Path, mmap: bool) -> None:
    save_example(tmp_path)
    reader = read_state(tmp_path, mmap=mmap)
    write_state(tmp_path, [rows(100, 1)])
    assert ids(reader) == [[0, 1, 2, 3, 4], [5, 6]]
    assert ids(read_state(tmp_path)) == [[100]]
    assert len(files(tmp_path)) == 2
    # A process that still holds the old state may save it again: what the directory no longer has is written anew.
    write_state(tmp_path, reader.segments, aux=reader.aux)
    assert ids(read_state(tmp_path, mmap=False)) == [[0, 1, 2, 3, 4], [5, 6]]


def test_a_state_can_be_saved_elsewhere(tmp_path: Path) -> None:
    state = save_example(tmp_path / "one")
    write_state(tmp_path / "two", state.segments, aux=state.aux, meta=state.meta)
    assert ids(read_state(tmp_path / "two")) == ids(state)
    verify_state(tmp_path / "one")
    verify_state(tmp_path / "two")


def test_a_copy_does_not_give_damaged_bytes_a_new_checksum(tmp_path: Path) -> None:
    entry = save_example(tmp_path / "one").segments[0].entry
    file = tmp_path / "one" / entry.file
    flip(file, file.read_bytes().index(np.arange(5).tobytes()))
    state = read_state(tmp_path / "one")
    write_state(tmp_path / "two", [rows(0, 9)])
    with pytest.raises(IndexFormatError, match=entry.file):
        write_state(tmp_path / "two", state.segments)
    assert ids(read_state(tmp_path / "two")) == [list(range(9))]
    assert len(files(tmp_path / "two")) == 2


@pytest.mark.parametrize("damage", ["missing", "bytes"])
def test_a_stored_segment_whose_file_has_gone_or_shrunk_is_written_again(tmp_path: Path, damage: str) -> None:
    save_example(tmp_path)
    state = read_state(tmp_path, mmap=False)
    file = tmp_path / state.segments[0].entry.file
    file.unlink()
    if damage == "bytes":
        file.write_bytes(b"short")
    with pytest.raises(IndexFormatError, match=damage):
        read_state(tmp_path)
    write_state(tmp_path, state.segments)
    assert ids(read_state(tmp_path, mmap=False)) == [[0, 1, 2, 3, 4], [5, 6]]


def test_one_stored_segment_cannot_stand_twice(tmp_path: Path) -> None:
    state = save_example(tmp_path)
    with pytest.raises(ValueError, match="twice"):
        write_state(tmp_path, [state.segments[0], state.segments[0]])
    assert ids(read_state(tmp_path)) == ids(state)


@pytest.mark.parametrize("name", ["Deletions", "a-b", "", "../x", "x" * 41, 3])
def test_aux_names_are_checked(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match="names under aux"):
        write_state(tmp_path / "index", [], aux={name: NewSegment({})})
    assert list(tmp_path.iterdir()) == []


# --- what is not an index -------------------------------------------------------------------------------------------


def test_nothing_is_saved_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IndexFormatError, match=r"notes\.txt"):
        write_state(tmp_path, [rows(0, 1)])
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"name": "a web page", "icons": []}\n'])
def test_nothing_is_saved_over_the_manifest_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(IndexFormatError):
        write_state(tmp_path, [rows(0, 1)])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"manifest.json": content}


def test_files_of_others_are_ignored_and_kept(tmp_path: Path) -> None:
    state = save_example(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "segment-old.safetensors").write_text("mine")
    assert ids(read_state(tmp_path)) == ids(state)
    write_state(tmp_path, [rows(0, 1)])
    verify_state(tmp_path)
    assert {"README.md", "segment-old.safetensors"} < set(files(tmp_path))


@pytest.mark.parametrize("read", [read_state, verify_state])
def test_what_is_not_an_index_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read(tmp_path / "absent")
    with pytest.raises(IndexFormatError, match="not an index"):
        read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexFormatError, match="not a directory"):
        read(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        write_state(tmp_path / "file", [])


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(file: Path, byte: int, bit: int = 0) -> None:
    raw = bytearray(file.read_bytes())
    raw[byte] ^= 1 << bit
    file.write_bytes(raw)


def test_every_flipped_byte_of_a_segment_is_noticed(tmp_path: Path) -> None:
    entry = save_example(tmp_path).segments[1].entry
    file = tmp_path / entry.file
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for byte in range(len(good)):
        flip(file, byte, bit=byte % 8)
        with pytest.raises(IndexFormatError, match=entry.file):
            verify_state(tmp_path)
        with pytest.raises(IndexFormatError, match=entry.file):
            read_state(tmp_path, mmap=False)
        if byte < header:
            with pytest.raises(IndexFormatError, match=entry.file):
                read_state(tmp_path)
        file.write_bytes(good)
    verify_state(tmp_path)


def test_flips_in_every_slice_of_a_large_segment_are_noticed(tmp_path: Path) -> None:
    entry = write_state(tmp_path, [NewSegment({"a": np.zeros(2 * directory.SLICE + 1000, "u1")})]).segments[0].entry
    verify_state(tmp_path)
    for byte in [directory.SLICE - 1, directory.SLICE, 2 * directory.SLICE + 5, entry.bytes - 1]:
        flip(tmp_path / entry.file, byte)
        with pytest.raises(IndexFormatError, match=entry.file):
            verify_state(tmp_path)
        flip(tmp_path / entry.file, byte)
    verify_state(tmp_path)


def test_every_truncation_and_addition_is_noticed(tmp_path: Path) -> None:
    entry = save_example(tmp_path).segments[1].entry
    file = tmp_path / entry.file
    good = file.read_bytes()
    for damaged in [good[:length] for length in range(len(good))] + [good + b"\0", good * 2]:
        file.write_bytes(damaged)
        for read in (read_state, lambda path: read_state(path, mmap=False), verify_state):
            with pytest.raises(IndexFormatError, match=entry.file):
                read(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "terabytes of nothing"])
def test_a_segment_that_is_not_a_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    entry = save_example(tmp_path / "index").segments[0].entry
    file = tmp_path / "index" / entry.file
    moved = file.rename(tmp_path / "elsewhere")
    if kind == "link":
        file.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        with file.open("wb") as sparse:
            sparse.truncate(1 << 42)
    for read in (read_state, lambda path: read_state(path, mmap=False), verify_state):
        with pytest.raises(IndexFormatError, match=entry.file):
            read(tmp_path / "index")


def test_segments_of_two_indexes_cannot_be_exchanged(tmp_path: Path) -> None:
    one = write_state(tmp_path / "one", [rows(0, 5)]).segments[0].entry
    two = write_state(tmp_path / "two", [NewSegment({"ids": np.arange(5), "other": np.zeros((5, 3), "f4")})]).segments[0].entry
    (tmp_path / "one" / one.file).write_bytes((tmp_path / "two" / two.file).read_bytes())
    with pytest.raises(IndexFormatError, match=one.file):
        read_state(tmp_path / "one")


# --- several processes and threads ------------------------------------------------------------------------------------


def test_readers_always_find_one_state_while_others_save(tmp_path: Path) -> None:
    save_numbered(tmp_path, 0)
    done = threading.Event()
    problems: list[BaseException] = []
    seen: set[int] = set()

    def read_again_and_again() -> None:
        try:
            while not done.is_set():
                state = read_state(tmp_path, mmap=random.random() < 0.5)
                number = state.meta["number"]
                assert ids(state) == [[number], [number]]
                seen.add(number)
                verify_state(tmp_path)
        except BaseException as error:
            problems.append(error)

    def save_again_and_again(first: int) -> None:
        try:
            for number in range(first, first + 15):
                save_numbered(tmp_path, number)
        except BaseException as error:
            problems.append(error)

    reader = threading.Thread(target=read_again_and_again)
    writers = [threading.Thread(target=save_again_and_again, args=(first,)) for first in (100, 200)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert problems == []
    assert seen
    assert read_state(tmp_path).meta["number"] in (114, 214)
    assert len(files(tmp_path)) == 3


def save_numbered(folder: Path, number: int) -> None:
    write_state(folder, [rows(number, 1), rows(number, 1)], meta={"number": number})


def test_a_file_that_cannot_be_deleted_goes_at_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(path)

    write_state(tmp_path, [rows(0, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        write_state(tmp_path, [rows(1, 1)])
        assert len(files(tmp_path)) == 3
    assert ids(read_state(tmp_path)) == [[1]]
    write_state(tmp_path, [rows(2, 1)])
    assert len(files(tmp_path)) == 2


def test_stored_segments_are_what_reading_returns(tmp_path: Path) -> None:
    saved = save_example(tmp_path)
    assert all(isinstance(segment, StoredSegment) for segment in saved.segments)
    assert [segment.entry for segment in saved.segments] == [segment.entry for segment in read_state(tmp_path).segments]
