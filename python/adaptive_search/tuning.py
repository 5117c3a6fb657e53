"""Learning a plan: which cascade, which margins, and what recall they give.

Tuning queries fit the models of errors, fix the grid of margins and choose the cascade; calibration queries, which have chosen
nothing, then measure the one that was chosen (see `calibration`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .calibration import Calibration, never_rising, queries_needed
from .candidates import Bench, Candidate
from .cascade import Cascade
from .execution import Progress, part_of
from .families import ROWS_OF_A_LIST, exact_family, family, is_uneven, listed, longer, wider
from .margins import ErrorModel
from .representations import PQ, Full, Lists, Representation, Stage
from .running import OPENINGS, Opening, PreparedStage, first_scan, run
from .searching import PROBED, Way, is_probe, listed_bytes, searcher_of
from .tuning_queries import Ground, Queries, losses
from .types import F32, F64, I64

LONELY = 12
"""Queries that are timed one at a time."""

FEW = 128
"""Queries that tell whether lists are worth a trial."""

FINAL = 512
"""Queries of the last contest,"""

TURNS = 5
"""in which contenders are measured so often, in turns,"""

CLOSE = 3.0
"""if they took no longer than this, relative to the fastest: on a busy machine the same cascade may take twice as long a minute later. In
turns, less is enough to be left behind."""

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
    """A cascade, how it was compared with others, and what a query took then."""

    candidate: Candidate
    way: Way
    cost: Cost
    curve: Curve | None = None
    """Of its plan, if it has one."""


def measure(ground: Ground, candidate: Candidate, queries: Queries, k: int, recall: float, limit: float = math.inf) -> Measured | None:
    """At a margin that reaches the recall on the tuning queries; None if only exact search does, or if its first stage
    alone, or a search by lists at a smaller margin, takes as long as the ``limit``."""
    if not candidate.adaptive:
        way = way_through(ground, candidate.stages)
        return Measured(candidate, way, seconds(ground, way, queries.vectors, k))
    head = first_scan(candidate.stages)
    alone, by_lists = way_through(ground, [replace(head, shortlist=None, model=None)]), head.listing is not None
    if not by_lists and seconds(ground, alone, queries.vectors, k).together >= limit:
        return None
    fitted = fit_models(ground, candidate, queries, k)
    some = np.ascontiguousarray(queries.vectors[:: -(-len(queries.vectors) // FEW)])
    if by_lists and seconds(ground, way_through(ground, fitted.at(MIDDLING)), some, k).together >= limit:
        return None
    found = curve(ground, fitted, queries, k, SAFETY * (1.0 - recall) / 4.0)
    margin = found.at(SAFETY * (1.0 - recall))
    if math.isinf(margin):
        return None
    stages = fitted.at(margin)
    # Lists know where to begin.
    openings = OPENINGS[:1] if by_lists else OPENINGS
    tried = []
    for opening in openings:
        way = way_through(ground, stages, opening)
        tried.append(Measured(replace(fitted, opening=opening), way, seconds(ground, way, queries.vectors, k), found))
    return fastest(tried)


def measure_exact(ground: Ground, candidate: Candidate, queries: Queries, k: int, probing: bool) -> list[Measured]:
    """The ways of exact search by the candidate's bounds, none if it has none; ``probing``: its plan may find thresholds."""
    bounds = [stage.representation.bounded(ground.backend, store) for stage, store in zip(candidate.stages, candidate.stores, strict=True)]
    useful = [bound for bound in bounds if bound is not None]
    if not useful:
        return []
    # Longer lists end no search: bounds are looked at for all rows in any case.
    openings = [opening for opening in OPENINGS if opening.spare == Opening().spare]
    tried = []
    for opening in openings:
        way = Way.exact(ground.backend, first_scan(candidate.stages), ground.full, useful, opening)
        tried.append(Measured(replace(candidate, opening=opening), way, seconds(ground, way, queries.vectors, k)))
    # With a fixed keep at every stage there is no margin to calibrate, and estimates are no thresholds: searches would not use the plan.
    probing = probing and candidate.adaptive and isinstance(candidate.cascade.stages[-1], Full)
    plan = measure(ground, candidate, queries, k, PROBED) if probing and is_probe(candidate.stages, useful) else None
    if plan is not None:
        way = Way.exact(ground.backend, first_scan(candidate.stages), ground.full, useful, plan=plan.way)
        tried.append(replace(plan, way=way, cost=seconds(ground, way, queries.vectors, k)))
    return tried


def way_through(ground: Ground, stages: Sequence[PreparedStage], opening: Opening = OPENINGS[0]) -> Way:
    """A search through stages whose names nobody asks for."""
    names, sizes = ("",) * len(stages), (0,) * len(stages)
    return Way(ground.backend, 0.0, tuple(stages), (), names, sizes, opening, searcher_of(ground.backend, stages, opening))


def fastest(tried: Sequence[Measured]) -> Measured:
    return min(tried, key=lambda one: one.cost.together)


def seconds(ground: Ground, way: Way, queries: F32, k: int, repeats: int = 3) -> Cost:
    """Time per query of a batch, and of queries one at a time."""

    def search(some: F32) -> None:
        if way.at_once(some, k, ground.store) is None:
            counts = np.full(len(some), ground.store.live)
            way.over_all(some, min(k, ground.store.live), ground.store.alive, counts, None)

    return cost(search, queries, repeats)


@dataclass(frozen=True)
class Cost:
    """Seconds per query, in a batch and alone."""

    batch: float
    alone: float

    @property
    def together(self) -> float:
        """What cascades are compared by: each counts, and neither hides the other."""
        return math.sqrt(self.batch * self.alone)


def cost(search: Callable[[F32], None], queries: F32, repeats: int = 3) -> Cost:
    lonely = queries[:: -(-len(queries) // LONELY)]

    def one_by_one() -> None:
        for query in lonely:
            search(query[None])

    return Cost(best_of(lambda: search(queries), repeats) / len(queries), best_of(one_by_one, repeats) / len(lonely))


def best_of(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


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
    aim = recall if recall < 1.0 else PROBED
    wanted = [*LOSSES, *(share * (1.0 - aim) for share in NEAR)]
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
    trials = Trials(bench, tuners, k, recall, memory if own is None else None, len(judges.vectors) >= queries_needed(PROBED), progress)
    if own is not None:
        trials.attempt(own)
    elif ground.slabs.kind != "int8":  # codes would be no shorter than the vectors
        (try_exact if recall == 1.0 else try_family)(trials, is_uneven(sample()))
    way = way_through(ground, [ground.full])
    flat = Measured(bench.prepare(own or Cascade([Full()])), way, seconds(ground, way, tuners.vectors, k))
    if own is None:
        best = contest(ground, [*trials.tried, flat], tuners.vectors, k)
    elif trials.tried:
        best = contest(ground, trials.tried, tuners.vectors, k)
    elif recall == 1.0:
        best = flat
    else:
        # Only exact search reaches the recall with it. The margins are of use for others.
        candidate = fit_models(ground, flat.candidate, tuners, k)
        best = replace(flat, candidate=candidate, curve=curve(ground, candidate, tuners, k, 0.0))
    last = part_of(progress, trials.steps - 1, trials.steps)
    found: tuple[Candidate | None, Calibration | None] = None, None
    if own is not None or best.way is not flat.way:
        calibration = calibrate(ground, best, judges, k, recall, given, last)
        if recall == 1.0 and best.curve is not None and math.isinf(calibration.margin(PROBED)):
            # On other queries no margin gives what the plan was to find, so that searches would do without it.
            best = fastest([one for one in trials.tried if one.curve is None])
            calibration = calibrate(ground, best, judges, k, recall, given, last)
        found = best.candidate, calibration
    if last is not None:
        last(1, 1)
    return found


@dataclass
class Trials:
    """Cascades that were measured, and what it takes to measure more."""

    bench: Bench
    queries: Queries
    k: int
    recall: float
    memory: int | None
    """Most bytes per row that the stages' columns may take."""
    probing: bool
    """Whether there are queries to calibrate a plan that finds thresholds for exact search."""
    progress: Progress | None
    steps: int = 2
    """That progress is told of: attempts, at most, and one for what comes after."""
    attempts: int = 0
    tried: list[Measured] = field(default_factory=list)

    def attempt(self, cascade: Cascade) -> None:
        ground = self.bench.ground
        candidate = self.bench.prepare(cascade, part_of(self.progress, self.attempts, self.steps))
        self.attempts += 1
        held = sum(column.row_bytes for part in candidate.parts for column in part.columns) + listed_bytes(candidate.parts, ground.store)
        if self.memory is not None and held > self.memory:
            return
        if self.recall == 1.0:
            self.tried += measure_exact(ground, candidate, self.queries, self.k, self.probing)
            return
        limit = min((one.cost.together for one in self.tried), default=math.inf)
        found = measure(ground, candidate, self.queries, self.k, self.recall, limit)
        if found is not None:
            self.tried.append(found)


def try_family(trials: Trials, uneven: bool) -> None:
    """Measure cascades that are likely to be good, the best codes behind inverted lists, and the best of all with longer int8 codes."""
    ground = trials.bench.ground
    cascades = family(ground.slabs.dim, ground.metric, uneven, ground.store.live)
    trials.steps = len(cascades) + len(ROWS_OF_A_LIST) + 3
    for cascade in cascades:
        trials.attempt(cascade)
    try_lists(trials, cascades)
    # Where these are a quarter of the vectors. Of shorter vectors they would be half.
    longest = wider(fastest(trials.tried).candidate.cascade, ground.slabs.dim) if trials.tried and ground.slabs.kind == "float32" else None
    if longest is not None:
        trials.attempt(longest)


def try_lists(trials: Trials, cascades: Sequence[Cascade]) -> None:
    """Measure the best of cascades that begin with codes behind inverted lists, if there is one."""
    ground = trials.bench.ground
    # Lists take long to learn: they are tried with the best codes alone, and where they help with the next longer ones, as few are read.
    coded = [one for one in trials.tried if isinstance(one.candidate.cascade.stages[0], PQ)]
    if not coded or not ground.backend.passes_by:
        return
    codes = contest(ground, coded, trials.queries.vectors, trials.k).candidate.cascade
    for cascade in listed(codes, ground.store.live):
        trials.attempt(cascade)
    lists, after = fastest(trials.tried).candidate.cascade.stages[0], longer(codes, cascades)
    if isinstance(lists, Lists) and after is not None:
        trials.attempt(Cascade([lists, *after.stages]))


def try_exact(trials: Trials, uneven: bool) -> None:
    """Measure bounds that cannot fail, and the best of them behind codes that find thresholds."""
    ground = trials.bench.ground
    bounds = exact_family(ground.slabs.dim, uneven)
    codes = [cascade.stages[0] for cascade in family(ground.slabs.dim, ground.metric, uneven, ground.store.live)]
    codes = [stage for stage in codes if isinstance(stage, PQ) and stage.rotation != "opq"]  # which takes long to learn
    trials.steps = len(bounds) + len(codes) + 1
    for cascade in bounds:
        trials.attempt(cascade)
    if trials.tried:
        best = fastest(trials.tried).candidate.cascade.stages
        for stage in codes:
            trials.attempt(Cascade([stage, *best]))


def contest(ground: Ground, tried: Sequence[Measured], queries: F32, k: int) -> Measured:
    """The fastest. Those that are close take turns once more: times of different minutes may differ by more than cascades do."""
    best = fastest(tried)
    close = [one for one in tried if one.cost.together <= CLOSE * best.cost.together]
    some = np.ascontiguousarray(queries[:: -(-len(queries) // FINAL)])
    costs: list[list[Cost]] = [[] for _ in close]
    for turn in range(1, TURNS + 1):
        if len(close) == 1:
            break
        for one, own in zip(close, costs, strict=True):
            own.append(seconds(ground, one.way, some, k, 1))
        # The least of each: what others took from it comes on top.
        close = [
            replace(one, cost=Cost(min(cost.batch for cost in own), min(cost.alone for cost in own)))
            for one, own in zip(close, costs, strict=True)
        ]
        # The more often they were measured, the closer they must be.
        limit = CLOSE ** (1 / turn) * fastest(close).cost.together
        kept = [number for number, one in enumerate(close) if one.cost.together <= limit]
        close, costs = [close[number] for number in kept], [costs[number] for number in kept]
    return fastest(close)
