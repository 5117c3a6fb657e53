"""Rows, layouts and the canonical answers that the tests of the functional API share."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import oracles
from hypothesis import HealthCheck, settings
from ops import awkward

import adaptive_search as asx

METRICS = ("ip", "cosine", "l2")
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
on_every_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
few_examples = settings(on_every_backend, max_examples=max(1, on_every_backend.max_examples // 3))


def drawn(rng: np.random.Generator, n: int, dim: int, kind: str = "float32") -> Any:
    """Rows with repeats, zeros and negative zeros, so that ties and zero vectors happen."""
    rows = rng.standard_normal((n, dim))
    if kind == "int8":
        rows = np.clip(np.rint(rows * 60), -128, 127)
    if n > 3:
        rows[rng.integers(n, size=n // 4)] = rows[rng.integers(n, size=n // 4)]
        rows[rng.integers(n)] = 0
        rows[rng.integers(n)] = -0.0
    return rows.astype(DTYPES[kind])


def expected(metric: str, queries: Any, rows: Any, k: int, allowed: Any = None) -> asx.Neighbors:
    """The canonical answer: (Q, min(k, m))."""
    queries, rows = queries.astype(np.float32), rows.astype(np.float32)
    counts = np.count_nonzero(np.ones(len(rows), bool) if allowed is None else allowed, axis=-1)
    width = min(k, int(np.max(counts, initial=0)))
    scores, ids = oracles.best(oracles.canonical_score(metric, queries, rows), width, largest=metric != "l2", allowed=allowed)
    return asx.Neighbors(ids, scores)


def assert_same(found: asx.Neighbors, wanted: asx.Neighbors) -> None:
    assert found.ids.dtype == np.int64
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert oracles.same_bits(np.ascontiguousarray(found.scores), np.ascontiguousarray(wanted.scores))


LAYOUTS = {
    "strided": awkward.strided,
    "backwards": awkward.backwards,
    "read-only": awkward.read_only,
    "mapped": awkward.mapped,
    "unaligned": awkward.unaligned,
    "every other column": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "columns first": np.asfortranarray,
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder()) if array.dtype.kind == "f" else array,
    "one row broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
}
