"""Argument checks: what is taken, in which form it comes out, and what is said about the rest."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from adaptive_search import arrays, validation
from adaptive_search.types import KINDS, MAX_DIM

# --- numbers and names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_integers_of_any_type_are_taken(value: Any) -> None:
    number = validation.as_int(value, "n", 1, 3)
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "n: expected 1 to 3, got 0"),
        (4, ValueError, "n: expected 1 to 3, got 4"),
        (2.0, TypeError, r"n: expected an integer, got 2.0 \(float\)"),
        (np.float32(2), TypeError, "n: expected an integer"),
        ("2", TypeError, r"n: expected an integer, got '2' \(str\)"),
        (None, TypeError, "n: expected an integer, got None"),
        (True, TypeError, "n: expected an integer, got True"),
        (np.True_, TypeError, "n: expected an integer"),
        ([2], TypeError, "n: expected an integer"),
    ],
)
def test_what_is_no_such_integer_is_named(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        validation.as_int(value, "n", 1, 3)


def test_kinds_are_names_or_types() -> None:
    for kind in KINDS:
        assert validation.as_kind(kind) == kind
    assert validation.as_kind(np.float16) == "float16"
    assert validation.as_kind(np.dtype(np.int8)) == "int8"
    assert validation.as_kind(ml_dtypes.bfloat16) == "bfloat16"
    assert validation.as_kind(np.dtype(ml_dtypes.bfloat16)) == "bfloat16"
    for bad in ("float64", np.float64, "uint8", None, 3, "f4"):
        with pytest.raises(ValueError, match=r"^dtype: expected one of 'float32', 'float16', 'bfloat16', 'int8', got"):
            validation.as_kind(bad)


def test_metrics() -> None:
    assert [validation.as_metric(metric) for metric in ("ip", "cosine", "l2")] == ["ip", "cosine", "l2"]
    for bad in ("IP", "", None, 1, ["ip"]):
        with pytest.raises(ValueError, match=r"^metric: expected one of 'ip', 'cosine', 'l2', got"):
            validation.as_metric(bad)


# --- vectors ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_is_rounded_to_nearest_even(values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        wanted = array.astype(ml_dtypes.bfloat16)
    bits = arrays.rounded(array, "bfloat16")
    number = ~np.isnan(array)
    np.testing.assert_array_equal(bits[number], wanted.view(np.uint16)[number])
    assert np.isnan(arrays.widened(bits)[~number]).all()
    np.testing.assert_array_equal(arrays.finite_rows(bits[:, None]), np.isfinite(wanted.astype(np.float32)))


@pytest.mark.parametrize("source", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_floats_are_rounded_to_the_kind(kind: Any, source: Any) -> None:
    rows = (np.random.default_rng(0).standard_normal((50, 7)) * 10).astype(source)
    out = validation.as_vectors(rows, kind, 7)
    assert out.flags.c_contiguous
    target = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[kind]
    wanted = rows.astype(np.float32).astype(target) if kind == "bfloat16" else rows.astype(target)
    np.testing.assert_array_equal(out.view(target), wanted)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.uint8, np.uint64])
def test_int8_takes_integers_in_range(dtype: Any) -> None:
    rows = np.array([[0, 127], [5, 6]], dtype)
    out = validation.as_vectors(rows, "int8", 2)
    assert out.dtype == np.int8
    assert out.tolist() == [[0, 127], [5, 6]]
    assert validation.as_vectors(np.array([[-128]]), "int8").tolist() == [[-128]]
    assert validation.as_vectors(np.zeros((0, 2), dtype), "int8").shape == (0, 2)


@pytest.mark.parametrize(
    ("value", "kind", "error", "message"),
    [
        (np.ones((2, 2)), "int8", TypeError, r"^vectors: expected integers from -128 to 127 \(dtype int8\), got float64"),
        (np.ones((2, 2), bool), "int8", TypeError, r"^vectors: expected integers from -128 to 127"),
        (np.array([[128, 0]]), "int8", ValueError, r"^vectors: expected integers from -128 to 127, got values from 0 to 128"),
        (np.array([[-129, 0]]), "int8", ValueError, r"got values from -129 to 0"),
        (np.array([[255]], np.uint8), "int8", ValueError, r"got values from 255 to 255"),
        (np.ones((2, 2), int), "float32", TypeError, r"^vectors: expected floats .* got int64; convert integers with .astype"),
        (np.ones((2, 2), np.uint8), "float16", TypeError, r"hamming_top_k"),
        (np.ones((2, 2), complex), "float32", TypeError, r"^vectors: expected floats .* got complex128"),
        (np.ones((2, 2), object), "float32", TypeError, r"^vectors: expected floats .* got object"),
        ([["a"]], "float32", TypeError, r"^vectors: expected floats .* got <U1"),
        (np.ones(2), "float32", ValueError, r"^vectors: expected shape \(n, 2\), got \(2,\)"),
        (np.ones((2, 3)), "float32", ValueError, r"^vectors: expected 2 dims, got shape \(2, 3\)"),
        (np.array([[1, 1], [1, 7e4]]), "float16", ValueError, r"^vectors: row 1 holds a number too large for float16"),
        (np.array([[1, 1], [1, 1e39]]), "float32", ValueError, r"^vectors: row 1 holds a number too large for float32"),
        (np.array([[1, 3.4e38]], np.float32), "bfloat16", ValueError, r"^vectors: row 0 holds a number too large for bfloat16"),
        (np.array([[1, 1], [np.nan, 7e4]]), "float16", ValueError, r"^vectors: row 1 holds NaN or infinity"),
        (np.array([[1, 1], [1, -np.inf]]), "bfloat16", ValueError, r"^vectors: row 1 holds NaN or infinity"),
    ],
)
def test_bad_vectors_are_explained(value: Any, kind: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validation.as_vectors(value, kind, 2 if kind != "int8" else None)


def test_dims_have_limits() -> None:
    assert validation.as_vectors(np.zeros((1, MAX_DIM), np.float32), "float32").shape == (1, MAX_DIM)
    for width in (0, MAX_DIM + 1):
        with pytest.raises(ValueError, match=rf"^vectors: expected 1 to {MAX_DIM} dims, got shape \(1, {width}\)"):
            validation.as_vectors(np.zeros((1, width), np.float32), "float32")


def test_queries_come_out_as_contiguous_float32() -> None:
    rows = np.random.default_rng(1).standard_normal((4, 6))
    for given_rows in (rows, rows.astype(np.float32)[:, ::-1], np.asfortranarray(rows), rows.astype(ml_dtypes.bfloat16)):
        out, single = validation.as_queries(given_rows, 6)
        assert not single
        assert out.dtype == np.float32
        assert out.flags.c_contiguous
        assert out.flags.aligned
        np.testing.assert_array_equal(out, given_rows.astype(np.float32))
    out, single = validation.as_queries(rows[0], 6)
    assert (out.shape, single) == ((1, 6), True)


# --- ids --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint64, ">i8"])
def test_ids_are_int64(dtype: Any) -> None:
    ids = validation.as_ids(np.array([5, 0, 3], dtype), 3)
    assert ids.dtype == np.int64
    assert ids.tolist() == [5, 0, 3]
    assert validation.as_ids([], 0).shape == (0,)
    assert validation.as_ids([2**63 - 1], 1).tolist() == [2**63 - 1]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], ValueError, r"^ids: expected shape \(3,\), got \(2,\)"),
        ([[1, 2, 3]], ValueError, r"^ids: expected shape \(3,\), got \(1, 3\)"),
        ([1, -2, 3], ValueError, r"^ids: expected ids from 0 up, got -2"),
        ([4, 2, 4], ValueError, r"^ids: expected every id once, got 4 twice"),
        ([1.0, 2.0, 3.0], TypeError, r"^ids: expected integers, got float64"),
        ([True, False, True], TypeError, r"^ids: expected integers, got bool"),
        (["a", "b", "c"], TypeError, r"^ids: expected integers, got <U1"),
        (np.array([1, 2, 2**63], np.uint64), ValueError, r"^ids: expected 64-bit signed integers, got 9223372036854775808"),
    ],
)
def test_bad_ids_are_explained(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validation.as_ids(value, 3)


def test_lists_of_ids_to_look_up_may_hold_anything() -> None:
    assert validation.as_id_list(7, "ids").tolist() == [7]
    assert validation.as_id_list([3, 3, -1], "ids").tolist() == [3, 3, -1]
    assert validation.as_id_list([], "ids").shape == (0,)
    with pytest.raises(ValueError, match=r"^ids: expected one id or a list of ids, got shape \(1, 1\)"):
        validation.as_id_list([[1]], "ids")
    with pytest.raises(TypeError, match=r"^ids: expected integers"):
        validation.as_id_list([1.5], "ids")


# --- layouts ----------------------------------------------------------------------------------------------------------------


def test_blocks_hold_whole_visits_where_they_fit() -> None:
    assert arrays.block_rows(4 * 768) == 8192
    assert arrays.block_rows(4 * MAX_DIM) == arrays.BLOCK_BYTES // (4 * MAX_DIM)
    assert arrays.block_rows(2 * arrays.BLOCK_BYTES) == 1
    assert list(arrays.ranges(10, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(arrays.ranges(0, 4)) == []


def test_a_type_named_bfloat16_is_recognised_by_name() -> None:
    assert arrays.is_bfloat16(np.dtype(ml_dtypes.bfloat16))
    for other in (np.float16, np.uint16, ml_dtypes.float8_e4m3fn, np.dtype("V2")):
        assert not arrays.is_bfloat16(np.dtype(other))
