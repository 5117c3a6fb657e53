"""Searches with filters: which queries go through the cascade, and which are answered from their few allowed rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from .backends.protocol import Backend, Searcher
from .execution import Progress
from .filters import Allowed
from .layout import GROUP
from .representations import Bounded, Representation
from .representations.base import query_norms
from .representations.full import FullRows
from .representations.lists import ListRows
from .representations.prefix import LARGEST_NORM
from .rows import RowStore
from .running import OPENINGS, SMALL, Found, Opening, PreparedStage, allowed_of, first_scan, run, run_exact, run_on_candidates
from .types import F32, I64, Bool

DIRECT_ROWS = 1_024
"""A query with at most so many allowed rows is answered by the last stage alone: that takes less time than a look at every row's codes."""

PROBED = 0.8
"""Recall of a plan that finds thresholds for exact search, at most: nearly as high ones as for 0.99, in a fraction of the time."""

MASK_BYTES = 64 << 20
"""Most memory for the allowed maps of queries with filters of their own."""


def searcher_of(backend: Backend, stages: Sequence[PreparedStage], opening: Opening) -> Searcher | None:
    """What does in the backend all that a search takes, for adaptive stages before the vectors; None if not all stages can be had there."""
    if len(stages) < 2 or not isinstance(stages[-1].representation, FullRows) or not all(stage.adaptive for stage in stages[:-1]):
        return None
    lists, rest = (None, stages) if stages[0].representation.scans else (stages[0], stages[1:])
    found = [stage.source(backend, None if number else lists) for number, stage in enumerate(rest)]
    sources = [source for source in found if source is not None]
    if len(sources) < len(found):
        return None
    return backend.searcher(sources, opening.share, opening.spare, opening.guess, first_scan(stages).listing)


def listed_bytes(parts: Sequence[Representation], store: RowStore) -> int:
    """About the bytes a row of codes that are held once more, in the order of lists, and of the row's place: every list that has rows
    begins with a block of its own, and half a block of each is empty, or more if it has but a few."""
    rows = max(store.total, 1)
    held = 0
    for part, after in pairwise(parts):
        if isinstance(part, ListRows):
            with_rows = -part.lists * math.expm1(-rows / part.lists) / rows
            held += round(after.bytes_per_row * max(1.0 + GROUP / 2 * with_rows, GROUP * with_rows)) + 4
    return held


def is_probe(stages: Sequence[PreparedStage], bounds: Sequence[Bounded]) -> bool:
    """Whether a plan takes little time beside one look at the bounds. One that begins with codes not much shorter does not: few rows stand
    out then."""
    return 2 * first_scan(stages).representation.bytes_per_row <= bounds[0].bytes_per_row


@dataclass(frozen=True)
class Way:
    """How a search goes: through ``stages``; or exactly by ``bounds``: then ``stages`` are what finds first thresholds, and the vectors.

    ``names`` and ``row_bytes`` are those of the stages that are reported; ``margins`` those of the stages, infinite for exact search.
    """

    backend: Backend
    margins: float
    stages: tuple[PreparedStage, ...]
    bounds: tuple[Bounded, ...]
    names: tuple[str, ...]
    row_bytes: tuple[int, ...]
    opening: Opening = OPENINGS[0]
    searcher: Searcher | None = None
    """For few queries, if the backend has it."""
    plan: Way | None = None
    """For exact search: what finds most of the best rows in little time."""

    @classmethod
    def exact(
        cls,
        backend: Backend,
        seeds: PreparedStage,
        full: PreparedStage,
        bounds: Sequence[Bounded],
        opening: Opening = OPENINGS[0],
        names: Sequence[str] | None = None,
        plan: Way | None = None,
    ) -> Way:
        """By bounds that cannot fail, at least one; ``names`` are those of the bounds."""
        sizes = (*(bound.bytes_per_row for bound in bounds), full.representation.bytes_per_row)
        shown = (*(("",) * len(bounds) if names is None else names), "Full()")
        return cls(backend, math.inf, (seeds, full), tuple(bounds), shown, sizes, opening, plan=plan)

    def at_once(self, queries: Any, k: Any, store: RowStore, least: int = 1) -> tuple[I64, F32] | None:
        """Ids and scores of so few queries that calls from here would take longer than the search, as a user gets them.

        Takes a user's arguments. None if these are wrong, or have to be converted, or there is no such way: that is no answer. ``least``
        rows at least are looked for.
        """
        if self.searcher is None:
            return None
        least, most = min(least, store.live), SMALL // max(1, self.stages[0].rows.visits)
        return self.searcher.search(queries, k, least, store.live, store.alive, most)

    def over_all(
        self, queries: F32, k: int, allowed: Bool | None, counts: I64, threads: int | None, progress: Progress | None = None
    ) -> Found:
        """Search all allowed rows."""
        if not self.bounds:
            return run(self.backend, self.stages, queries, k, allowed, counts, opening=self.opening, threads=threads, progress=progress)
        seeds, full = self.stages
        far = query_norms(self.backend, queries) > LARGEST_NORM
        if far.any():
            # Codes cannot be compared with them, nor would bounds say anything.
            found = Found.empty(len(queries), k, len(self.names))
            for chosen, way in ((np.flatnonzero(far), replace(self, stages=(full,), bounds=())), (np.flatnonzero(~far), self)):
                if len(chosen):
                    some = way.over_all(queries[chosen], k, allowed_of(allowed, chosen), counts[chosen], threads)
                    found.put(chosen, self._reported(some))
            return found
        return run_exact(
            self.backend,
            seeds,
            self.bounds,
            full,
            queries,
            k,
            allowed,
            counts,
            opening=self.opening,
            probe=None if self.plan is None else self.plan.over_all,
            threads=threads,
            progress=progress,
        )

    def over_few(self, queries: F32, k: int, candidates: Sequence[I64], threads: int | None) -> Found:
        """Score few allowed rows of each query."""
        return self._reported(run_on_candidates(self.backend, self.stages, queries, k, candidates, threads=threads))

    def _reported(self, found: Found) -> Found:
        """What was found, with the counters of the stages that are reported, where those before the vectors have done nothing."""
        if len(found.scored) == len(self.names):
            return found
        scored, survivors = (np.zeros((len(self.names), found.scored.shape[1]), np.int64) for _ in range(2))
        scored[-1], survivors[-1] = found.scored[-1], found.survivors[-1]
        return found._replace(scored=scored, survivors=survivors)


def answer(
    way: Way,
    store: RowStore,
    queries: F32,
    k: int,
    allowed: Allowed | list[Allowed],
    threads: int | None,
    progress: Progress | None,
) -> Found:
    """Search with one filter for all queries or one for each; as wide as the query with the most allowed rows, and k, permit."""
    stages = len(way.names)
    if isinstance(allowed, Allowed):
        count = allowed.count
        k = min(k, count)
        if not k or not len(queries):
            return Found.empty(len(queries), k, stages)
        if _is_few(count, store):
            return way.over_few(queries, k, [allowed.positions()] * len(queries), threads)
        counts = np.full(len(queries), count)
        return way.over_all(queries, k, allowed.by_position(), counts, threads, progress)

    counts = np.array([one.count for one in allowed], np.int64)
    found = Found.empty(len(queries), min(k, int(counts.max(initial=0))), stages)
    few = np.array([_is_few(count, store) for count in counts], np.bool_)
    for group in _groups(np.flatnonzero(few & (counts > 0)), MASK_BYTES // (8 * DIRECT_ROWS)):
        positions = [allowed[query].positions() for query in group]
        width = min(k, int(counts[group].max()))
        found.put(group, way.over_few(queries[group], width, positions, threads))
    for group in _groups(np.flatnonzero(~few & (counts > 0)), max(1, MASK_BYTES // max(store.total, 1))):
        mask = np.stack([allowed[query].by_position() for query in group])
        width = min(k, int(counts[group].max()))
        found.put(group, way.over_all(queries[group], width, mask, counts[group], threads))
    return found


def _is_few(count: int, store: RowStore) -> bool:
    return count <= DIRECT_ROWS and count < store.live


def _groups(queries: I64, size: int) -> Iterator[I64]:
    for first in range(0, len(queries), size):
        yield queries[first : first + size]
