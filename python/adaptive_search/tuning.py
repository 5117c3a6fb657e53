"""Learning a plan: which cascade, which margins, and what recall they give.

Tuning queries fit the models of errors, fix the grid of margins and choose the cascade; calibration queries, which have chosen
nothing, then measure the one that was chosen (see `calibration`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from . import fitting
from .calibration import Calibration, never_rising
from .cascade import Cascade
from .execution import Progress, part_of
from .families import ROWS_OF_A_LIST, exact_family, family, is_uneven, listed, longer
from .margins import ErrorModel
from .representations import PQ, Lists, Representation, Stage
from .rows import Chunk, RowStore
from .running import OPENINGS, Opening, PreparedStage, first_scan, run, run_exact
from .searching import Way, listed_bytes, searcher_of
from .tuning_queries import Ground, Queries, losses
from .types import F32, F64, I64, Array

LONELY = 12
"""Queries that are timed one at a time."""

FEW = 128
"""Queries that tell whether lists are worth a trial."""

FINAL = 512
"""Queries of the last contest,"""

TURNS = 3
"""in which contenders are measured so often, in turns,"""

CLOSE = 3.0
"""if they took no longer than this, relative to the fastest: on a busy machine the same cascade may take twice as long a minute later."""

MIDDLING = 1.0
"""Margin, in deviations, that most recalls need at least."""

FIT_CANDIDATES = 128
"""Rows per query that models are fitted to, at most: the best of the first stage."""

COARSE = (-8.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 11.0, 15.0)
"""Margins that are tried first, in deviations."""

LOSSES = (0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.012, 0.009, 0.006, 0.004, 0.0025, 0.0015, 0.0008, 0.0004)
"""What the margins of the grid lose on the tuning queries, about."""

NEAR = (1.2, 1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""More of them, as parts of what may be lost."""

SAFETY = 0.7
"""Cascades are compared at margins that lose this part of what may be lost: calibration asks for a little more than tuning queries do."""


class _Overlay:
    """A store with columns that are not installed yet."""

    def __init__(self, store: RowStore, arrays: Sequence[dict[str, Array]], columns: dict[str, object]) -> None:
        self._store = store
        self._arrays = arrays
        self._columns = columns

    def used(self, name: str) -> list[Array]:
        if name not in self._columns:
            return self._store.used(name)
        column = self._columns[name]
        return [column.used(arrays[name], chunk.rows) for arrays, chunk in zip(self._arrays, self._store.chunks, strict=True)]  # type: ignore[attr-defined]

    @property
    def ids(self) -> I64:
        return self._store.ids

    @property
    def chunks(self) -> list[Chunk]:
        return self._store.chunks


@dataclass(frozen=True)
class Candidate:
    """A cascade whose stages are learned, with its rows."""

    cascade: Cascade
    parts: tuple[Representation, ...]
    arrays: tuple[dict[str, Array], ...]
    stages: tuple[PreparedStage, ...]
    stores: tuple[RowStore, ...]
    """Where each stage's columns are."""
    opening: Opening = OPENINGS[0]

    def at(self, margins: float) -> list[PreparedStage]:
        """The stages with so many deviations of margin."""
        return [replace(stage, margins=margins) if stage.adaptive else stage for stage in self.stages]

    @property
    def adaptive(self) -> bool:
        return any(stage.adaptive for stage in self.stages)


class Bench:
    """Learns stages and keeps what several cascades share."""

    def __init__(self, ground: Ground, sample: Callable[[], F32]) -> None:
        self.ground = ground
        self._sample = sample
        self._learned: dict[tuple[str, int], tuple[Representation, list[dict[str, Array]]]] = {}

    def know(self, stages: Sequence[Stage], parts: Sequence[Representation]) -> None:
        """Take over stages that were learned from these very rows, with their columns in the store: learning gives the same again."""
        keys = self._keys(stages)
        for number, part in enumerate(parts):
            own = part.named(f"tuning.{number}")
            names = [(old.name, new.name) for old, new in zip(part.columns, own.columns, strict=True)]
            arrays = [{new: chunk.arrays[old] for old, new in names} for chunk in self.ground.store.chunks]
            self._learned[keys[number], keys[:number].count(keys[number])] = own, arrays

    def prepare(self, cascade: Cascade, progress: Progress | None = None) -> Candidate:
        """Learn the stages, encode all rows, and fit nothing yet."""
        ground = self.ground
        parts: list[Representation] = []
        stages: list[PreparedStage] = []
        stores: list[RowStore] = []
        merged: list[dict[str, Array]] = [{} for _ in ground.store.chunks]
        keys = self._keys(cascade.stages)
        for number, stage in reversed(list(enumerate(cascade.stages))):
            # A stage that is there twice has columns of its own each time.
            key = keys[number], keys[:number].count(keys[number])
            if key not in self._learned:
                part = stage.bind(ground.slabs, ground.metric, f"tuning.{len(self._learned)}")
                if parts:
                    part = part.before(parts[0])
                step = part_of(progress, len(parts), len(cascade.stages))
                if not part.fitted:
                    part = part.fit(self._sample(), part_of(step, 0, 2))
                extents = [(chunk, chunk.rows) for chunk in ground.store.chunks]
                self._learned[key] = (part, fitting.encode_all(ground.slabs, [part], extents, part_of(step, 1, 2)))
            part, arrays = self._learned[key]
            columns = {column.name: column for column in part.columns if arrays and column.name in arrays[0]}
            store = cast(RowStore, _Overlay(ground.store, arrays, dict(columns)))
            rows = part.rows(ground.backend, store)
            adaptive = stage.shortlist is None and number < len(cascade.stages) - 1
            model = ErrorModel(0.0, 1.0, 1.0) if adaptive else None
            stages.insert(0, PreparedStage(part, rows, stage.shortlist, model))
            parts.insert(0, part)
            stores.insert(0, store)
            for chunk, new in zip(merged, arrays, strict=True):
                chunk |= new
        if not parts[0].scans:
            stages[1] = replace(stages[1], listing=ground.backend.listing(stages[0].rows, stages[1].rows))
        return Candidate(cascade, tuple(parts), tuple(merged), tuple(stages), tuple(stores))

    def _keys(self, stages: Sequence[Stage]) -> list[str]:
        """What each stage learns depends on; lists go by the codes after them."""
        specs = [sorted((name, value) for name, value in stage.spec().items() if name != "keep") for stage in stages]
        return [repr(specs[number : number + 2] if isinstance(stage, Lists) else specs[number]) for number, stage in enumerate(stages)]


def fit_models(ground: Ground, candidate: Candidate, queries: Queries, k: int) -> Candidate:
    """The candidate with models of its adaptive stages' errors, fitted to the best rows of the first stage that scans."""
    if not candidate.adaptive:
        return candidate
    stages = list(candidate.stages)
    head = first_scan(stages)
    width = min(ground.store.live, max(FIT_CANDIDATES, 4 * k))
    counts = np.full(len(queries.vectors), ground.store.live)
    alone = replace(head, shortlist=None, model=None, listing=None)
    lists = run(ground.backend, [alone], queries.vectors, width, ground.store.alive, counts).positions
    lists = np.concatenate([lists, queries.truth], axis=1)
    judge = len(stages) - 1
    for number in range(len(stages) - 1, -1, -1):
        if not stages[number].adaptive:
            judge = number
            continue
        keys, places = _keys(ground, stages[number], queries.vectors, lists)
        judged, others = _keys(ground, stages[judge], queries.vectors, lists)
        line = stages[judge].representation.units(ground.backend, queries.vectors).estimated()
        scores = line.of(judged)
        if not np.array_equal(places, others):
            raise RuntimeError("two stages saw different rows")
        units = stages[number].representation.units(ground.backend, queries.vectors)
        x, y = units.compared(keys, scores)
        # What decides lies around the k-th best; rows far below would bend the line.
        least = np.sort(np.where(places >= 0, scores, -np.inf), axis=1)[:, -min(scores.shape[1], max(2 * k, k + 8))]
        near = (places >= 0) & (scores >= least[:, None]) & np.isfinite(x) & np.isfinite(y)
        if queries.itself is not None:
            near &= places != queries.itself[:, None]
        stages[number] = replace(stages[number], model=ErrorModel.fitted(x[near], y[near]))
    return replace(candidate, stages=tuple(stages))


def _keys(ground: Ground, stage: PreparedStage, queries: F32, lists: I64) -> tuple[F64, I64]:
    """Keys of listed rows, in the order of rising positions; -1 and NaN where a row was listed twice."""
    raw, positions = stage.representation.rescore(ground.backend, stage.rows, queries, lists, lists.shape[1])
    order = np.argsort(positions, axis=1, kind="stable")
    keys = np.take_along_axis(raw, order, axis=1).astype(np.float64)
    return (keys if stage.representation.largest else -keys), np.take_along_axis(positions, order, axis=1)


@dataclass(frozen=True)
class Curve:
    """Loss of the tuning queries over margins, rising."""

    margins: tuple[float, ...]
    losses: tuple[float, ...]

    def at(self, loss: float) -> float:
        """About the margin that loses so much; infinite beyond those that were tried."""
        for margin, reached, before, above in zip(
            self.margins, self.losses, (None, *self.margins[:-1]), (None, *self.losses[:-1]), strict=True
        ):
            if reached <= loss:
                if before is None or above is None or above == reached:
                    return margin
                return margin - (margin - before) * (loss - reached) / (above - reached)
        return math.inf


def curve(ground: Ground, candidate: Candidate, queries: Queries, k: int, least: float) -> Curve:
    """Margins from where a third is found to where no more than ``least`` is lost."""
    margins: list[float] = []
    lost: list[float] = []
    for margin in COARSE:
        found = ground.search(candidate.at(margin), queries.vectors, k, queries.itself)
        loss = float(losses(found, queries.truth).mean())
        if loss > 0.7 and margin < 0:
            continue
        margins.append(margin)
        lost.append(min(loss, lost[-1]) if lost else loss)
        if loss <= least:
            break
    return Curve(tuple(margins), tuple(lost))


@dataclass(frozen=True)
class Measured:
    """A cascade with the margin at which it was compared, what a query took then, and what its stages handed on."""

    candidate: Candidate
    curve: Curve | None
    cost: Cost


def measure(ground: Ground, candidate: Candidate, queries: Queries, k: int, recall: float, limit: float = math.inf) -> Measured | None:
    """Time per query at a margin that reaches the recall on the tuning queries; None if only exact search does, or if its first stage
    alone, or a search by lists at a smaller margin, takes as long as the ``limit``."""
    if not candidate.adaptive:
        return Measured(candidate, None, seconds(ground, candidate.stages, queries.vectors, k))
    head = first_scan(candidate.stages)
    alone, by_lists = replace(head, shortlist=None, model=None), head.listing is not None
    if not by_lists and seconds(ground, [alone], queries.vectors, k).together >= limit:
        return None
    fitted = fit_models(ground, candidate, queries, k)
    some = np.ascontiguousarray(queries.vectors[:: -(-len(queries.vectors) // FEW)])
    if by_lists and seconds(ground, fitted.at(MIDDLING), some, k).together >= limit:
        return None
    found = curve(ground, fitted, queries, k, SAFETY * (1.0 - recall) / 4.0)
    margin = found.at(SAFETY * (1.0 - recall))
    if math.isinf(margin):
        return None
    stages = fitted.at(margin)
    # Lists know where to begin.
    openings = OPENINGS[:1] if by_lists else OPENINGS
    costs = {opening: seconds(ground, stages, queries.vectors, k, opening) for opening in openings}
    opening = min(costs, key=lambda opening: costs[opening].together)
    return Measured(replace(fitted, opening=opening), found, costs[opening])


def seconds(ground: Ground, stages: Sequence[PreparedStage], queries: F32, k: int, opening: Opening = OPENINGS[0]) -> Cost:
    """Time per query of a batch, and of queries one at a time."""
    names, sizes = ("",) * len(stages), (0,) * len(stages)
    way = Way(ground.backend, 0.0, tuple(stages), (), names, sizes, opening, searcher_of(ground.backend, stages, opening))

    def search(some: F32) -> None:
        if way.at_once(some, k, ground.store) is None:
            counts = np.full(len(some), ground.store.live)
            way.over_all(some, min(k, ground.store.live), ground.store.alive, counts, None)

    return cost(search, queries)


@dataclass(frozen=True)
class Cost:
    """Seconds per query, in a batch and alone."""

    batch: float
    alone: float

    @property
    def together(self) -> float:
        """What cascades are compared by: each counts, and neither hides the other."""
        return math.sqrt(self.batch * self.alone)


def cost(search: Callable[[F32], None], queries: F32) -> Cost:
    lonely = queries[:: -(-len(queries) // LONELY)]

    def one_by_one() -> None:
        for query in lonely:
            search(query[None])

    return Cost(best_of(lambda: search(queries)) / len(queries), best_of(one_by_one) / len(lonely))


def calibrate(
    ground: Ground, measured: Measured, queries: Queries, k: int, recall: float, given: bool, progress: Progress | None
) -> Calibration:
    """Measure the losses of the calibration queries over a grid of margins that the tuning queries have fixed."""
    candidate, tuned = measured.candidate, measured.curve
    stages = candidate.stages
    models = tuple(stage.model for stage in stages)
    nothing = Calibration(recall, k, models, candidate.opening, (), (), 0, given, 1e6 * measured.cost.batch)
    if tuned is None:
        if recall == 1.0:
            return nothing
        lost = losses(ground.search(stages, queries.vectors, k, queries.itself), queries.truth)
        return replace(nothing, margins=(0.0,), losses=(float(lost.mean()),), queries=len(queries.vectors))
    last = tuned.margins[-1]
    # Close together where the margin for the recall must be.
    wanted = [*LOSSES, *(share * (1.0 - recall) for share in NEAR)]
    steps = {round(tuned.at(loss), 3) for loss in wanted if tuned.losses[-1] <= loss}
    margins = sorted({*(step for step in steps if math.isfinite(step)), last, last + 1.0, last + 2.0, last + 4.0})
    table = np.ones((len(queries.vectors), len(margins)))
    first = len(margins)
    # From the largest margin down, as far as there is a recall that somebody may ask for.
    while first > 0 and (first == len(margins) or table[:, first:].max(axis=1).mean() < 0.6):
        first -= 1
        found = ground.search(candidate.at(margins[first]), queries.vectors, k, queries.itself)
        table[:, first] = losses(found, queries.truth)
        if progress is not None:
            progress(len(margins) - first, len(margins))
    highest = never_rising(table[:, first:])
    return replace(
        nothing,
        margins=tuple(margins[first:]),
        losses=tuple(highest.mean(axis=0).tolist()),
        queries=len(queries.vectors),
    )


def best_plan(
    ground: Ground,
    own: Cascade | None,
    tuners: Queries,
    judges: Queries,
    k: int,
    recall: float,
    *,
    given: bool,
    memory: int | None,
    sample: Callable[[], F32],
    known: tuple[Sequence[Stage], Sequence[Representation]],
    progress: Progress | None,
) -> tuple[Candidate | None, Calibration | None]:
    """The cheapest cascade and its calibration; None if that is a scan of all vectors.

    Parameters
    ----------
    own : Cascade or None
        What the user wants; None leaves the choice.
    memory : int or None
        Most bytes per row that the stages' columns may take.
    known : stages, and their representations
        Learned from these rows before, with their columns in the store.
    """
    bench = Bench(ground, sample)
    bench.know(*known)
    whole = ground.slabs.kind == "int8"  # codes would be no shorter than the vectors
    dim, metric = ground.slabs.dim, ground.metric
    if own is not None:
        cascades = [own]
    elif whole:
        cascades = []
    else:
        uneven = is_uneven(sample())
        cascades = exact_family(dim, uneven) if recall == 1.0 else family(dim, metric, uneven, ground.store.live)
    flat = seconds(ground, [ground.full], tuners.vectors, k)

    tried: list[Measured] = []
    steps = len(cascades) + len(ROWS_OF_A_LIST) + 2

    def attempt(cascade: Cascade, number: int) -> None:
        step = part_of(progress, number, steps)
        candidate = bench.prepare(cascade, step)
        held = sum(column.row_bytes for part in candidate.parts for column in part.columns) + listed_bytes(candidate.parts, ground.store)
        if own is None and memory is not None and held > memory:
            return
        if recall == 1.0:
            tried.append(measure_exact(ground, candidate, tuners, k))
            return
        limit = min((one.cost.together for one in tried), default=math.inf)
        found = measure(ground, candidate, tuners, k, recall, limit)
        if found is not None:
            tried.append(found)

    for number, cascade in enumerate(cascades):
        attempt(cascade, number)
    # Lists take long to learn: they are tried with the best codes alone, and where they help with the next longer ones, as few are read.
    coded = [one for one in tried if isinstance(one.candidate.cascade.stages[0], PQ)]
    if own is None and coded and ground.backend.passes_by:
        codes = contest(ground, coded, tuners.vectors, k, recall).candidate.cascade
        for number, cascade in enumerate(listed(codes, ground.store.live), len(cascades)):
            attempt(cascade, number)
        lists = min(tried, key=lambda one: one.cost.together).candidate.cascade.stages[0]
        after = longer(codes, cascades)
        if isinstance(lists, Lists) and after is not None:
            attempt(Cascade([lists, *after.stages]), steps - 2)
    best = contest(ground, tried, tuners.vectors, k, recall) if tried else None
    if own is not None and best is None:
        # Only exact search reaches the recall with it. The margins are of use for others.
        candidate = fit_models(ground, bench.prepare(own), tuners, k)
        best = Measured(candidate, curve(ground, candidate, tuners, k, 0.0), flat)
    last = part_of(progress, steps - 1, steps)
    found: tuple[Candidate | None, Calibration | None] = None, None
    if best is not None and (own is not None or best.cost.together < flat.together):
        found = best.candidate, calibrate(ground, best, judges, k, recall, given, last)
    if last is not None:
        last(1, 1)
    return found


def contest(ground: Ground, tried: Sequence[Measured], queries: F32, k: int, recall: float) -> Measured:
    """The fastest. Those that are close take turns once more: times of different minutes may differ by more than cascades do."""
    fastest = min(tried, key=lambda one: one.cost.together)
    close = [one for one in tried if one.curve is not None and one.cost.together <= CLOSE * fastest.cost.together]
    if len(close) < 2:
        return fastest
    some = np.ascontiguousarray(queries[:: -(-len(queries) // FINAL)])
    costs: list[list[Cost]] = [[] for _ in close]
    for _ in range(TURNS):
        for one, own in zip(close, costs, strict=True):
            stages = one.candidate.at(one.curve.at(SAFETY * (1.0 - recall)) if one.curve is not None else 0.0)
            own.append(seconds(ground, stages, some, k, one.candidate.opening))
    # The least of each: what others took from it comes on top.
    final = [Cost(min(cost.batch for cost in own), min(cost.alone for cost in own)) for own in costs]
    place = min(range(len(close)), key=lambda number: final[number].together)
    return replace(close[place], cost=final[place])


def measure_exact(ground: Ground, candidate: Candidate, queries: Queries, k: int) -> Measured:
    """Time per query of exact search by the candidate's bounds, if it has some."""
    bounds = [stage.representation.bounded(ground.backend, store) for stage, store in zip(candidate.stages, candidate.stores, strict=True)]
    useful = [bound for bound in bounds if bound is not None]
    if not useful:
        return Measured(candidate, None, seconds(ground, [ground.full], queries.vectors, k))

    head = first_scan(candidate.stages)

    def search(some: F32, opening: Opening) -> None:
        counts, wanted = np.full(len(some), ground.store.live), min(k, ground.store.live)
        run_exact(ground.backend, head, useful, ground.full, some, wanted, ground.store.alive, counts, opening=opening)

    # Longer lists end no search: bounds are looked at for all rows in any case.
    tried = [opening for opening in OPENINGS if opening.spare == Opening().spare]
    costs = {opening: cost(partial(search, opening=opening), queries.vectors) for opening in tried}
    opening = min(costs, key=lambda opening: costs[opening].together)
    return Measured(replace(candidate, opening=opening), None, costs[opening])


def best_of(work: Callable[[], object]) -> float:
    """Seconds of the best of three."""
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
