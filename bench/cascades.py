"""Cascades at a recall against faiss FastScan with refinement: ``python -m bench.report cascades``. One thread; contenders take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import adaptive_search as asx
from adaptive_search.types import F32, I64

from .data import Collection, matryoshka_like, real
from .promise import shared
from .settings import SETTINGS

K = 10
LONELY = 30
ROUNDS = 5
REFINED = (2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 120)
"""How many times k candidates faiss scores again, at most: the least that reaches the recall is taken."""

Search = Callable[[F32], I64]


class Compared(NamedTuple):
    """Recalls of the plan and the peer; times of each contender relative to the plan's, in a batch and one query at a time."""

    collection: str
    asked: float
    stages: str
    ours: float
    peer: float
    batch: dict[str, float]
    alone: dict[str, float]


def measure() -> Iterator[Compared]:
    import faiss

    faiss.omp_set_num_threads(1)
    sentences = real()
    found = Collection(sentences.rows, np.random.default_rng(0).permutation(sentences.queries))
    made = matryoshka_like(SETTINGS.rows, 768, 2_600)
    for name, (rows, queries), asked in (
        (f"{len(made.rows):,} of 768 dims, clustered", made, 0.99),
        (sentences.name, found, 0.99),
        (sentences.name, found, 0.95),
    ):
        fresh, others = queries[:1_000], queries[1_000:3_000]
        flat = asx.Index(rows.shape[1])
        flat.add(rows)
        truth = flat.search(fresh, K).ids
        index = asx.Index.build(rows, recall=asked, queries=others)
        refined, peer = tuned_peer(faiss, rows, others, flat.search(others, K).ids, asked)
        contenders: dict[str, Search] = {
            "plan": lambda some, index=index: index.search(some, K, threads=1).ids,
            "exact": lambda some, index=index: index.search(some, K, recall=1.0, threads=1).ids,
            "flat": lambda some, flat=flat: flat.search(some, K, threads=1).ids,
            f"faiss, {refined} k refined": peer,
        }
        yield Compared(
            name,
            asked,
            " → ".join(map(repr, index.plan.stages)),
            float(shared(contenders["plan"](fresh), truth).mean()),
            float(shared(peer(fresh), truth).mean()),
            relative(contenders, [fresh]),
            relative(contenders, [fresh[i : i + 1] for i in range(min(LONELY, len(fresh)))]),
        )


def tuned_peer(faiss: Any, rows: F32, queries: F32, truth: I64, asked: float) -> tuple[int, Search]:
    base = faiss.IndexPQFastScan(rows.shape[1], 96, 4, faiss.METRIC_INNER_PRODUCT)
    base.train(rows[:30_000])
    base.add(rows)
    refined = faiss.IndexRefineFlat(base, faiss.swig_ptr(rows))

    def search(some: F32) -> I64:
        ids: I64 = refined.search(some, K)[1]
        return ids

    for factor in REFINED:
        refined.k_factor = factor
        # The index must outlive `search`, and so must the rows that it refers to.
        search.held = (base, refined, rows)  # type: ignore[attr-defined]
        if shared(search(queries), truth).mean() >= asked:
            break
    return factor, search


def relative(contenders: dict[str, Search], batches: list[F32]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, search in contenders.items():
            start = time.perf_counter()
            for batch in batches:
                search(batch)
            times[name].append(time.perf_counter() - start)
    return {name: median(b / a for a, b in zip(times["plan"], times[name], strict=True)) for name in contenders}


def table(results: list[Compared]) -> str:
    """In Markdown."""
    lines = [
        "| vectors | asked | plan | recall | faiss: recall | batch: time of each, plan = 1 | one query |",
        "|---|---:|---|---:|---:|---|---|",
    ]
    for one in results:
        batch, alone = (", ".join(f"{name} {time:.2f}" for name, time in times.items()) for times in (one.batch, one.alone))
        lines.append(f"| {one.collection} | {one.asked:g} | {one.stages} | {one.ours:.4f} | {one.peer:.4f} | {batch} | {alone} |")
    return "\n".join(lines)
