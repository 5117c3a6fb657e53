"""Rotations trained so that prefixes keep neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from ..backends import current
from ..functional import top_k
from ..rotations import is_orthogonal, mapped, principal_directions, rotated
from ..types import F32, F64, I64, Array
from ..validation import as_int
from .base import Transform, only, sample_of, state_array

MOST_QUERIES = 4_096
"""Training queries, at most."""

HELD_OUT = 5
"""One of so many of them judges instead of training."""

NEIGHBOURS = 10
"""Of every query, what prefixes are to find."""

RIVALS = 90
"""Of every query, the rows that come next, which prefixes are to leave behind."""

STRANGERS = 28
"""Random rows that are added to them."""

BATCH = 64
TEMPERATURE = 0.05
RATE = 0.0015
"""Length of a step: how far the largest coordinate of the rotation may turn."""

FOUND_AMONG = 50
"""Progress is judged by how many neighbours are among so many rows of a prefix search."""


class LearnedRotation(Transform):
    """An orthogonal map trained so that searches by prefixes of its coordinates find the neighbours by all of them.

    It begins with the principal directions and goes downhill on the orthogonal group: a softmax over each training query's neighbours and
    rivals, by the cosines of nested prefixes, is to tell the neighbours. One of five training queries judges, and the best rotation it has
    seen, the principal directions included, is what stays: never worse than `PCA` on those. The idea is that of A. Kusupati et al.,
    "Matryoshka representation learning" (NeurIPS 2022), for embeddings that are there already, as in J. Yoon et al., "Matryoshka-Adaptor"
    (EMNLP 2024).

    Parameters
    ----------
    prefixes : sequence of int, optional
        Lengths that matter; by default 32, 64 and 128, as far as they are shorter than the vectors.
    steps : int
        Of training; a step takes about 20 ms for 384 dims.
    seed : int
        Of the order of queries.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    >>> rotation = asx.LearnedRotation(prefixes=[4], steps=5).fit(rows)
    >>> turned = rotation.transform(rows)
    >>> bool(np.allclose(turned @ turned.T, rows @ rows.T, atol=1e-3))
    True
    """

    parameters = ("prefixes", "steps", "seed")

    def __init__(self, prefixes: Sequence[int] | None = None, steps: int = 400, seed: int = 0) -> None:
        super().__init__()
        if prefixes is not None and not isinstance(prefixes, Iterable):
            raise TypeError(f"prefixes: expected a sequence of lengths, got {prefixes!r}")
        self.prefixes = None if prefixes is None else tuple(sorted({as_int(dims, "prefixes", 1) for dims in prefixes}))
        if self.prefixes == ():
            raise ValueError("prefixes: expected at least one length, got none")
        self.steps, self.seed = as_int(steps, "steps", 0), as_int(seed, "seed", 0)
        self.matrix: F32 = np.empty((0, 0), np.float32)

    @property
    def orthogonal(self) -> bool:
        return True

    def fit(self, X: Any, queries: Any = None) -> Self:
        """Learn from rows (n, D) and, if there are, queries (Q, D) like those that will be searched; else rows stand for queries.

        Raises
        ------
        TypeError, ValueError
            Naming the argument.
        """
        rows = sample_of(X)
        asked = None if queries is None else sample_of(queries, "queries")
        if asked is not None and asked.shape[1] != rows.shape[1]:
            raise ValueError(f"queries: expected {rows.shape[1]} dims, got shape {asked.shape}")
        self._learn(rows, asked)
        return self

    def state(self) -> dict[str, Array]:
        return {"matrix": self.matrix} if self.fitted else {}

    def restore(self, state: Mapping[str, Array]) -> None:
        only(state, "matrix")
        matrix = state_array(state, "matrix", (None, None))
        if matrix.shape[0] != matrix.shape[1] or not is_orthogonal(matrix):
            raise ValueError(f"state: expected an orthogonal matrix, got one of shape {matrix.shape} that is not")
        self.matrix, self.dim = matrix, len(matrix)

    def learn(self, sample: F32, name: str) -> None:
        self._learn(sample, None)

    def apply(self, vectors: F32) -> F32:
        return mapped(current(), vectors, self.matrix)

    def _learn(self, rows: F32, queries: F32 | None) -> None:
        dim = rows.shape[1]
        prefixes = [dims for dims in (self.prefixes or (32, 64, 128)) if dims < dim]
        units = np.empty_like(rows)
        current().dense_unit(rows, units)
        best = principal_directions(units, dim)
        lessons = _Lessons.of(units, queries, np.random.Generator(np.random.PCG64(self.seed)))
        if prefixes and self.steps and lessons is not None:
            best = _trained(best, lessons, units, prefixes, self.steps, self.seed)
        self.matrix, self.dim = best, dim


class _Lessons(NamedTuple):
    """Queries of unit length with their neighbours, best first, and rivals (row numbers); the first ``judges`` only judge."""

    queries: F32
    listed: I64
    judges: int

    @classmethod
    def of(cls, rows: F32, queries: F32 | None, random: np.random.Generator) -> Self | None:
        """None if there are too few rows or queries to learn from."""
        width = NEIGHBOURS + RIVALS
        count = len(rows) if queries is None else len(queries)
        chosen = random.permutation(count)[:MOST_QUERIES]
        if len(rows) < 2 * width or len(chosen) < 2 * HELD_OUT:
            return None
        asked = rows[chosen] if queries is None else queries[chosen]
        units = np.empty_like(asked)
        current().dense_unit(np.ascontiguousarray(asked), units)
        listed = top_k(units, rows, width + (queries is None)).ids
        if queries is None:
            own = listed == chosen[:, None]
            own[~own.any(axis=1), -1] = True
            listed = listed[~own].reshape(len(chosen), width)
        return cls(units, listed, max(1, len(chosen) // HELD_OUT))


def _trained(start: F32, lessons: _Lessons, rows: F32, prefixes: Sequence[int], steps: int, seed: int) -> F32:
    """The best rotation that the judges have seen. Its rows are directions."""
    random = np.random.Generator(np.random.PCG64(seed + 1))
    turned = start.T.astype(np.float64)
    best, record = start, _found(start, lessons, rows, prefixes)
    velocity = np.zeros_like(turned)
    for step in range(steps):
        chosen = random.integers(lessons.judges, len(lessons.queries), BATCH)
        strangers = random.integers(0, len(rows), STRANGERS)
        listed = np.concatenate([lessons.listed[chosen], np.broadcast_to(strangers, (BATCH, STRANGERS))], axis=1)
        slope = _slope(turned, lessons.queries[chosen], rows[listed], prefixes)
        # On the group, only what turns counts.
        slope -= turned @ slope.T @ turned
        velocity = 0.9 * velocity + slope
        size = np.abs(velocity).max()
        if size > 0:
            rate = RATE * (1.0 - step / steps)
            turned = _nearest_rotation(turned - rate / size * velocity)
        if step % 50 == 49 or step == steps - 1:
            now = np.ascontiguousarray(turned.T, dtype=np.float32)
            found = _found(now, lessons, rows, prefixes)
            if found > record:
                best, record = now, found
    return best


def _slope(turned: F64, queries: F32, candidates: F32, prefixes: Sequence[int]) -> F64:
    """The gradient by the rotation (D, D) of the softmax losses; queries (B, D), candidates (B, C, D), neighbours first."""
    longest = max(prefixes)
    basis = turned[:, :longest].astype(np.float32)
    a, c = queries @ basis, candidates @ basis
    to_a, to_c = np.zeros_like(a), np.zeros_like(c)
    for dims in prefixes:
        first, others = a[:, :dims], c[:, :, :dims]
        norm_a = np.maximum(np.linalg.norm(first, axis=1), 1e-9)[:, None]
        norm_c = np.maximum(np.linalg.norm(others, axis=2), 1e-9)
        cosines = np.einsum("bd,bcd->bc", first, others) / (norm_a * norm_c)
        logits = cosines / TEMPERATURE
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[:, :NEIGHBOURS] -= 1.0 / NEIGHBOURS
        push = shares / (TEMPERATURE * len(prefixes) * len(queries))
        scaled = push / (norm_a * norm_c)
        to_a[:, :dims] += np.einsum("bc,bcd->bd", scaled, others) - (push * cosines).sum(axis=1, keepdims=True) * first / norm_a**2
        to_c[:, :, :dims] += scaled[:, :, None] * first[:, None] - (push * cosines / norm_c**2)[:, :, None] * others
    slope = np.zeros_like(turned)
    dim = queries.shape[1]
    slope[:, :longest] = queries.T @ to_a + candidates.reshape(-1, dim).T @ to_c.reshape(-1, longest)
    return slope


def _nearest_rotation(matrix: F64) -> F64:
    """The orthogonal matrix nearest to one that nearly is, by Newton's iteration for the polar factor."""
    identity = np.eye(len(matrix))
    for _ in range(3):
        matrix = matrix @ (1.5 * identity - 0.5 * (matrix.T @ matrix))
    return matrix


def _found(matrix: F32, lessons: _Lessons, rows: F32, prefixes: Sequence[int]) -> float:
    """Share of the judges' neighbours that prefix searches find, on average over the prefixes."""
    judges = lessons.queries[: lessons.judges]
    true = lessons.listed[: lessons.judges, :NEIGHBOURS]
    coordinates, asked = rotated(current(), rows, matrix), rotated(current(), judges, matrix)
    shares = []
    for dims in prefixes:
        ids = top_k(asked, coordinates, min(FOUND_AMONG, len(rows)), metric="cosine", dims=dims).ids
        shares.append(float((ids[:, :, None] == true[:, None, :]).any(axis=1).mean()))
    return float(np.mean(shares))
