"""The manifest: every damage is noticed, and nothing in it is believed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adaptive_search.storage import VERSION, NewSegment, manifest, read_state, write_state
from adaptive_search.types import IndexFormatError

ENTRY = {"file": "segment-" + "a" * 32 + ".safetensors", "rows": 3, "bytes": 64, "header_sha256": "0" * 64, "sha256": "f" * 64}
CONTENT: dict[str, Any] = {
    "format": "adaptive_search index",
    "version": 1,
    "meta": {"dim": 8, "list": [1.5, None, True, "é"]},
    "segments": [ENTRY],
    "aux": {"codebooks": ENTRY | {"file": "codebooks-" + "b" * 32 + ".safetensors"}},
}
Seal = Callable[[bytes], bytes]
SealJson = Callable[[Any], bytes]


def test_what_is_encoded_is_decoded(sealed_json: SealJson) -> None:
    content = manifest.decode(sealed_json(CONTENT))
    assert content.meta == CONTENT["meta"]
    assert [entry.file for entry in content.entries] == [ENTRY["file"], CONTENT["aux"]["codebooks"]["file"]]
    assert manifest.decode(manifest.encode(content)) == content


def test_every_flipped_bit_is_noticed(sealed_json: SealJson) -> None:
    raw = sealed_json(CONTENT)
    for byte in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[byte] ^= 1 << bit
            with pytest.raises(IndexFormatError):
                manifest.decode(bytes(flipped))


def test_every_truncation_and_addition_is_noticed(sealed_json: SealJson) -> None:
    raw = sealed_json(CONTENT)
    for damaged in [raw[:length] for length in range(len(raw))] + [raw + b"\n", b" " + raw, raw + raw, raw[:99] + raw[100:]]:
        with pytest.raises(IndexFormatError):
            manifest.decode(damaged)


@pytest.mark.parametrize("version", [3, 1000])
def test_a_newer_version_is_named(sealed_json: SealJson, version: int) -> None:
    newer = {"format": CONTENT["format"], "version": version, "unheard": "of"}
    with pytest.raises(IndexFormatError, match=rf"version {version}; .* up to version {VERSION}"):
        manifest.decode(sealed_json(newer))


def with_entry(**changes: Any) -> dict[str, Any]:
    return CONTENT | {"segments": [ENTRY | changes]}


FILE = ENTRY["file"]
HOSTILE: dict[str, Any] = {
    "another format": CONTENT | {"format": "package"},
    "no format": {"version": 1},
    "version as text": CONTENT | {"version": "1"},
    "version as float": CONTENT | {"version": 1.0},
    "version as boolean": CONTENT | {"version": True},
    "version zero": CONTENT | {"version": 0},
    "long version": CONTENT | {"version": 10**4000},
    "further member": CONTENT | {"code": "import os"},
    "no meta": {key: value for key, value in CONTENT.items() if key != "meta"},
    "meta a list": CONTENT | {"meta": []},
    "segments an object": CONTENT | {"segments": {"0": ENTRY}},
    "segments a number": CONTENT | {"segments": 10**9},
    "aux a list": CONTENT | {"aux": [ENTRY]},
    "aux name": CONTENT | {"aux": {"../x": ENTRY}},
    "empty entry": CONTENT | {"segments": [{}]},
    "entry null": CONTENT | {"segments": [None]},
    "further member of an entry": with_entry(offset=0),
    "one file twice": CONTENT | {"segments": [ENTRY, ENTRY]},
    "one file as segment and aux": CONTENT | {"aux": {"codebooks": ENTRY}},
    "negative rows": with_entry(rows=-1),
    "absurd rows": with_entry(rows=2**80),
    "rows as float": with_entry(rows=3.0),
    "rows as boolean": with_entry(rows=True),
    "negative size": with_entry(bytes=-64),
    "absurd size": with_entry(bytes=2**64),
    "checksum as number": with_entry(sha256=0),
    "short checksum": with_entry(sha256="f" * 63),
    "checksum in capitals": with_entry(sha256="F" * 64),
    "checksum with a line end": with_entry(header_sha256="f" * 64 + "\n"),
    "file a number": with_entry(file=3),
    "file in another directory": with_entry(file="../" + FILE),
    "absolute file": with_entry(file="/" + FILE),
    "file in a folder": with_entry(file="a/" + FILE),
    "Windows separator": with_entry(file="..\\" + FILE),
    "Windows stream": with_entry(file="c:" + FILE),
    "NUL in a name": with_entry(file="\0" + FILE),
    "line end in a name": with_entry(file=FILE + "\n"),
    "hidden file": with_entry(file="." + FILE),
    "the manifest itself": with_entry(file="manifest.json"),
    "empty name": with_entry(file=""),
    "lone surrogate": with_entry(file="\ud800"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_content_is_refused(sealed_json: SealJson, content: Any) -> None:
    with pytest.raises(IndexFormatError):
        manifest.decode(sealed_json(content))


BODIES = {
    "nothing": b"",
    "a list": b"[",
    "duplicate key": b'{"version": 1, "version": 1',
    "nested too deep": b'{"meta": ' + b"[" * 40 + b"]" * 40,
    "nested far too deep": b'{"meta": ' + b"[" * 1_000_000 + b"]" * 1_000_000,
    "depth behind an escaped quote": rb'{"a\"": ' + b'{"b":' * 500_000,
    "depth behind brackets in text": b'{"]]]]]]": ' + b"[" * 500_000,
    "infinity": b'{"meta": {"x": Infinity}',
    "an overflowing float": b'{"meta": {"x": 1e999}',
    "an absurdly long integer": b'{"version": ' + b"9" * 1_000_000,
    "an unterminated text": b'{"meta": "' + b"\\\\" * 1_000_000,
    "many empty lists": b'{"meta": [' + b"[]," * 1_000_000 + b"[]]",
    "not UTF-8": b'{"meta": "\xff"',
    "more than the limit": b'{"meta": "' + b"x" * manifest.MAX_BYTES + b'"',
}


@pytest.mark.long
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_hostile_json_is_refused(sealed: Seal, body: bytes) -> None:
    with pytest.raises(IndexFormatError):
        manifest.decode(sealed(body))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["file", "rows", "bytes", "x"]), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    *[(key,) for key in CONTENT],
    ("segments", 0),
    ("aux", "codebooks"),
    *[("segments", 0, key) for key in ENTRY],
    *[("aux", "codebooks", key) for key in ENTRY],
]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PATHS), value=json_values)
def test_wrong_types_anywhere_do_nothing_worse_than_being_refused(sealed_json: SealJson, place: tuple[Any, ...], value: Any) -> None:
    content: Any = copy.deepcopy(CONTENT)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        manifest.decode(sealed_json(content))
    except IndexFormatError:
        return
    assert place == ("meta",) or isinstance(value, type(ENTRY.get(place[-1], value)))


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(sealed: Seal, body: bytes) -> None:
    for raw in (body, sealed(body)):
        with pytest.raises(IndexFormatError):
            manifest.decode(raw)


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(40):
        value = [value]
    return value


@pytest.mark.parametrize(
    "meta",
    [{"x": float("nan")}, {"x": np.float32(1)}, {"x": {1, 2}}, {"x": b"bytes"}, {"x": "y" * manifest.MAX_BYTES}, {"x": deep()}],
    ids=["NaN", "NumPy scalar", "set", "bytes", "too long", "too deep"],
)
def test_meta_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path, meta: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        write_state(tmp_path / "index", [NewSegment({"a": np.zeros(3)})], meta=meta)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_is_not_a_plain_file_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "index", [])
    file = tmp_path / "index" / "manifest.json"
    moved = file.rename(tmp_path / "elsewhere")
    file.symlink_to(moved)
    with pytest.raises(IndexFormatError, match="symbolic link"):
        read_state(tmp_path / "index")
    file.unlink()
    file.mkdir()
    with pytest.raises(IndexFormatError, match="regular"):
        read_state(tmp_path / "index")
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(IndexFormatError, match="regular"):
        read_state(tmp_path / "index")


def test_an_enormous_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(IndexFormatError, match="more than"):
        read_state(tmp_path)
