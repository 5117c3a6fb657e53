"""Arrays to bytes and back, and files that lie about their arrays."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st

from adaptive_search.storage import NewSegment, read_state, verify_state, write_state
from adaptive_search.types import IndexFormatError

Forge = Callable[..., Path]

DTYPES = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]
SHAPES = [(), (0,), (1,), (7,), (0, 3), (5, 0), (3, 1, 2), (65, 33), (2, 1, 2, 1, 2, 1, 2, 1)]


def numbers(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    raw = np.random.default_rng(7).integers(0, 2 if dtype == "bool" else 120, shape)
    return np.asarray(raw).astype(dtype)


def stored(folder: Path, arrays: dict[str, Any], *, mmap: bool = True) -> Any:
    write_state(folder, [NewSegment(arrays, rows=3)])
    return read_state(folder, mmap=mmap).segments[0]


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "loaded"])
def test_every_dtype_and_shape_comes_back(tmp_path: Path, mmap: bool) -> None:
    arrays = {f"{dtype}.{number}": numbers(dtype, shape) for dtype in DTYPES for number, shape in enumerate(SHAPES)}
    segment = stored(tmp_path, arrays, mmap=mmap)
    assert list(segment.arrays) == list(arrays)
    for name, array in arrays.items():
        back = segment.arrays[name]
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        np.testing.assert_array_equal(back, array)
    verify_state(tmp_path)


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "loaded"])
def test_arrays_are_aligned_and_read_only(tmp_path: Path, mmap: bool) -> None:
    arrays = {f"a{length}": numbers("i1", (length,)) for length in (1, 7, 63, 64, 65, 129)}
    for array in stored(tmp_path, arrays, mmap=mmap).arrays.values():
        assert array.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError):
        read_state(tmp_path, mmap=mmap).segments[0].arrays["new"] = numbers("i1", (1,))  # type: ignore[index]


def test_arrays_start_on_64_bytes_in_the_file(tmp_path: Path) -> None:
    entry = stored(tmp_path, {"a": numbers("u1", (1,)), "b": numbers("f4", (3, 5)), "c": numbers("f8", (2,))}).entry
    raw = (tmp_path / entry.file).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert len(raw) == entry.bytes
    assert [(8 + length + header[name]["data_offsets"][0]) % 64 for name in "abc"] == [0, 0, 0]


def test_the_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    arrays = {"flags": numbers("bool", (9,)), "rows": numbers("f2", (9, 33)), "ids": numbers("i8", (9,)), "none": numbers("f4", (0, 4))}
    segment = stored(tmp_path, arrays)
    theirs = safetensors.numpy.load_file(tmp_path / segment.entry.file)
    assert {name for name in theirs if not name.startswith("_")} == set(arrays)
    for name, array in arrays.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)
    empty = write_state(tmp_path / "empty", [NewSegment({})]).segments[0]
    assert safetensors.numpy.load_file(tmp_path / "empty" / empty.entry.file) == {}


def test_files_of_the_safetensors_library_are_read(forge: Forge) -> None:
    arrays = {"a": numbers("u1", (3,)), "b": numbers("f4", (5, 2)), "c": numbers("i2", (3, 3))}
    raw = safetensors.numpy.save(arrays, metadata={"made": "elsewhere"})
    length = int.from_bytes(raw[:8], "little")
    segment = read_state(forge(raw[8 : 8 + length], raw[8 + length :])).segments[0]
    for name, array in arrays.items():
        np.testing.assert_array_equal(segment.arrays[name], array)


def test_unaligned_arrays_are_made_aligned(forge: Forge) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    values = np.array([1.5, -2.0], "<f4")
    array = read_state(forge(header, b"\x01" + values.tobytes())).segments[0].arrays["b"]
    assert array.flags.aligned
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize(
    "array",
    [
        numbers("f4", (40, 30))[:, :7],
        numbers("f4", (40, 30))[::-3],
        numbers("f4", (40, 30)).T,
        np.broadcast_to(np.float64(2.5), (4, 5)),
        numbers(">i4", (6, 2)),
        np.lib.stride_tricks.as_strided(np.arange(4, dtype="u1"), (2, 5 << 20), (1, 0)),
    ],
    ids=["columns", "reversed", "transposed", "broadcast", "big-endian", "rows larger than a slice"],
)
def test_any_strides_and_byte_order(tmp_path: Path, array: np.ndarray) -> None:
    np.testing.assert_array_equal(stored(tmp_path, {"a": array}).arrays["a"], array)


def test_parts_are_joined(tmp_path: Path) -> None:
    whole = numbers("f4", (100, 3))
    parts = [whole[:1], whole[1:1], whole[1:65], whole[65:]]
    segment = stored(tmp_path, {"parts": parts, "whole": whole})
    np.testing.assert_array_equal(segment.arrays["parts"], whole)
    other = stored(tmp_path / "other", {"parts": whole, "whole": whole})
    assert segment.entry.sha256 == other.entry.sha256


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"a": np.array([1j])}, TypeError, "complex128"),
        ({"a": np.array([None])}, TypeError, "object"),
        ({"a": np.array(["text"])}, TypeError, "<U4"),
        ({"a": [1, 2]}, TypeError, "a must be an array"),
        ({"a": []}, TypeError, "a must be an array"),
        ({"a": [np.zeros((1, 2)), np.zeros((1, 3))]}, ValueError, "parts of a"),
        ({"a": [np.zeros(1), np.zeros(1, "f4")]}, ValueError, "parts of a"),
        ({"a": [np.zeros(()), np.zeros(())]}, ValueError, "parts of a"),
        ({"a": np.zeros((1,) * 9)}, ValueError, "9 axes"),
        ({"_a": np.zeros(1)}, ValueError, "'_a'"),
        ({"": np.zeros(1)}, ValueError, "''"),
        ({"a/b": np.zeros(1)}, ValueError, "'a/b'"),
        ({f"a{n}": np.zeros(1) for n in range(20_000)}, ValueError, "20000 arrays"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(
    tmp_path: Path, arrays: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_state(tmp_path / "index", [NewSegment({"fine": np.zeros(1)}), NewSegment(arrays)])
    assert list(tmp_path.iterdir()) == []


def entry(dtype: Any = "U8", shape: Any = (8,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE_HEADERS = {
    "unknown dtype": {"a": entry(dtype="F4_E2M1")},
    "dtype not text": {"a": entry(dtype=["U8"])},
    "complex": {"a": entry(dtype="C64", shape=[1])},
    "shape not a list": {"a": entry(shape=8)},
    "shape of text": {"a": entry(shape=["8"])},
    "shape of booleans": {"a": entry(shape=[True, 8])},
    "shape of floats": {"a": entry(shape=[8.0])},
    "negative shape": {"a": entry(shape=[-1, -8])},
    "huge shape": {"a": entry(shape=[2**62])},
    "overflowing shape": {"a": entry(shape=[2**61, 8, 2])},
    "shape that wraps to the right size": {"a": entry(shape=[2**32, 2**32, 1, 8])},
    "huge empty shape": {"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0]), "b": entry()},
    "integer of a thousand digits": {"a": entry(shape=[10**1000])},
    "nine axes": {"a": entry(shape=[8] + [1] * 8)},
    "shape too small": {"a": entry(shape=[7])},
    "shape too large": {"a": entry(shape=[9])},
    "no offsets": {"a": entry(offsets=[])},
    "one offset": {"a": entry(offsets=[8])},
    "three offsets": {"a": entry(offsets=[0, 4, 8])},
    "negative offset": {"a": entry(offsets=[-8, 0])},
    "reversed offsets": {"a": entry(offsets=[8, 0])},
    "beyond the end": {"a": entry(offsets=[8, 16])},
    "far beyond the end": {"a": entry(offsets=[2**63, 2**63 + 8])},
    "gap before": {"a": entry(shape=[4], offsets=[4, 8])},
    "gap after": {"a": entry(shape=[4], offsets=[0, 4])},
    "gap between": {"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[2], offsets=[6, 8])},
    "overlap": {"a": entry(shape=[6], offsets=[0, 6]), "b": entry(shape=[4], offsets=[4, 8])},
    "the same bytes twice": {"a": entry(), "b": entry()},
    "padding that overlaps": {"a": entry(), "_": entry()},
    "no arrays": {},
    "entry not an object": {"a": [0, 8]},
    "missing member": {"a": {"dtype": "U8", "shape": [8]}},
    "further member": {"a": entry() | {"strides": [1]}},
    "strange name": {"../a": entry()},
    "empty name": {"": entry()},
    "list": b"[]      ",
    "number": b"12345678",
    "not JSON": b'{"a":',
    "not UTF-8": b'{"\xff": {}}',
    "UTF-16": '{"a": {}}'.encode("utf-16"),
    "two headers": json.dumps({"a": entry()}).encode() * 2,
    "duplicate key": b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8], "dtype": "I8"}}',
    "not a number": b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 8]}}',
    "deep": b"[" * 500_000 + b"]" * 500_000,
}


@pytest.mark.parametrize("header", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS.keys())
def test_hostile_headers_are_refused(forge: Forge, header: Any) -> None:
    folder = forge(header, bytes(8))
    tracemalloc.start()
    try:
        for read in (read_state, lambda path: read_state(path, mmap=False), verify_state):
            with pytest.raises(IndexFormatError):
                read(folder)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 1, 65, 1 << 20, (1 << 20) + 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
def test_hostile_header_lengths_are_refused(forge: Forge, length: int) -> None:
    folder = forge({"a": entry()}, bytes(8), length)
    with pytest.raises(IndexFormatError):
        read_state(folder)


def test_a_header_beyond_the_limit_is_not_parsed(forge: Forge) -> None:
    text = json.dumps({"a": entry()}).encode()
    assert read_state(forge(text.ljust(1 << 20), bytes(8))).segments[0].arrays["a"].shape == (8,)
    with pytest.raises(IndexFormatError, match="header length"):
        read_state(forge(text.ljust((1 << 20) + 1), bytes(8)))


def test_booleans_other_than_0_and_1_are_refused(forge: Forge) -> None:
    for mmap in (True, False):
        with pytest.raises(IndexFormatError, match="booleans"):
            read_state(forge({"a": entry("BOOL")}, b"\0\1\0\1\0\1\2\0"), mmap=mmap)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 9)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["U8", "F32", "BOOL"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.binary(max_size=40)
    | st.dictionaries(st.text(max_size=4), json_values | st.builds(entry, json_values, json_values, json_values), max_size=3),
    data=st.binary(max_size=8),
)
def test_arbitrary_headers_do_nothing_worse_than_being_refused(forge: Forge, header: Any, data: bytes) -> None:
    folder = forge(header, data)
    try:
        state = read_state(folder)
    except IndexFormatError:
        return
    assert sum(array.nbytes for array in state.segments[0].arrays.values()) <= len(data)
