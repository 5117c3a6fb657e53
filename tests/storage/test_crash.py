"""A save that is cut at any step, with any part of what was not yet flushed lost, leaves the old state or the new one.

A save runs once while every call that changes the filesystem is recorded. The record is then replayed up to each step on a
model of a disk that keeps only what it must: a file has the bytes of its last fsync (or some of the later ones, or zeros), a
directory the names of its last fsync (or any selection of the later changes). Every disk that can result is put into a real
directory and opened.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_search.storage import NewSegment, read_state, verify_state, write_state
from adaptive_search.types import IndexFormatError

Step = tuple[Any, ...]
Disk = dict[str, bytes]


class Recorder:
    """Stands in for the functions of `os` that change a filesystem, and writes down what was done in one folder.

    ``fail_at`` makes the step of that number an error instead.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.folder, self.fail_at, self.error = folder, fail_at, error
        self.steps: list[Step] = []
        self.opened: dict[int, str] = {}
        for name in ("open", "write", "fsync", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, self.wrapped(getattr(os, name), getattr(self, name)))

    def wrapped(self, real: Callable[..., Any], describe: Callable[..., Step | None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step = describe(*args, **kwargs)
            if step is not None:
                if len(self.steps) == self.fail_at and self.error is not None:
                    self.fail_at = None
                    raise self.error
                self.steps.append(step)
            result = real(*args, **kwargs)
            if real.__name__ == "open":
                self.opened[result] = self.inside(args[0]) or ""
            return result

        return call

    def inside(self, path: Any) -> str | None:
        path = Path(path)
        return path.name if path.parent == self.folder else "." if path == self.folder else None

    def open(self, path: Any, flags: int, *_: Any, **__: Any) -> Step | None:
        name = self.inside(path)
        return ("create", name) if name and flags & os.O_CREAT else None

    def write(self, descriptor: int, data: Any) -> Step | None:
        return ("write", self.opened[descriptor], bytes(data)) if self.opened.get(descriptor) else None

    def fsync(self, descriptor: int) -> Step | None:
        return ("sync", self.opened[descriptor]) if self.opened.get(descriptor) else None

    def replace(self, source: Any, target: Any) -> Step | None:
        return ("rename", self.inside(source), self.inside(target)) if self.inside(target) else None

    def unlink(self, path: Any, **_: Any) -> Step | None:
        return ("unlink", self.inside(path)) if self.inside(path) else None

    def mkdir(self, path: Any, *_: Any, **__: Any) -> Step | None:
        return None


class File:
    def __init__(self, content: bytes = b"") -> None:
        self.durable = self.content = content

    def possible(self) -> list[bytes]:
        """What a disk may hold of the file after a crash."""
        if self.content == self.durable:
            return [self.content]
        half = len(self.content) // 2
        return [self.content, self.durable, self.content[:half], self.content[:half] + bytes(len(self.content) - half)]


def disks(start: Disk, steps: list[Step]) -> Iterator[Disk]:
    """Every disk that a crash after these steps can leave."""
    names = {name: File(content) for name, content in start.items()}
    durable, pending = dict(names), []
    for kind, name, *rest in steps:
        if kind == "write":
            names[name].content += rest[0]
        elif kind == "sync" and name == ".":
            durable, pending = dict(names), []
        elif kind == "sync":
            names[name].durable = names[name].content
        else:
            file = File() if kind == "create" else names[name]
            change = (kind, name, rest[0] if rest else None, file)
            apply(names, change)
            pending.append(change)
    for kept in itertools.product([True, False], repeat=len(pending)):
        entries = dict(durable)
        for change in itertools.compress(pending, kept):
            apply(entries, change)
        for choice in range(4):
            yield {name: file.possible()[choice % len(file.possible())] for name, file in entries.items()}


def apply(names: dict[str, File], change: tuple[str, str, str | None, File]) -> None:
    kind, name, target, file = change
    names.pop(name, None)
    if kind == "create":
        names[name] = file
    elif kind == "rename" and target is not None:
        names[target] = file


def content(folder: Path) -> Disk:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def put(folder: Path, disk: Disk) -> Path:
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name, raw in disk.items():
        (folder / name).write_bytes(raw)
    return folder


def state_in(folder: Path) -> Any:
    """What a user would see; None if there is no index."""
    if not (folder / "manifest.json").exists():
        with pytest.raises(IndexFormatError, match="not an index"):
            read_state(folder)
        return None
    verify_state(folder)
    state = read_state(folder, mmap=False)
    arrays = [{name: array.tolist() for name, array in segment.arrays.items()} for segment in (*state.segments, *state.aux.values())]
    return arrays, list(state.aux), state.meta


def segment(value: int) -> NewSegment:
    return NewSegment({"a": np.full(40, value, "i4"), "b": np.full(3, value, "u1")}, rows=3)


def save_first(folder: Path) -> None:
    write_state(folder, [segment(1), segment(2)], aux={"deletions": segment(3)}, meta={"save": 1})


def save_second(folder: Path) -> None:
    before = read_state(folder)
    write_state(folder, [before.segments[0], segment(5)], aux={"deletions": segment(6)}, meta={"save": 2})


SAVES = {"into a new directory": (None, save_first), "over an index": (save_first, save_second)}


@pytest.mark.parametrize(("prepare", "save"), SAVES.values(), ids=SAVES.keys())
def test_a_crash_leaves_the_old_state_or_the_new_one(tmp_path: Path, prepare: Any, save: Callable[[Path], None]) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    if prepare:
        prepare(folder)
    start, old = content(folder), state_in(folder)
    with pytest.MonkeyPatch.context() as patch:
        steps = Recorder(folder, patch).steps
        save(folder)
    new = state_in(folder)
    assert content(folder) in list(disks(start, steps))
    assert new != old

    renamed = next(number for number, step in enumerate(steps) if step[0] == "rename")
    seen: dict[frozenset[tuple[str, bytes]], Any] = {}
    for cut in range(len(steps) + 1):
        for disk in disks(start, steps[:cut]):
            key = frozenset(disk.items())
            if key not in seen:
                crashed = put(tmp_path / "crashed", disk)
                seen[key] = state_in(crashed)
                # The next save works on whatever was left, and clears it up.
                write_state(crashed, [segment(9)])
                assert len(content(crashed)) == 2
            found = seen[key]
            assert found in (old, new)
            assert found == old or cut > renamed
            assert found == new or cut < len(steps)
    assert len(seen) > 2 * len(steps)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize(("prepare", "save"), SAVES.values(), ids=SAVES.keys())
def test_an_error_at_any_step_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, prepare: Any, save: Callable[[Path], None], error: BaseException
) -> None:
    for number in itertools.count():
        folder = tmp_path / str(number)
        folder.mkdir()
        if prepare:
            prepare(folder)
        old = state_in(folder)
        with pytest.MonkeyPatch.context() as patch:
            recorder = Recorder(folder, patch, number, error)
            failed = True
            with suppress(type(error)):
                save(folder)
                failed = False
        found = state_in(folder)
        committed = any(step[0] == "rename" for step in recorder.steps)
        assert (found == old) != committed
        if recorder.fail_at is not None:
            assert not failed
            break
        # Nothing is left behind, unless deleting was the step that failed.
        if found is None:
            assert content(folder) == {}
        elif failed and isinstance(error, OSError):
            named = [entry.entry.file for entry in (*read_state(folder).segments, *read_state(folder).aux.values())]
            assert set(content(folder)) == {"manifest.json", *named}
    assert number > 10
