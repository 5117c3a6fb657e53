"""The manifest: a JSON object that names every file of an index, and whose last member is the SHA-256 of all bytes before it.

Every version of the format keeps three things, so that any release can say what it met: the members ``format`` and
``version``, and the last member, written exactly as `_tail` writes it.

Why SHA-256: it rejects every change, not only single bits; ``sha256sum`` checks a segment by hand; and with the processor's SHA
instructions it is the fastest strong hash of the standard library (measured on one EPYC core: SHA-256 1.8 GB/s, BLAKE2b 1.25,
CRC-32 5.3), about as fast as a good disk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..types import IndexFormatError
from .strict_json import parse
from .tensors import MAX_ARRAY_BYTES

FORMAT = "adaptive_search index"
VERSION = 2
"""The newest that is known: 2 says that the owner's object holds what a reader of version 1 would overlook, and is else the same."""
MAX_BYTES = 4 << 20
_MAX_DEPTH = 32

AUX_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# No separator, no dot at the beginning, no device name: such a name stays inside the directory on every system.
_FILE_NAME = re.compile(rf"{AUX_NAME.pattern}-[0-9a-f]{{32}}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file.

    Attributes
    ----------
    file : str
        Name within the directory.
    rows : int
        Rows that its arrays describe; 0 for arrays that describe none.
    bytes : int
        Size of the file.
    header_sha256, sha256 : str
        Of the file up to the end of its header, and of the whole file.
    """

    file: str
    rows: int
    bytes: int
    header_sha256: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Segments in order, further files by name, and the owner's own JSON object."""

    segments: tuple[FileEntry, ...]
    aux: Mapping[str, FileEntry]
    meta: dict[str, Any]
    version: int = 1

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """Every file, segments first."""
        return (*self.segments, *self.aux.values())


def encode(manifest: Manifest) -> bytes:
    """The bytes of the manifest.

    Raises
    ------
    TypeError, ValueError
        If ``meta`` is not plain finite JSON, or anything that `decode` would reject.
    """
    content = {
        "format": FORMAT,
        "version": manifest.version,
        "meta": manifest.meta,
        "segments": [asdict(entry) for entry in manifest.segments],
        "aux": {name: asdict(entry) for name, entry in manifest.aux.items()},
    }
    body = json.dumps(content, indent=2, allow_nan=False).removesuffix("\n}").encode()
    raw = body + _tail(body)
    decode(raw)
    return raw


def decode(raw: bytes) -> Manifest:
    """Check and read the bytes of a manifest; anything unexpected is an `IndexFormatError`."""
    if len(raw) > MAX_BYTES:
        raise IndexFormatError(f"the manifest has more than {MAX_BYTES} bytes")
    # Compared as text, before anything is parsed: every flipped bit is in the body or in the tail, and either shows here.
    body = raw[: -len(_tail(b""))]
    if raw != body + _tail(body):
        raise IndexFormatError("the manifest does not end with the checksum of its bytes: it is damaged or not a manifest")
    content = parse(raw, "the manifest", max_depth=_MAX_DEPTH)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise IndexFormatError(f"the manifest is not that of an {FORMAT}")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise IndexFormatError(f"the index has format version {str(version)[:40]}; this release reads up to version {VERSION}")
    if content.keys() != {"format", "version", "meta", "segments", "aux", "sha256"}:
        raise IndexFormatError("the manifest lacks a member or has an unknown one")
    meta, segments, aux = content["meta"], content["segments"], content["aux"]
    if not isinstance(meta, dict) or not isinstance(segments, list) or not isinstance(aux, dict):
        raise IndexFormatError("meta, segments or aux of the manifest has the wrong type")
    for name in aux:
        if not AUX_NAME.fullmatch(name):
            raise IndexFormatError(f"the manifest names {name[:40]!r} under aux")
    manifest = Manifest(tuple(_entry(item) for item in segments), {name: _entry(item) for name, item in aux.items()}, meta, version)
    if len({entry.file for entry in manifest.entries}) < len(manifest.entries):
        raise IndexFormatError("the manifest names a file twice")
    return manifest


def _tail(body: bytes) -> bytes:
    return b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _entry(value: Any) -> FileEntry:
    if not isinstance(value, dict) or value.keys() != {"file", "rows", "bytes", "header_sha256", "sha256"}:
        raise IndexFormatError("the manifest describes a file by other members than it should")
    for name, pattern in (("file", _FILE_NAME), ("header_sha256", _SHA256), ("sha256", _SHA256)):
        if not isinstance(value[name], str) or not pattern.fullmatch(value[name]):
            raise IndexFormatError(f"the manifest has the impossible {name} {str(value[name])[:100]!r}")
    for name in ("rows", "bytes"):
        if type(value[name]) is not int or not 0 <= value[name] <= MAX_ARRAY_BYTES:
            raise IndexFormatError(f"the manifest has an impossible number of {name}")
    return FileEntry(**value)
