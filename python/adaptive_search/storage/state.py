"""A state of an index on disk: written atomically, read with every claim checked.

A save writes new files under random names and flushes them, makes their names durable, and only then replaces the manifest by
a rename; what the new manifest no longer names is deleted last. A reader therefore finds one complete state at any time, and what it
has mapped stays valid although its file is deleted. Saves into one directory follow each other (`directory.locked`); the
last one wins.
"""

from __future__ import annotations

import hashlib
import io
import mmap as memory_map
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from ..types import U8, Array, IndexFormatError
from . import directory, manifest
from .manifest import FileEntry, Manifest
from .tensors import ALIGNMENT, Columns, Tensor, header_length, parse_header, view_arrays

Result = TypeVar("Result")

_MANIFEST = "manifest.json"
# What saves leave behind when they are cut short: only files of these names are ever deleted.
_OURS = re.compile(rf"(?:{manifest.AUX_NAME.pattern}-[0-9a-f]{{32}}\.safetensors|manifest-[0-9a-f]{{32}}\.tmp)")


@dataclass(frozen=True, eq=False)
class NewSegment:
    """Arrays that are not on disk yet.

    Attributes
    ----------
    arrays : mapping of str to array or sequence of arrays
        A sequence is stored as one array, joined along the first axis, without being joined in memory. bfloat16 values are handed
        over as uint16; that they are bfloat16 belongs into ``meta``.
    rows : int
        Number of rows that the arrays describe; kept in the manifest, not interpreted.
    """

    arrays: Mapping[str, Array | Sequence[Array]]
    rows: int = 0


@dataclass(frozen=True, eq=False)
class StoredSegment:
    """Arrays of one file, read-only, mapped or in memory."""

    arrays: Mapping[str, Array]
    entry: FileEntry

    @property
    def rows(self) -> int:
        return self.entry.rows


@dataclass(frozen=True, eq=False)
class State:
    """What a directory holds: the segments in order, further groups of arrays by name, and the owner's JSON object."""

    segments: tuple[StoredSegment, ...] = ()
    aux: Mapping[str, StoredSegment] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def write_state(
    path: str | os.PathLike[str],
    segments: Sequence[NewSegment | StoredSegment],
    *,
    aux: Mapping[str, NewSegment | StoredSegment] | None = None,
    meta: dict[str, Any] | None = None,
    version: int = 1,
) -> State:
    """Make this state the content of a directory: all of it, or, after an error or a crash, nothing of it.

    A `StoredSegment` that the directory already holds is kept, not rewritten; any other is written.

    Parameters
    ----------
    path : path
        A new or empty directory, or one that holds an index. Missing parents are created.
    segments : sequence of NewSegment or StoredSegment
        In the order in which they are to be read.
    aux : mapping of str to NewSegment or StoredSegment
        Arrays beside the segments, such as deletions and codebooks, each in a file of its own that is replaced when it changes.
        Names are lower-case letters, digits and ``_``.
    meta : dict
        A JSON object.
    version : int
        Of the format: the lowest that says all that readers must know of ``meta`` (`manifest.VERSION`).

    Returns
    -------
    State
        As `read_state` would return it, with new segments mapped; stored segments are those given.

    Raises
    ------
    IndexFormatError
        If the directory holds something else, or a damaged index; it is left as it was. Also if a stored segment was found
        damaged while being copied from another directory.
    TypeError, ValueError
        If an array, a name or ``meta`` cannot be stored.
    OSError
        From the filesystem.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from adaptive_search.storage import NewSegment, read_state, write_state
    >>> folder = tempfile.mkdtemp()
    >>> state = write_state(folder, [NewSegment({"ids": np.arange(3)}, rows=3)])
    >>> state = write_state(folder, [*state.segments, NewSegment({"ids": np.arange(3, 5)}, rows=2)], meta={"dim": 8})
    >>> [segment.arrays["ids"].tolist() for segment in read_state(folder).segments]
    [[0, 1, 2], [3, 4]]
    """
    folder = Path(path)
    aux = aux or {}
    for name in aux:
        if not isinstance(name, str) or not manifest.AUX_NAME.fullmatch(name):
            raise ValueError(f"names under aux are lower-case letters, digits and '_', up to 40; got {name!r}")
    # Whatever cannot be stored is found here, before the directory is touched.
    named = [("segment", segment, Columns(segment.arrays)) for segment in segments]
    named += [(name, segment, Columns(segment.arrays)) for name, segment in aux.items()]
    manifest.encode(Manifest((), {}, meta or {}, version))

    directory.make_directory(folder)
    with directory.locked(folder):
        present = _present_files(folder)
        try:
            stored = []
            for name, segment, columns in named:
                if isinstance(segment, NewSegment) or segment.entry not in present:
                    segment = _write_segment(folder, name, segment, columns)
                stored.append(segment)
            count = len(segments)
            files = dict(zip(aux, stored[count:], strict=True))
            entries = tuple(segment.entry for segment in stored[:count])
            content = Manifest(entries, {name: segment.entry for name, segment in files.items()}, meta or {}, version)
            raw = manifest.encode(content)
            directory.replace_file(folder / _MANIFEST, raw, folder / f"manifest-{secrets.token_hex(16)}.tmp")
        finally:
            _remove_unnamed(folder)
    return State(tuple(stored[:count]), MappingProxyType(files), manifest.decode(raw).meta)


def read_state(path: str | os.PathLike[str], *, mmap: bool = True) -> State:
    """Read what a directory holds.

    Parameters
    ----------
    path : path
        A directory written by `write_state`.
    mmap : bool
        True: arrays are mapped and read from disk when used; the manifest, the size of every file and its header are
        checked. False: arrays are read into memory and every byte is checked.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    IndexFormatError
        If it is not an index, or anything in it is not as the manifest says.
    """
    folder = Path(path)
    read = _map_file if mmap else _load_file

    def read_all(content: Manifest) -> State:
        stored = [StoredSegment(MappingProxyType(read(folder, entry)), entry) for entry in content.entries]
        count = len(content.segments)
        return State(tuple(stored[:count]), MappingProxyType(dict(zip(content.aux, stored[count:], strict=True))), content.meta)

    return _consistently(folder, read_all)


def verify_state(path: str | os.PathLike[str]) -> None:
    """Check every byte of a directory against its checksums; memory use does not depend on its size.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    IndexFormatError
        Naming the first file that is not as the manifest says.
    """
    folder = Path(path)

    def verify_all(content: Manifest) -> None:
        for entry in content.entries:
            _map_file(folder, entry)
            with directory.open_regular(folder / entry.file) as file:
                _check_digest(file, entry, None)

    _consistently(folder, verify_all)


def _consistently(folder: Path, read: Callable[[Manifest], Result]) -> Result:
    """Read one state, beginning again if a save has replaced it, and deleted files of it, in the meantime."""
    raw = _manifest_bytes(folder)
    while True:
        try:
            return read(manifest.decode(raw))
        except FileNotFoundError as error:
            before, raw = raw, _manifest_bytes(folder)
            if raw == before:
                raise IndexFormatError(f"{error.filename} is named by the manifest but missing") from None


def _manifest_bytes(folder: Path) -> bytes:
    if not folder.is_dir():
        if folder.exists():
            raise IndexFormatError(f"{folder} is not a directory")
        raise FileNotFoundError(f"no such directory: {folder}")
    try:
        with directory.open_regular(folder / _MANIFEST) as file:
            return file.read(manifest.MAX_BYTES + 1)
    except FileNotFoundError:
        raise IndexFormatError(f"{folder} is not an index: it has no {_MANIFEST}") from None


def _present_files(folder: Path) -> set[FileEntry]:
    """Files of the index in this directory that are there in full size; or the reason not to save here."""
    names = [file.name for file in folder.iterdir()]
    if _MANIFEST not in names:
        strange = [name for name in names if not _OURS.fullmatch(name)]
        if strange:
            raise IndexFormatError(f"{folder} is not an index and not empty: it holds {strange[0]!r}")
        return set()
    present = set()
    for entry in manifest.decode(_manifest_bytes(folder)).entries:
        try:
            with directory.open_regular(folder / entry.file) as file:
                if directory.size_of(file) == entry.bytes:
                    present.add(entry)
        except (FileNotFoundError, IndexFormatError):
            continue
    return present


def _remove_unnamed(folder: Path) -> None:
    """Delete what no longer or never belonged to the state on disk: superseded files, and those of saves cut short."""
    try:
        names = [file.name for file in folder.iterdir()]
        named = {entry.file for entry in manifest.decode(_manifest_bytes(folder)).entries} if _MANIFEST in names else set()
    except (IndexFormatError, OSError):
        return  # nothing is deleted unless it is known what to keep
    for name in names:
        if _OURS.fullmatch(name) and name not in named:
            directory.remove(folder / name)


def _write_segment(folder: Path, name: str, segment: NewSegment | StoredSegment, columns: Columns) -> StoredSegment:
    file = f"{name}-{secrets.token_hex(16)}.safetensors"
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes | memoryview]:
        nonlocal size
        for piece in columns.pieces():
            digest.update(piece)
            size += len(piece)
            yield piece

    directory.write_file(folder / file, hashed())
    entry = FileEntry(file, segment.rows, size, hashlib.sha256(columns.header).hexdigest(), digest.hexdigest())
    # A copy must not give damaged bytes a new, matching checksum. The same header means the same layout, hence the same bytes.
    if isinstance(segment, StoredSegment) and segment.entry.header_sha256 == entry.header_sha256 and segment.entry.sha256 != entry.sha256:
        raise IndexFormatError(f"{segment.entry.file} is damaged: its bytes do not have the checksum in the manifest")
    return StoredSegment(MappingProxyType(_map_file(folder, entry)), entry)


def _map_file(folder: Path, entry: FileEntry) -> dict[str, Array]:
    with directory.open_regular(folder / entry.file) as file:
        tensors = _checked_header(file, entry)
        try:
            memory = memory_map.mmap(file.fileno(), entry.bytes, access=memory_map.ACCESS_READ)
        except (ValueError, OverflowError):  # it shrank after its size was checked
            raise IndexFormatError(f"{entry.file} changed while it was being opened") from None
        return view_arrays(np.frombuffer(memory, np.uint8), tensors, entry.file)


def _load_file(folder: Path, entry: FileEntry) -> dict[str, Array]:
    with directory.open_regular(folder / entry.file) as file:
        tensors = _checked_header(file, entry)
        memory = directory.aligned_bytes(entry.bytes, ALIGNMENT)
        _check_digest(file, entry, memory)
        return view_arrays(memory, tensors, entry.file)


def _checked_header(file: io.BufferedReader, entry: FileEntry) -> dict[str, Tensor]:
    size = directory.size_of(file)
    if size != entry.bytes:
        raise IndexFormatError(f"{entry.file} has {size} bytes, the manifest says {entry.bytes}")
    prefix = file.read(8)
    text = file.read(header_length(prefix, size, entry.file))
    if hashlib.sha256(prefix + text).hexdigest() != entry.header_sha256:
        raise IndexFormatError(f"{entry.file} is damaged: its header does not have the checksum in the manifest")
    return parse_header(text, size, entry.file)


def _check_digest(file: io.BufferedReader, entry: FileEntry, memory: U8 | None) -> None:
    """Compare the checksum of a whole file, whose bytes are kept in ``memory`` if given."""
    file.seek(0)
    digest = hashlib.sha256()
    passing = np.empty(directory.SLICE, np.uint8)
    for first in range(0, entry.bytes, directory.SLICE):
        window = passing if memory is None else memory[first : first + directory.SLICE]
        piece = window[: entry.bytes - first].data
        if file.readinto(piece) != len(piece):
            raise IndexFormatError(f"{entry.file} changed while it was being read")
        digest.update(piece)
    if digest.hexdigest() != entry.sha256:
        raise IndexFormatError(f"{entry.file} is damaged: its bytes do not have the checksum in the manifest")
