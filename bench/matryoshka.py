"""A plan against flat search on long float16 vectors whose first dims tell most: ``python -m bench.report matryoshka [rows]``. One thread.

The vectors are made in blocks, for the index with the plan, and again for one without when the plan is chosen: 5 GB of codes are held while
cascades are compared, and 5.2 GB for each index. No float32 copy of all is made; faiss searches one of a part of the rows, and its time
is scaled to all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import adaptive_search as asx
from adaptive_search.types import F32, Array

from .data import Clusters
from .rivals import K, Search, recall
from .settings import SETTINGS
from .timing import Times, relative, timed

PART = 8
"""faiss searches one of so many rows."""


@dataclass(frozen=True)
class Sizes:
    """Rows and dims; queries that tune and calibrate, that measure recall, that are timed in a batch and alone; rounds."""

    rows: int = SETTINGS.huge
    dim: int = SETTINGS.wide
    given: int = 1000
    fresh: int = 400
    batch: int = 100
    alone: int = 10
    rounds: int = 5


@dataclass(frozen=True)
class Measured:
    """What took how long, relative to the plan; faiss is None where it is not installed."""

    sizes: Sizes
    stages: str
    asked: float
    recall: float
    exact: bool
    add: float
    tune: float
    bytes_per_row: int
    batch: dict[str, Times]
    alone: dict[str, Times]
    faiss: tuple[float, float] | None


def measure(sizes: Sizes | None = None, asked: float = 0.99) -> Measured:
    """Make the vectors, tune, measure."""
    of = sizes or Sizes()
    queries, blocks = made(of)
    fresh, given = queries[: of.fresh], queries[of.fresh :]
    index = asx.Index(of.dim, dtype="float16")
    add = sum(timed(lambda block=block: index.add(block)) for block in blocks)  # type: ignore[misc]
    print(f"{of.rows:,} rows added in {add:,.1f} s", file=sys.stderr, flush=True)
    tune = timed(lambda: index.tune(given, k=K, recall=asked))
    plan = index.plan
    print(f"tuned in {tune:,.0f} s: {plan.stages}", file=sys.stderr, flush=True)

    flat = asx.Index(of.dim, dtype="float16")
    part: list[np.ndarray] = []
    for block in made(of)[1]:
        flat.add(block)
        if sum(map(len, part)) * PART < of.rows:
            part.append(block)
    contenders: dict[str, Search] = {
        "plan": lambda some: index.search(some, K, threads=1).ids,
        "recall=1.0": lambda some: index.search(some, K, recall=1.0, threads=1).ids,
        "our flat search": lambda some: flat.search(some, K, threads=1).ids,
    }
    truth = contenders["our flat search"](fresh)
    found = float(recall(contenders["plan"](fresh), truth).mean())
    exact = np.array_equal(contenders["recall=1.0"](fresh), truth)
    together = [fresh[: of.batch]]
    one_by_one = [fresh[number : number + 1] for number in range(of.alone)]
    return Measured(
        of,
        " → ".join(map(repr, plan.stages)),
        asked,
        found,
        exact,
        add,
        tune,
        plan.bytes_per_row,
        relative(contenders, together, of.rounds),
        relative(contenders, one_by_one, of.rounds),
        faiss_seconds(np.concatenate(part).astype(np.float32), of.rows, together, one_by_one),
    )


def made(of: Sizes) -> tuple[F32, Iterator[Array]]:
    """Queries, and the rows in blocks: the same every time."""
    source = Clusters(of.dim)
    queries = source.draw(of.given + of.fresh)
    return queries, (block.astype(np.float16) for block in source.blocks(of.rows))


def faiss_seconds(part: F32, rows: int, *batches: list[F32]) -> tuple[float, float] | None:
    """Seconds per query of flat float32 search, by the faster of its two paths, scaled from some rows to all."""
    try:
        from . import peers
    except ImportError:
        return None
    with peers.limited_threads(1):
        found = [
            min(
                timed(lambda path=path, some=some: [path(one, K) for one in some])
                for path in peers.faiss_flat(part).values()
                for _ in range(2)
            )  # type: ignore[misc]
            / sum(map(len, some))
            for some in batches
        ]
    return found[0] * rows / len(part), found[1] * rows / len(part)


def table(one: Measured) -> str:
    """In Markdown."""
    of = one.sizes
    plan = one.batch["plan"].seconds, one.alone["plan"].seconds
    rows = [(name, one.batch[name].seconds, one.batch[name].ratio, one.alone[name].seconds, one.alone[name].ratio) for name in one.batch]
    if one.faiss:
        rows.append(
            (f"faiss flat float32, from 1/{PART} of the rows", one.faiss[0], one.faiss[0] / plan[0], one.faiss[1], one.faiss[1] / plan[1])
        )
    return "\n".join(
        [
            f"{of.rows:,} x {of.dim} float16; plan for {one.asked:g}: {one.stages};",
            f"recall@{K} of {of.fresh:,} fresh queries {one.recall:.4f};",
            f"ids of recall=1.0 {'equal' if one.exact else 'DIFFER FROM'} those of the flat search;",
            f"added in {one.add:,.1f} s, tuned in {one.tune:,.0f} s;",
            f"{one.bytes_per_row:,} bytes a row.",
            "",
            f"| | batch of {of.batch}: ms a query | times as long as the plan | one query: ms | times as long |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {name} | {1e3 * batch:,.2f} | {times:.1f} | {1e3 * alone:,.2f} | {longer:.1f} |"
                for name, batch, times, alone, longer in rows
            ),
            *([] if one.faiss else ["", "faiss is not installed."]),
        ]
    )
