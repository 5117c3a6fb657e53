"""Named arrays on disk: immutable segments, one manifest that is replaced atomically, checksums over every byte.

An index is a directory:

* ``manifest.json`` names every other file, with its size and checksums, and ends with a checksum of itself (`manifest`);
* ``segment-<random>.safetensors`` and ``<name>-<random>.safetensors`` hold arrays, each starting on 64 bytes (`tensors`).

A save writes new files, flushes them, and then replaces the manifest, so that a crash leaves the old state or the new one
(`state`). Files that are not named by the manifest are ignored by readers.
"""

from .manifest import VERSION, FileEntry
from .merging import segments_to_merge
from .state import NewSegment, State, StoredSegment, read_state, verify_state, write_state

__all__ = [
    "VERSION",
    "FileEntry",
    "NewSegment",
    "State",
    "StoredSegment",
    "read_state",
    "segments_to_merge",
    "verify_state",
    "write_state",
]
