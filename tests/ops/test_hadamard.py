"""Walsh-Hadamard transforms: to the bit, wherever rows lie."""

from __future__ import annotations

from typing import Any

import awkward
import numpy as np
import oracles
import pytest
from numpy.typing import NDArray

from adaptive_search.backends.protocol import Backend

Array = NDArray[Any]

SIZES = (1, 2, 4, 8, 16, 32, 64, 512, 2048)


def canonical(rows: Array) -> Array:
    """One NumPy call for each step."""
    size, half = rows.shape[1], 1
    while half < size:
        pairs = rows.reshape(len(rows), size // (2 * half), 2, half)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(len(rows), size)
        half *= 2
    return rows * np.float32(1 / np.sqrt(size))


def matrix(size: int) -> Array:
    """The transform in float64: signs by the parity of common bits."""
    common = np.arange(size)[:, None] & np.arange(size)
    return np.array([[(-1.0) ** bin(entry).count("1") for entry in row] for row in common]) / np.sqrt(size)


@pytest.mark.parametrize("size", SIZES)
def test_bits(backend: Backend, size: int) -> None:
    for n in (0, 1, 3, 17):
        rows = np.random.default_rng(n).standard_normal((n, size)).astype(np.float32) * np.float32(100)
        out = awkward.Guarded(rows.shape, np.float32)
        out.array[...] = rows
        backend.hadamard(out.array)
        assert oracles.same_bits(out.array, canonical(rows))
        assert out.intact
    backend.hadamard(np.empty((0, size + 3), np.float32)[:, :size])


@pytest.mark.parametrize("size", [1, 8, 64])
def test_what_it_means(backend: Backend, size: int) -> None:
    rows = np.random.default_rng(1).standard_normal((9, size)).astype(np.float32)
    out = rows.copy()
    backend.hadamard(out)
    np.testing.assert_allclose(out, rows.astype(np.float64) @ matrix(size), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["unaligned", "strided", "before a forbidden page", "after a forbidden page"])
def test_places(backend: Backend, place: str) -> None:
    """Parts of wider rows, whose rest stays as it is."""
    wide = awkward.ROW_PLACES[place](np.random.default_rng(2).standard_normal((7, 40)).astype(np.float32))
    before = np.array(wide)
    for part in (slice(0, 32), slice(8, 40)):
        expected = canonical(np.array(wide[:, part]))
        backend.hadamard(wide[:, part])
        assert oracles.same_bits(np.array(wide[:, part]), expected)
    one = np.array(before)
    backend.hadamard(one[:, 8:40])
    np.testing.assert_array_equal(one[:, :8], before[:, :8])


def test_numbers_that_are_not_finite(backend: Backend) -> None:
    """Overflow stays where it is, and rows know nothing of one another."""
    rows = np.full((3, 16), 3e38, np.float32)
    rows[1] = np.nan
    rows[2] = np.float32(1e-45)
    with np.errstate(all="ignore"):
        expected = canonical(rows)
    backend.hadamard(rows)
    assert oracles.same_bits(rows, expected)
