"""What only the Numba backend can get wrong: its own selection and sorting, memory, compiled code that cannot be cached."""

from __future__ import annotations

import importlib.util
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adaptive_search.backends.protocol import DenseChunk

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from adaptive_search.backends import get
from adaptive_search.backends.numba_ops import candidates, jit


@numba.njit
def selected(keys: Any, rows: Any, k: int, ids: int) -> None:
    candidates.select(keys, rows, len(keys), k, ids)


@numba.njit
def sorted_(keys: Any, rows: Any, ids: int) -> None:
    candidates.sort(keys, rows, len(keys), ids)


SHAPES = {
    "random": lambda n, rng: rng.standard_normal(n),
    "equal": lambda n, rng: np.zeros(n),
    "ascending": lambda n, rng: np.arange(n),
    "descending": lambda n, rng: -np.arange(n),
    "organ pipe": lambda n, rng: -np.abs(np.arange(n) - n // 2),
    "few values": lambda n, rng: rng.integers(0, 3, n),
    "two runs": lambda n, rng: np.concatenate([np.arange(n // 2), np.arange(n - n // 2)]),
    "infinite": lambda n, rng: rng.choice([-np.inf, 0, np.inf], n),
}


@given(shape=st.sampled_from(sorted(SHAPES)), n=st.integers(1, 3000), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_selecting_and_sorting(shape: str, n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    keys, ids = SHAPES[shape](n, rng).astype(np.float32), rng.permutation(n).astype(np.int64)
    order = np.lexsort((ids, -keys))
    k = max(int(share * n), 1)
    some, rows = keys.copy(), np.arange(n)
    selected(some, rows, k, jit.address(ids))
    assert set(rows[:k]) == set(order[:k])
    assert rows[k - 1] == order[k - 1]
    np.testing.assert_array_equal(some, keys[rows])
    sorted_(some, rows, jit.address(ids))
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(some, keys[order])


@pytest.mark.parametrize("shape", SHAPES)
def test_selecting_stays_fast_on_every_shape(shape: str) -> None:
    """A quadratic selection would not end."""
    n = 400_000
    keys = SHAPES[shape](n, np.random.default_rng(0)).astype(np.float32)
    rows = np.arange(n)
    selected(keys, rows, n // 3, 0)
    sorted_(keys, rows, 0)
    assert np.all(keys[:-1] >= keys[1:])


def test_memory_of_a_scan() -> None:
    """About (2k + 64) * 16 bytes a query, and nothing that grows with queries x rows."""
    rng = np.random.default_rng(0)
    data, queries = rng.standard_normal((60_000, 16)).astype(np.float32), rng.standard_normal((200, 16)).astype(np.float32)
    backend = get("numba")
    rows = backend.dense_rows("float32", [DenseChunk((data,))])
    backend.dense_scan(rows, queries, 100, "ip").run(0, 1)  # compiling takes memory too
    tracemalloc.start()
    try:
        scan = backend.dense_scan(rows, queries, 100, "ip")
        scan.run(0, rows.visits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * (2 * 100 + 64) * 16 + 2**20


def test_rows_of_another_family_are_refused() -> None:
    backend = get("numba")
    dense = backend.dense_rows("float32", [DenseChunk((np.zeros((3, 8), np.float32),))])
    with pytest.raises(TypeError, match="rows: expected BitRows"):
        backend.hamming_scan(dense, np.zeros((1, 1), np.uint8), 1)


def test_code_that_cannot_be_cached_still_runs() -> None:
    """A function without a file has nowhere to be cached, like one in a directory that nobody may write to."""
    names: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", names)
    assert jit.kernel(names["twice"])(21) == 42


def test_one_specialisation_serves_every_array() -> None:
    """Read-only, strided and unaligned input must not compile a kernel again."""
    import awkward

    from adaptive_search.backends.numba_ops import dense

    data = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
    backend = get("numba")
    for place in awkward.ROW_PLACES.values():
        rows = backend.dense_rows("float32", [DenseChunk((place(data),))], awkward.read_only(np.arange(50)))
        for allowed in (None, awkward.read_only(np.ones(50, bool)), np.ones((4, 50), bool)):
            scan = backend.dense_scan(rows, awkward.read_only(data[:4]), 3, "cosine", allowed)
            scan.run(0, rows.visits)
        backend.dense_rescore(rows, awkward.read_only(data[:4]), awkward.read_only(np.zeros((4, 2), np.int64)), 3, "ip")
    assert len(dense._scan.signatures) == 1
    assert len(dense._rescore.signatures) == 1
