"""Searches with filters: which queries go through the cascade, and which are answered from their few allowed rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .backends.protocol import Backend
from .cascade import Found, PreparedStage, run, run_on_candidates
from .execution import Progress
from .filters import Allowed
from .rows import RowStore
from .types import F32, I64

DIRECT_ROWS = 1_024
"""A query with at most so many allowed rows is answered from their vectors: that takes less time than a look at every row's codes."""

MASK_BYTES = 64 << 20
"""Most memory for the allowed maps of queries with filters of their own."""


def answer(
    backend: Backend,
    stages: Sequence[PreparedStage],
    store: RowStore,
    queries: F32,
    k: int,
    allowed: Allowed | list[Allowed],
    threads: int | None,
    progress: Progress | None,
) -> Found:
    """Search with one filter for all queries or one for each; as wide as the query with the most allowed rows, and k, permit."""
    if isinstance(allowed, Allowed):
        count = allowed.count
        k = min(k, count)
        if not k or not len(queries):
            return Found.empty(len(queries), k, len(stages))
        if _is_few(count, store):
            return run_on_candidates(backend, stages, queries, k, [allowed.positions()] * len(queries), threads=threads)
        counts = np.full(len(queries), count)
        return run(backend, stages, queries, k, allowed.by_position(), counts, threads=threads, progress=progress)

    counts = np.array([one.count for one in allowed], np.int64)
    found = Found.empty(len(queries), min(k, int(counts.max(initial=0))), len(stages))
    few = np.array([_is_few(count, store) for count in counts], np.bool_)
    for group in _groups(np.flatnonzero(few & (counts > 0)), MASK_BYTES // (8 * DIRECT_ROWS)):
        positions = [allowed[query].positions() for query in group]
        width = min(k, int(counts[group].max()))
        found.put(group, run_on_candidates(backend, stages, queries[group], width, positions, threads=threads))
    for group in _groups(np.flatnonzero(~few & (counts > 0)), max(1, MASK_BYTES // max(store.total, 1))):
        mask = np.stack([allowed[query].by_position() for query in group])
        width = min(k, int(counts[group].max()))
        found.put(group, run(backend, stages, queries[group], width, mask, counts[group], threads=threads))
    return found


def _is_few(count: int, store: RowStore) -> bool:
    return count <= DIRECT_ROWS and count < store.live


def _groups(queries: I64, size: int) -> Iterator[I64]:
    for first in range(0, len(queries), size):
        yield queries[first : first + size]
