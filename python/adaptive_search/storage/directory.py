"""The filesystem operations of an index directory: every step at which a save can be cut short is a call in this module."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..types import U8, IndexFormatError

if sys.platform != "win32":
    import fcntl

# Large enough to keep a disk busy, small enough for Ctrl-C to be noticed soon.
SLICE = 4 << 20

# Absent on some systems. NONBLOCK keeps a named pipe that poses as a segment from hanging the reader.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@contextmanager
def open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading; anything but a regular file (link, pipe, device, directory) is an `IndexFormatError`."""
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise IndexFormatError(f"{path} is a symbolic link; an index consists of regular files") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IndexFormatError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def size_of(file: io.BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def make_directory(path: Path) -> None:
    """Create ``path`` and its missing parents so that they survive a crash."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):  # made by another process meanwhile
            folder.mkdir()
        sync_directory(folder.parent)


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Create a file that must not exist yet, and return when its bytes are on the disk (its name: `sync_directory`)."""
    descriptor = os.open(path, _CREATE, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)  # a disk may take less than it is given
            while rest:
                rest = rest[os.write(descriptor, rest[:SLICE]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Return when creations and renames in this directory are on the disk."""
    if sys.platform == "win32":
        return  # a directory cannot be opened there; NTFS journals names by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, temporary: Path) -> None:
    """Give a file new content at once, by way of a temporary file beside it; every file written before is then on the disk by name."""
    write_file(temporary, [content])
    sync_directory(path.parent)  # the new name must not become durable before the names that it relies on
    temporary.replace(path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Delete a file, or leave it to a later save (it may be mapped, which Windows does not allow to be deleted)."""
    with suppress(OSError):
        path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the directory's lock, so that two saves into it follow each other. Readers need no lock.

    The operating system drops the lock with the process. Where there is none (Windows, some network filesystems), saving
    into one directory from two processes at once is not protected.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def aligned_bytes(size: int, alignment: int) -> U8:
    """Uninitialised memory whose address is a multiple of ``alignment``."""
    memory = np.empty(size + alignment, np.uint8)
    first = -memory.ctypes.data % alignment
    return memory[first : first + size]
