"""Queries that tune and calibrate a plan, with their true neighbours: a user's, or stored rows that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import ranges
from .backends.protocol import Backend
from .calibration import queries_needed
from .layout import Slabs
from .rows import RowStore
from .running import PreparedStage, run
from .searching import PROBED
from .types import F32, F64, I64, Metric
from .vectors import read_vectors

TUNING_QUERIES = 256
"""Queries that models are fitted to and cascades are compared with, at most."""

CALIBRATION_QUERIES = 2_000
"""Queries that recall is measured with, at most, if it needs no more: the interval of the mean is then below a percent wide."""

PAIRS = 1 << 24
"""Most pairs of a found and a true row that are compared at a time, a byte each."""

OWN_QUERIES = 512
"""Stored rows that stand for queries when there are none."""


@dataclass(frozen=True)
class Queries:
    """Queries with their true neighbours: ``itself`` are the positions of stored rows that stand for queries, else None."""

    vectors: F32
    truth: I64
    itself: I64 | None

    def part(self, chosen: slice) -> Queries:
        return Queries(self.vectors[chosen], self.truth[chosen], None if self.itself is None else self.itself[chosen])


@dataclass(frozen=True)
class Ground:
    """What is searched."""

    backend: Backend
    store: RowStore
    slabs: Slabs
    metric: Metric
    full: PreparedStage

    def search(self, stages: Sequence[PreparedStage], vectors: F32, k: int, itself: I64 | None) -> I64:
        """Positions (Q, k); rows that stand for queries do not find themselves."""
        wanted = min(k + (itself is not None), self.store.live)
        counts = np.full(len(vectors), self.store.live)
        positions = run(self.backend, stages, vectors, wanted, self.store.alive, counts).positions
        return positions if itself is None else without(positions, itself)[:, :k]

    def queries(self, vectors: F32, k: int, itself: I64 | None) -> Queries:
        return Queries(vectors, self.search([self.full], vectors, k, itself), itself)


def without(positions: I64, itself: I64) -> I64:
    """Lists (Q, C) without the query's own row, or else without their last entry: (Q, C - 1)."""
    own = positions == itself[:, None]
    own[~own.any(axis=1), -1] = True
    kept: I64 = positions[~own].reshape(len(positions), -1)
    return kept


def losses(found: I64, truth: I64) -> F64:
    """1 - recall of every query, by row."""
    hits = np.empty(len(truth), np.int64)
    for first, last in ranges(len(truth), max(1, PAIRS // max(found.shape[1] * truth.shape[1], 1))):
        some, true = found[first:last], truth[first:last]
        hits[first:last] = ((some[:, :, None] == true[:, None, :]).any(axis=1) & (true >= 0)).sum(axis=1)
    real = np.maximum((truth >= 0).sum(axis=1), 1)
    lost: F64 = 1.0 - hits / real
    return lost


def split(count: int, recall: float) -> tuple[int, int]:
    """How many of a user's queries tune, and how many calibrate.

    Raises
    ------
    ValueError
        If there are too few.
    """
    needed = queries_needed(recall)
    if count < needed:
        raise ValueError(f"queries: recall={recall} needs at least {needed} calibration queries, got {count}")
    # A third tunes; if that leaves too few, or too few of them, stored rows tune instead.
    tuning = min(TUNING_QUERIES, count // 3, count - needed)
    tuning = tuning if tuning >= 16 else 0
    return tuning, min(max(CALIBRATION_QUERIES, needed), count - tuning)


def queries_for(ground: Ground, given: F32 | None, k: int, recall: float) -> tuple[Queries, Queries]:
    """Queries that tune, and those that calibrate: a user's at random, or stored rows.

    Raises
    ------
    ValueError
        If there are too few.
    """
    if given is None:
        if not enough_rows(ground.store.live, recall):
            needed = queries_needed(recall)
            raise ValueError(
                f"queries: recall={recall} needs at least {needed} calibration queries; "
                f"for stored rows to stand for them there must be {2 * needed}, there are {ground.store.live}"
            )
        own = own_queries(ground, k, recall)
        half = len(own.truth) // 2
        return own.part(slice(half, None)), own.part(slice(0, half))
    if recall == 1.0:
        if not len(given):
            raise ValueError("queries: expected at least one, got none")
        # Exact search needs no calibration; the plan that finds its thresholds does.
        if len(given) < queries_needed(PROBED) or not split(len(given), PROBED)[0]:
            some = ground.queries(given[:TUNING_QUERIES], k, None)
            return some, some.part(slice(0, 0))
    tuning, judging = split(len(given), recall if recall < 1.0 else PROBED)
    order = np.random.default_rng(0).permutation(len(given))
    judges = ground.queries(given[order[tuning : tuning + judging]], k, None)
    return (ground.queries(given[order[:tuning]], k, None) if tuning else own_queries(ground, k, recall)), judges


def enough_rows(rows: int, recall: float) -> bool:
    """Whether stored rows can stand for the queries that a recall needs: half of them tune."""
    return recall == 1.0 or rows >= 2 * queries_needed(recall)


def own_queries(ground: Ground, k: int, recall: float) -> Queries:
    """Stored rows that stand for queries, in random order."""
    random = np.random.default_rng(0)
    living = ground.store.live_positions()
    count = min(len(living), max(OWN_QUERIES, 2 * queries_needed(recall) if recall < 1.0 else 1))
    chosen = np.sort(random.choice(living, count, replace=False))
    vectors = np.concatenate([read_vectors(ground.slabs, chunk, local) for chunk, _, local in ground.store.split(chosen)])
    order = random.permutation(count)
    return ground.queries(np.ascontiguousarray(vectors[order]), k, chosen[order])
