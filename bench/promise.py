"""Recall delivered against recall asked for: ``python -m bench.report promise``.

Every row of the table is about some plans for one recall, each tuned and calibrated on a draw of queries of its own. Fresh queries, which
no plan has seen, measure by id what is delivered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

import adaptive_search as asx
from adaptive_search.types import F32, I64

from .data import Collection, matryoshka_like, real
from .settings import SETTINGS

ASKED = (0.8, 0.9, 0.95, 0.99)
K = 10
DRAWN = 1_000
"""Queries that tune and calibrate a plan."""

FRESH = 1_000
DRAWS = 3
ROUNDS = 3


class Delivered(NamedTuple):
    """What the plans for one recall did. ``speed`` is the ratio to flat search, in a batch of all fresh queries."""

    collection: str
    asked: float
    recalls: tuple[float, ...]
    error: float
    """Standard error of a single plan's measured recall."""
    certified: bool
    stages: str
    speed: float


def collections() -> Iterator[tuple[str, Collection]]:
    """Names and vectors; queries in random order."""
    found = real()
    yield found.name, Collection(found.rows, np.random.default_rng(0).permutation(found.queries))
    rows, queries = (100_000, 5_000) if SETTINGS.name == "full" else (6_000, 600)
    yield f"{rows:,} clustered vectors of 768 dims", matryoshka_like(rows, 768, queries)
    random = np.random.default_rng(1)
    alike = (random.standard_normal((count, 128), np.float32) for count in (rows, queries))
    yield f"{rows:,} vectors of 128 dims, all of them noise", Collection(*alike)


def measure(asked: Sequence[float] = ASKED, draws: int = DRAWS) -> Iterator[Delivered]:
    """One entry for every collection and recall, on one thread."""
    for name, (rows, queries) in collections():
        count = min(FRESH, len(queries) // 3)
        fresh, others = queries[:count], queries[count:]
        flat, index = (asx.Index(rows.shape[1]) for _ in range(2))
        for each in (flat, index):
            each.add(rows)
        truth = flat.search(fresh, K).ids
        for recall in asked:
            losses, ratios = [], []
            for draw in range(draws):
                chosen = np.random.default_rng(draw).choice(len(others), min(DRAWN, len(others)), replace=False)
                plan = index.tune(others[chosen], k=K, recall=recall)
                losses.append(1 - shared(index.search(fresh, K, threads=1).ids, truth))
                ratios.append(median(seconds(flat, fresh) / seconds(index, fresh) for _ in range(ROUNDS)))
            yield Delivered(
                name,
                recall,
                tuple(1 - float(lost.mean()) for lost in losses),
                float(np.mean([lost.std() for lost in losses])) / count**0.5,
                plan.certified,
                " → ".join(map(repr, plan.stages)),
                median(ratios),
            )


def shared(found: I64, truth: I64) -> F32:
    """Recall of every query."""
    hits: F32 = (found[:, :, None] == truth[:, None, :]).any(axis=1).mean(axis=1, dtype=np.float32)
    return hits


def seconds(index: asx.Index, queries: F32) -> float:
    start = time.perf_counter()
    index.search(queries, K, threads=1)
    return time.perf_counter() - start


def table(results: Sequence[Delivered]) -> str:
    """In Markdown."""
    lines = [
        f"| collection | recall@{K} asked | delivered | each plan | standard error | certified | last plan | speed, flat = 1 |",
        "|---|---:|---:|---|---:|---|---|---:|",
    ]
    before = ""
    for one in results:
        name = "" if one.collection == before else one.collection
        before = one.collection
        plans = " / ".join(f"{recall:.4f}" for recall in one.recalls)
        certified = "yes" if one.certified else "exact" if one.stages == "Full()" else "no"
        means = f"{one.asked:g} | {fmean(one.recalls):.4f} | {plans} | {one.error:.4f}"
        lines.append(f"| {name} | {means} | {certified} | {one.stages} | {one.speed:.2f} |")
    return "\n".join(lines)
