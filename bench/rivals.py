"""Peers at a recall: every setting rescores as few candidates as reach it, and the fastest setting of each library stands for it.

A setting is one function that builds an index and returns a search with a number of candidates to score exactly. Settings are tuned
and timed on queries that measure nothing later.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

import adaptive_search as asx
from adaptive_search.measuring import found_shares
from adaptive_search.types import F32, F64, I64

from .timing import seconds

K = 10
TRAINING = 30_000
"""Rows that faiss learns codebooks from."""
OPQ_ROWS, OPQ_ROUNDS = 10_000, 10
"""OPQ's own 50 rounds on all of them take minutes on one thread."""
CANDIDATES = (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 100, 120, 150, 200, 250, 300, 400, 600, 800, 1200)
"""Numbers of rows to score exactly that are tried."""
LISTS = 256
"""Inverted lists of peers that have them."""
PROBES = (8, 16, 32, 64, 128)
LONELY = 30

Search = Callable[[F32], I64]
Refined = Callable[[F32, int], I64]
"""``search(queries, candidates)`` gives row numbers (Q, K), best first."""


@dataclass(frozen=True)
class Setting:
    """A way to use a peer. ``make(rows)`` builds it; ImportError says that the peer is not installed, ValueError that this cannot be."""

    library: str
    name: str
    make: Callable[[F32], Refined]


@dataclass(frozen=True)
class Tuned:
    """A setting with its number of candidates, and seconds per query in a quick trial, in a batch and alone."""

    setting: Setting
    candidates: int
    search: Search
    batch: float
    alone: float

    @property
    def name(self) -> str:
        return f"{self.setting.library} {self.setting.name}, {self.candidates} rescored"


@dataclass
class Best:
    """The fastest settings, at most two of a library, and what was left out and why."""

    batch: dict[str, Tuned] = field(default_factory=dict)
    alone: dict[str, Tuned] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def all(self) -> list[Tuned]:
        return list({one.name: one for one in chain(self.batch.values(), self.alone.values())}.values())


def best(settings: Iterable[Setting], rows: F32, queries: F32, truth: I64, asked: float) -> Best:
    """Every library's fastest, in a batch and alone. Only indexes that lead are kept in memory."""
    found = Best()
    absent: set[str] = set()
    for setting in settings:
        if setting.library in absent:
            continue
        try:
            one = tuned(setting, rows, queries, truth, asked)
        except ImportError:
            absent.add(setting.library)
            found.notes.append(f"{setting.library} is not installed")
            continue
        except (ValueError, RuntimeError) as error:
            found.notes.append(f"{setting.library} {setting.name}: {' '.join(str(error).split())[-120:]}")
            continue
        if one is None:
            found.notes.append(f"{setting.library} {setting.name} does not reach {asked:g} with {CANDIDATES[-1]} candidates")
            continue
        print(f"{one.name}: {1e6 * one.batch:,.0f} µs in a batch, {1e6 * one.alone:,.0f} µs alone", file=sys.stderr, flush=True)
        for way in ("batch", "alone"):
            leaders: dict[str, Tuned] = getattr(found, way)
            leader = leaders.get(setting.library)
            if leader is None or getattr(one, way) < getattr(leader, way):
                leaders[setting.library] = one
    return found


def tuned(setting: Setting, rows: F32, queries: F32, truth: I64, asked: float) -> Tuned | None:
    """With the least candidates that reach the recall; None if none do."""
    refined = setting.make(rows)
    choices = [count for count in CANDIDATES if count <= len(rows)]

    def reaches(candidates: int) -> bool:
        return bool(recall(refined(queries, candidates), truth).mean() >= asked)

    place = bisect_left(choices, True, key=reaches)
    if place == len(choices):
        return None

    def search(some: F32) -> I64:
        return refined(some, choices[place])

    lonely = [queries[number : number + 1] for number in range(min(LONELY, len(queries)))]
    return Tuned(setting, choices[place], search, *(min(seconds(search, some) for _ in range(3)) for some in ([queries], lonely)))


def recall(found: I64, truth: I64) -> F64:
    """Of every query."""
    return found_shares(found, truth, (found.shape[1],))[:, 0]


def settings(dim: int) -> Iterator[Setting]:
    """All that are tried, for unit vectors of so many dims."""
    yield faiss_setting("PQ96x4fs")
    yield faiss_setting("PQ64x4fs")
    for dims, subspaces in ((128, 64), (192, 96), (256, 128)):
        if dims < dim:
            yield faiss_setting(f"PCA{dims},PQ{subspaces}x4fs")
    turned = f"OPQ64_{min(256, dim)}"
    yield faiss_setting(f"{turned},PQ64x4fs")
    for factory in (f"IVF{LISTS},PQ64x4fs", f"{turned},IVF{LISTS},PQ64x4fs"):
        built: dict[int, Any] = {}
        for probes in PROBES:
            yield faiss_setting(factory, probes, built)
    for dims in (4, 8):
        yield scann_setting(dims)
    for probes in PROBES:
        yield scann_setting(8, probes)
    for dims in dict.fromkeys((dim, min(256, dim))):
        for bits in (2, 4):
            yield turbovec_setting(bits, dims)


def spread(rows: F32, count: int) -> F32:
    """About so many of the rows, from all of them."""
    return np.ascontiguousarray(rows[:: max(1, len(rows) // count)])


def faiss_setting(factory: str, probes: int = 0, built: dict[int, Any] | None = None) -> Setting:
    """An index that `faiss.index_factory` makes, with the vectors to refine what it finds; ``probes`` are lists to look at, if it has some.
    ``built`` remembers what was made of the same rows."""
    known = {} if built is None else built

    def make(rows: F32) -> Refined:
        import faiss

        faiss.omp_set_num_threads(1)
        base = known.get(id(rows))
        if base is None:
            base = known[id(rows)] = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if factory.startswith("OPQ"):
                rotation = faiss.downcast_VectorTransform(base.chain.at(0))
                rotation.max_train_points, rotation.niter = OPQ_ROWS, OPQ_ROUNDS
            base.train(spread(rows, TRAINING))
            base.add(rows)
        index = faiss.IndexRefineFlat(base, faiss.swig_ptr(rows))

        def search(queries: F32, candidates: int) -> I64:
            index.k_factor = candidates / K
            if probes:
                faiss.extract_index_ivf(base).nprobe = probes
            ids: I64 = index.search(queries, K)[1]
            return ids

        # What the index refers to must outlive it.
        search.held = (base, rows)  # type: ignore[attr-defined]
        return search

    return Setting("faiss IVF", f"{factory} + RFlat, {probes} probes", make) if probes else Setting("faiss", f"{factory} + RFlat", make)


def scann_setting(dims: int, probes: int = 0) -> Setting:
    """Anisotropic 4-bit codes of blocks of so many dims, and reordering; ``probes``: of so many of `LISTS` leaves of a tree."""

    def make(rows: F32) -> Refined:
        from . import peers

        def configure(builder: Any) -> Any:
            if probes:
                builder = builder.tree(num_leaves=LISTS, num_leaves_to_search=probes, training_sample_size=TRAINING)
            return builder.score_ah(dims, anisotropic_quantization_threshold=0.2).reorder(CANDIDATES[-1])

        searcher = peers.scann_searcher(rows, configure)

        def search(queries: F32, candidates: int) -> I64:
            if len(queries) == 1:
                return np.asarray(searcher.search(queries[0], K, candidates)[0]).astype(np.int64)[None]
            return np.asarray(searcher.search_batched(queries, K, candidates)[0]).astype(np.int64)

        return search

    name = f"AH of {dims} dims + reorder"
    return Setting("scann tree", f"{name}, {probes} leaves", make) if probes else Setting("scann", name, make)


def turbovec_setting(bits: int, dims: int) -> Setting:
    """Codes of the first dims; turbovec has no rescoring, so candidates are scored by this library's."""

    def make(rows: F32) -> Refined:
        from . import peers

        index = peers.turbovec_index(np.ascontiguousarray(rows[:, :dims]), bits)

        def search(queries: F32, candidates: int) -> I64:
            ids = np.asarray(index.search(np.ascontiguousarray(queries[:, :dims]), candidates)[1]).astype(np.int64)
            return asx.rescore(queries, rows, ids, K, threads=1).ids

        return search

    return Setting("turbovec", f"{bits} bits x {dims} + our rescoring", make)
