"""Learning a plan: which cascade, which margins, and what recall they give.

Tuning queries fit the models of errors, fix the grid of margins and choose the cascade; calibration queries, which have chosen
nothing, then measure the one that was chosen (see `calibration`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from . import fitting
from .arrays import ranges
from .backends.protocol import Backend
from .calibration import Calibration, never_rising, queries_needed
from .cascade import OPENINGS, Cascade, Opening, PreparedStage, run, run_exact
from .execution import Progress
from .layout import Slabs
from .margins import ErrorModel
from .representations import PQ, Binary, Full, Int8, Representation, Stage
from .rotations import principal_directions
from .rows import Chunk, RowStore
from .types import F32, F64, I64, Array, Metric
from .vectors import read_vectors

LONELY = 12
"""Queries that are timed one at a time."""

TUNING_QUERIES = 256
"""Queries that models are fitted to and cascades are compared with, at most."""

CALIBRATION_QUERIES = 2_000
"""Queries that recall is measured with, at most, if it needs no more: the interval of the mean is then below a percent wide."""

PAIRS = 1 << 24
"""Most pairs of a found and a true row that are compared at a time, a byte each."""

OWN_QUERIES = 512
"""Stored rows that stand for queries when there are none."""

FIT_CANDIDATES = 128
"""Rows per query that models are fitted to, at most: the best of the first stage."""

COARSE = (-8.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 11.0, 15.0)
"""Margins that are tried first, in deviations."""

LOSSES = (0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.012, 0.009, 0.006, 0.004, 0.0025, 0.0015, 0.0008, 0.0004)
"""What the margins of the grid lose on the tuning queries, about."""

NEAR = (1.2, 1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""More of them, as parts of what may be lost."""

SPECTRUM_ROWS = 4_096
"""Rows that tell whether dims are alike."""

MOST_ROTATED = 4_096
"""Dims of vectors whose principal directions are learned without being asked for: beyond, that takes minutes."""

MOST_TURNED = 1_024
"""Dims of vectors up to which an OPQ rotation is learned without being asked for, in a minute or two."""

WEIGHT = 4.0
"""Of errors along a row in codes that are chosen without being asked for: the best of 1 to 16 on tuning queries of sentence embeddings."""

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


class Bench:
    """Learns stages and keeps what several cascades share."""

    def __init__(self, ground: Ground, sample: Callable[[], F32]) -> None:
        self.ground = ground
        self._sample = sample
        self._learned: dict[tuple[str, int], tuple[Representation, list[dict[str, Array]]]] = {}

    def prepare(self, cascade: Cascade, progress: Progress | None = None) -> Candidate:
        """Learn the stages, encode all rows, and fit nothing yet."""
        ground = self.ground
        parts, stages, stores = [], [], []
        merged: list[dict[str, Array]] = [{} for _ in ground.store.chunks]
        keys = [self._key(stage) for stage in cascade.stages]
        for number, stage in enumerate(cascade.stages):
            # A stage that is there twice has columns of its own each time.
            key = keys[number], keys[:number].count(keys[number])
            if key not in self._learned:
                part = stage.bind(ground.slabs, ground.metric, f"tuning.{len(self._learned)}")
                if not part.fitted:
                    part = part.fit(self._sample())
                extents = [(chunk, chunk.rows) for chunk in ground.store.chunks]
                self._learned[key] = (part, fitting.encode_all(ground.slabs, [part], extents, progress))
            part, arrays = self._learned[key]
            columns = {column.name: column for column in part.columns if arrays and column.name in arrays[0]}
            store = cast(RowStore, _Overlay(ground.store, arrays, dict(columns)))
            rows = part.rows(ground.backend, store)
            adaptive = stage.shortlist is None and number < len(cascade.stages) - 1
            model = ErrorModel(0.0, 1.0, 1.0) if adaptive else None
            stages.append(PreparedStage(part, rows, stage.shortlist, model))
            parts.append(part)
            stores.append(store)
            for chunk, new in zip(merged, arrays, strict=True):
                chunk |= new
        return Candidate(cascade, tuple(parts), tuple(merged), tuple(stages), tuple(stores))

    def _key(self, stage: Stage) -> str:
        spec = {name: value for name, value in stage.spec().items() if name != "keep"}
        return repr(sorted(spec.items()))


def fit_models(ground: Ground, candidate: Candidate, queries: Queries, k: int) -> Candidate:
    """The candidate with models of its adaptive stages' errors, fitted to the best rows of its first stage."""
    if not candidate.adaptive:
        return candidate
    stages = list(candidate.stages)
    head = stages[0]
    width = min(ground.store.live, max(FIT_CANDIDATES, 4 * k))
    counts = np.full(len(queries.vectors), ground.store.live)
    alone = replace(head, shortlist=None, model=None)
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
    alone takes as long as the ``limit``."""
    if not candidate.adaptive:
        return Measured(candidate, None, seconds(ground, candidate.stages, queries.vectors, k))
    alone = replace(candidate.stages[0], shortlist=None, model=None)
    if seconds(ground, [alone], queries.vectors, k).together >= limit:
        return None
    fitted = fit_models(ground, candidate, queries, k)
    found = curve(ground, fitted, queries, k, SAFETY * (1.0 - recall) / 4.0)
    margin = found.at(SAFETY * (1.0 - recall))
    if math.isinf(margin):
        return None
    stages = fitted.at(margin)
    costs = {opening: seconds(ground, stages, queries.vectors, k, opening) for opening in OPENINGS}
    opening = min(costs, key=lambda opening: costs[opening].together)
    return Measured(replace(fitted, opening=opening), found, costs[opening])


def seconds(ground: Ground, stages: Sequence[PreparedStage], queries: F32, k: int, opening: Opening = OPENINGS[0]) -> Cost:
    """Time per query of a batch, and of queries one at a time."""

    def search(some: F32) -> None:
        counts = np.full(len(some), ground.store.live)
        run(ground.backend, stages, some, min(k, ground.store.live), ground.store.alive, counts, opening=opening)

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
        half = len(own.truth) // 2 if recall < 1.0 else 0
        return own.part(slice(half, None)), own.part(slice(0, half))
    if recall == 1.0:
        if not len(given):
            raise ValueError("queries: expected at least one, got none")
        some = ground.queries(given[:TUNING_QUERIES], k, None)
        return some, some.part(slice(0, 0))
    tuning, judging = split(len(given), recall)
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
    progress: Progress | None,
) -> tuple[Candidate | None, Calibration | None]:
    """The cheapest cascade and its calibration; None if that is a scan of all vectors.

    Parameters
    ----------
    own : Cascade or None
        What the user wants; None leaves the choice.
    memory : int or None
        Most bytes per row that the stages' columns may take.
    """
    bench = Bench(ground, sample)
    whole = ground.slabs.kind == "int8"  # codes would be no shorter than the vectors
    dim, metric = ground.slabs.dim, ground.metric
    if own is not None:
        cascades = [own]
    elif whole:
        cascades = []
    else:
        cascades = exact_family(dim, metric) if recall == 1.0 else family(dim, metric, is_uneven(sample()))
    flat = seconds(ground, [ground.full], tuners.vectors, k)
    best: Measured | None = None
    for number, cascade in enumerate(cascades):
        candidate = bench.prepare(cascade)
        held = sum(column.row_bytes for part in candidate.parts for column in part.columns)
        if own is not None or memory is None or held <= memory:
            limit = math.inf if best is None else best.cost.together
            one = measure_exact(ground, candidate, tuners, k) if recall == 1.0 else measure(ground, candidate, tuners, k, recall, limit)
            if one is not None and (best is None or one.cost.together < best.cost.together):
                best = one
        if progress is not None:
            progress(number + 1, len(cascades) + 1)
    if own is not None and best is None:
        # Only exact search reaches the recall with it. The margins are of use for others.
        candidate = fit_models(ground, bench.prepare(own), tuners, k)
        best = Measured(candidate, curve(ground, candidate, tuners, k, 0.0), flat)
    if best is None or (own is None and best.cost.together >= flat.together):
        return None, None
    return best.candidate, calibrate(ground, best, judges, k, recall, given, progress)


def measure_exact(ground: Ground, candidate: Candidate, queries: Queries, k: int) -> Measured:
    """Time per query of exact search by the candidate's bounds, if it has some."""
    bounds = [stage.representation.bounded(ground.backend, store) for stage, store in zip(candidate.stages, candidate.stores, strict=True)]
    useful = [bound for bound in bounds if bound is not None]
    if not useful:
        return Measured(candidate, None, seconds(ground, [ground.full], queries.vectors, k))

    def search(some: F32, opening: Opening) -> None:
        counts, wanted = np.full(len(some), ground.store.live), min(k, ground.store.live)
        run_exact(ground.backend, candidate.stages[0], useful, ground.full, some, wanted, ground.store.alive, counts, opening=opening)

    # Longer lists end no search: bounds are looked at for all rows in any case.
    tried = [opening for opening in OPENINGS if opening.spare == Opening().spare]
    costs = {opening: cost(lambda some, opening=opening: search(some, opening), queries.vectors) for opening in tried}  # type: ignore[misc]
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


def family(dim: int, metric: Metric, uneven: bool) -> list[Cascade]:
    """Cascades worth trying for rows of some kind.

    Parameters
    ----------
    uneven : bool
        Whether the first dims tell nearly as much as the same number of principal directions, as those of Matryoshka embeddings do.
    """
    found: list[list[Stage]] = []
    bounded = metric != "l2"
    widths = [dims for dims in (64, 128, 192, 256) if dims <= 0.75 * dim]
    # Few dims of an even kind tell little: what scores the survivors then takes all of them.
    middle = min(256, dim) if uneven else dim
    if dim >= 96:
        rotation: Literal["pca"] | None = None if uneven else "pca"
        found += [[Int8(dims, rotation=rotation), Int8(middle, bounded=bounded), Full()] for dims in widths if dims < middle]
        # Half a byte for every pair of dims: few bytes to read for a single query.
        found += [[PQ(dims // 2, 4, dims=dims, rotation=rotation), Int8(middle, bounded=bounded), Full()] for dims in widths[:3]]
        if metric != "l2" and not uneven and dim <= MOST_TURNED:
            # The same bytes keep more of what inner products need, for longer learning.
            found += [
                [PQ(size, 4, rotation="opq", anisotropy=WEIGHT), Int8(bounded=bounded), Full()] for size in (64, 96) if 2 * size <= dim
            ]
        if metric == "cosine":
            found.append([Binary(), Int8(bounded=bounded), Full()])
    if dim > 256 and uneven:
        found.append([Int8(middle, bounded=bounded), Full()])
    if dim >= 16:
        found.append([Int8(bounded=bounded), Full()])
    return [Cascade(stages) for stages in found]


def is_uneven(sample: F32) -> bool:
    """Whether the first dims of rows hold nearly as much as their principal directions do."""
    dims = min(128, sample.shape[1] // 2)
    if not dims or not len(sample) or sample.shape[1] > MOST_ROTATED:
        return True
    some = sample[:: -(-len(sample) // SPECTRUM_ROWS)]
    held = np.square(some[:, :dims], dtype=np.float64).sum()
    return bool(held >= 0.85 * np.square(some @ principal_directions(some, dims).T, dtype=np.float64).sum())


def exact_family(dim: int, metric: Metric) -> list[Cascade]:
    """Cascades with bounds that cannot fail."""
    if metric == "l2" or dim < 16:
        return []
    widths = [dims for dims in (256, dim) if dims <= dim]
    return [Cascade([Int8(dims, bounded=True), Full()]) for dims in dict.fromkeys(widths)]
