"""Directories whose checksums are right and whose content is not: what a hostile author would write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAME = "segment-" + "0" * 32 + ".safetensors"


def sealed(body: bytes) -> bytes:
    """A manifest whose last member is the right checksum, whatever stands before it."""
    return body + b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def sealed_json(content: Any) -> bytes:
    return sealed(json.dumps(content).encode().removesuffix(b"}"))


@pytest.fixture(name="sealed", scope="session")
def sealed_fixture() -> Callable[[bytes], bytes]:
    return sealed


@pytest.fixture(name="sealed_json", scope="session")
def sealed_json_fixture() -> Callable[[Any], bytes]:
    return sealed_json


@pytest.fixture
def forge(tmp_path: Path) -> Callable[..., Path]:
    """``forge(header, data)``: an index of one segment with these bytes and fitting checksums."""

    def forge(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None, **entry: Any) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        start = (len(text) if length is None else length).to_bytes(8, "little") + text
        (tmp_path / NAME).write_bytes(start + data)
        described = {
            "file": NAME,
            "rows": 1,
            "bytes": len(start + data),
            "header_sha256": hashlib.sha256(start).hexdigest(),
            "sha256": hashlib.sha256(start + data).hexdigest(),
        }
        content = {"format": "adaptive_search index", "version": 1, "meta": {}, "segments": [described | entry], "aux": {}}
        (tmp_path / "manifest.json").write_bytes(sealed_json(content))
        return tmp_path

    return forge
