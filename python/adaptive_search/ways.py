"""How searches of an index go: stages prepared over its rows, with which margins, kept until something changes."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import is_not
from typing import NamedTuple

from .backends.protocol import Backend
from .calibration import Calibration, queries_needed
from .representations import Bounded, Full, Representation, Stage
from .rows import RowStore
from .running import Opening, PreparedStage
from .searching import PROBED, Way, is_probe, searcher_of

LEAST_ROWS = 4_096
"""Fewer are searched exactly in less time than a cascade takes to be set up."""

SAMPLE = Opening(share=16)
"""How exact search finds thresholds where a plan would take too long for that."""

MOST_WAYS = 64
"""Recalls that searches have asked for lately, at most, for which what they need is kept."""

NO_PLAN = "recall: without a plan, which tune() learns, only 1.0 (exact) can be asked for, got {}"


class Installed(NamedTuple):
    """What an index searches by.

    Attributes
    ----------
    stages, parts : tuple
        The stages of its cascade, or the vectors alone, and their representations.
    tuned : Calibration or None
        What `tune` has learned of them.
    asked : (recall, k) or None
        What `tune` was asked for.
    """

    stages: tuple[Stage, ...]
    parts: tuple[Representation, ...]
    tuned: Calibration | None = None
    asked: tuple[float, int] | None = None

    @property
    def fitted(self) -> bool:
        """Whether every stage is learned, and searches go through them."""
        return all(part.fitted for part in self.parts)

    @property
    def needs_calibration(self) -> bool:
        """Whether a stage before the last has no ``keep``, and nothing says what it hands on instead."""
        return self.tuned is None and any(stage.shortlist is None for stage in self.stages[:-1])

    @property
    def exact(self) -> bool:
        """Whether the plan is exact search."""
        return self.stages == (Full(),) or (self.tuned is not None and self.tuned.recall == 1.0)

    def margins(self, wanted: float | None) -> float:
        """The margin, in deviations, of a search for a recall, None being the plan's; infinite if it is exact.

        Raises
        ------
        ValueError
            If there is no such plan.
        """
        if wanted is None and self.needs_calibration:
            raise ValueError("cascade: a stage with keep=None needs calibration by tune(); or give every stage before the last a keep=")
        if wanted == 1.0 or not self.fitted or (wanted is None and self.exact):
            if wanted is not None and wanted < 1.0 and self.tuned is None:
                raise ValueError(NO_PLAN.format(wanted))
            return math.inf
        if self.tuned is not None and self.tuned.queries:
            asked = self.tuned.recall if wanted is None else wanted
            if self.exact and self.tuned.queries < queries_needed(asked):
                return math.inf
            return self.tuned.margin(asked)
        if wanted is not None:
            if self.exact and self.asked is not None:
                return math.inf
            raise ValueError(NO_PLAN.format(wanted))
        return 0.0

    def run_k(self, way: Way, k: int) -> int:
        """The k that a search for k neighbors runs at: a plan's, at least, whose answers are then cut."""
        return k if self.tuned is None or math.isinf(way.margins) else max(k, self.tuned.k)


class Ways:
    """Ways over the rows of a store."""

    def __init__(self, store: RowStore, exact: Representation) -> None:
        self._store, self._exact = store, exact
        # By backend and stage: the layout of the store that it was prepared for, and the stage.
        self._prepared: dict[tuple[str, int], tuple[int, PreparedStage]] = {}
        self._bounds: dict[str, tuple[int, list[Bounded | None]]] = {}
        # By backend and recall: what must not have changed, and how searches go.
        self._ways: dict[tuple[str, float | None], tuple[tuple[object, ...], Way]] = {}

    def forget(self) -> None:
        """Other stages are installed."""
        self._prepared, self._bounds, self._ways = {}, {}, {}

    def way(self, backend: Backend, recall: float | None, installed: Installed) -> Way:
        """How a search for a recall goes over the rows as they are now. What the last one was told is kept until anything changes."""
        known = (self._store.layout, installed.tuned, installed.parts, self._store.live >= LEAST_ROWS)
        kept = self._ways.get((backend.name, recall))
        # By identity, which a layout's number keeps while nobody gives it a new one.
        if kept is None or any(map(is_not, known, kept[0])):
            if kept is not None or len(self._ways) >= MOST_WAYS:
                # Others are out of date as well, and hold on to rows that nobody needs any more.
                self._ways.clear()
            kept = self._ways[backend.name, recall] = (known, self.at(backend, installed.margins(recall), installed))
        return kept[1]

    def at(self, backend: Backend, margins: float, installed: Installed) -> Way:
        """With so many deviations of margin."""
        full, tuned = self.full(backend), installed.tuned
        if not math.isinf(margins):
            return self._planned(backend, margins, installed)
        bounds = self.bounds(backend, installed) if installed.fitted and self._store.live >= LEAST_ROWS else []
        if not bounds:
            return Way(backend, margins, (full,), (), ("Full()",), (full.representation.bytes_per_row,))
        pairs = zip(installed.stages, self._all_bounds(backend, installed), strict=True)
        names = [f"{stage!r}, bound" for stage, bound in pairs if bound is not None]
        seeds = self.stage(backend, next(number for number, part in enumerate(installed.parts) if part.scans), installed)
        # What a plan found best for its margins says nothing of bounds that cannot fail.
        opening = tuned.opening if tuned is not None and not tuned.queries else Opening()
        plan = self._probing(backend, installed)
        if plan is not None and not is_probe(plan.stages, bounds):
            plan, opening = None, SAMPLE
        return Way.exact(backend, seeds, full, bounds, opening, names, plan)

    def full(self, backend: Backend) -> PreparedStage:
        """The vectors."""
        return self._prepared_as(backend, -1, self._exact, None)

    def stage(self, backend: Backend, number: int, installed: Installed) -> PreparedStage:
        """One of the stages, without margins."""
        stage = installed.stages[number]
        if isinstance(stage, Full):
            return self.full(backend)
        before = None if number == 0 or installed.parts[number - 1].scans else self.stage(backend, number - 1, installed)
        return self._prepared_as(backend, number, installed.parts[number], stage.shortlist, before)

    def bounds(self, backend: Backend, installed: Installed) -> list[Bounded]:
        """The stages with bounds that cannot fail."""
        return [bound for bound in self._all_bounds(backend, installed) if bound is not None]

    def _probing(self, backend: Backend, installed: Installed) -> Way | None:
        """The plan, if there is one that finds most of the best rows, and their true scores, for less than exact search."""
        tuned = installed.tuned
        if tuned is None or not tuned.queries or not isinstance(installed.stages[-1], Full):
            return None
        margins = tuned.margin(min(tuned.recall, PROBED))
        return self._planned(backend, margins, installed) if math.isfinite(margins) else None

    def _planned(self, backend: Backend, margins: float, installed: Installed) -> Way:
        """Through the stages, with so many deviations of margin."""
        stages, tuned = [self.stage(backend, number, installed) for number in range(len(installed.stages))], installed.tuned
        if tuned is not None:
            stages = [
                stage if model is None else replace(stage, model=model, margins=margins)
                for stage, model in zip(stages, tuned.models, strict=True)
            ]
        opening = tuned.opening if tuned is not None and tuned.queries else Opening()
        sizes = tuple(stage.representation.bytes_per_row for stage in stages)
        names, searcher = tuple(map(repr, installed.stages)), searcher_of(backend, stages, opening)
        return Way(backend, margins, tuple(stages), (), names, sizes, opening, searcher)

    def _prepared_as(
        self, backend: Backend, number: int, part: Representation, shortlist: int | None, lists: PreparedStage | None = None
    ) -> PreparedStage:
        """A stage over the rows as they are now, behind its lists, if it has some. What backends prepare is kept until the rows change."""
        kept = self._prepared.get((backend.name, number))
        if kept is None or kept[0] != self._store.layout:
            rows = part.rows(backend, self._store)
            known = kept[1].listing if kept is not None and kept[1].representation is part else None
            listing = None if lists is None else backend.listing(lists.rows, rows, known)
            kept = (self._store.layout, PreparedStage(part, rows, shortlist, listing=listing))
            self._prepared[backend.name, number] = kept
        return kept[1]

    def _all_bounds(self, backend: Backend, installed: Installed) -> list[Bounded | None]:
        kept = self._bounds.get(backend.name)
        if kept is None or kept[0] != self._store.layout:
            kept = (self._store.layout, [part.bounded(backend, self._store) for part in installed.parts])
            self._bounds[backend.name] = kept
        return kept[1]
