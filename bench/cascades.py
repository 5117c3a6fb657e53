"""Cascades at a recall against peers at the same recall: ``python -m bench.report cascades``. One thread; contenders take turns.
``cascades sentences``, ``cascades clustered`` and ``cascades noise`` are parts of it.

And exact search by bounds where no bound helps, on noise: what it costs at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import adaptive_search as asx

from . import rivals
from .data import Collection, matryoshka_like, noise, real
from .rivals import LONELY, K, Search, Setting, recall
from .settings import SETTINGS
from .timing import Times, relative

FRESH = 1_000
"""Queries that measure; as many others tune peers, and twice as many tune and calibrate our plan."""
NOISE_QUERIES = 100
NOISE_ROUNDS = 15


class Line(NamedTuple):
    """One contender; ``fastest`` says where a peer's setting was the fastest of its library in the trial."""

    name: str
    recall: float
    batch: Times
    alone: Times
    fastest: str = ""


class Compared(NamedTuple):
    """The plan first, then everybody else."""

    collection: str
    asked: float
    lines: list[Line]
    notes: list[str]


class Case(NamedTuple):
    """What is searched, at which recall."""

    name: str
    collection: Collection
    asked: float


def cases(part: str = "") -> Iterator[Case]:
    """Those in whose names the part is."""
    name = f"{SETTINGS.rows:,} x 768, clustered"
    if part in name:
        yield Case(name, matryoshka_like(SETTINGS.rows, 768, 3 * FRESH), 0.99)
    sentences = real()
    if part not in sentences.name:
        return
    found = Collection(sentences.rows, np.random.default_rng(0).permutation(sentences.queries))
    for asked in (0.99, 0.95):
        yield Case(f"{sentences.name} x {found.rows.shape[1]}", found, asked)


def measure(of: Iterator[Case] | None = None, settings: Callable[[int], Iterator[Setting]] = rivals.settings) -> Iterator[Compared]:
    """One entry for every case."""
    for name, (rows, queries), asked in of or cases():
        count = min(FRESH, len(queries) // 3)
        fresh, others = queries[:count], queries[count : 3 * count]
        flat = asx.Index(rows.shape[1])
        flat.add(rows)
        truth = flat.search(fresh, K, threads=1).ids
        index = asx.Index.build(rows, recall=asked, queries=others)
        best = rivals.best(settings(rows.shape[1]), rows, others[:count], flat.search(others[:count], K, threads=1).ids, asked)
        contenders: dict[str, Search] = {
            "plan: " + " → ".join(map(repr, index.plan.stages)): lambda some, index=index: index.search(some, K, threads=1).ids,
            "recall=1.0": lambda some, index=index: index.search(some, K, recall=1.0, threads=1).ids,
            "our flat search": lambda some, flat=flat: flat.search(some, K, threads=1).ids,
            **{one.name: one.search for one in best.all()},
        }
        batch = relative(contenders, [fresh])
        alone = relative(contenders, [fresh[number : number + 1] for number in range(min(LONELY, count))])
        ways = [("batch", best.batch), ("one query", best.alone)]
        lines = [
            Line(
                each,
                float(recall(search(fresh), truth).mean()),
                batch[each],
                alone[each],
                ", ".join(way for way, leaders in ways if each in {one.name for one in leaders.values()}),
            )
            for each, search in contenders.items()
        ]
        yield Compared(name, asked, lines, best.notes)


class Bounds(NamedTuple):
    """Exact search by bounds relative to a flat search, for an index tuned for some recall."""

    collection: str
    tuned: float
    stages: str
    equal: bool
    batch: Times
    alone: Times


def on_noise(rows: int = SETTINGS.rows, dim: int = 768, asked: Sequence[float] = (1.0, 0.99)) -> Iterator[Bounds]:
    """Where every row is about as near as every other."""
    made = noise(rows, dim, 4 * NOISE_QUERIES)
    fresh, others = made.queries[:NOISE_QUERIES], made.queries[NOISE_QUERIES:]
    flat = asx.Index(dim)
    flat.add(made.rows)
    for tuned in asked:
        index = asx.Index.build(made.rows, recall=tuned, queries=others)
        contenders: dict[str, Search] = {
            "flat": lambda some: flat.search(some, K, threads=1).ids,
            "exact": lambda some, index=index: index.search(some, K, recall=1.0, threads=1).ids,
        }
        equal = np.array_equal(contenders["exact"](fresh), contenders["flat"](fresh))
        batch = relative(contenders, [fresh], NOISE_ROUNDS)["exact"]
        alone = relative(contenders, [fresh[number : number + 1] for number in range(10)], NOISE_ROUNDS)["exact"]
        yield Bounds(f"{rows:,} x {dim}, noise", tuned, " → ".join(map(repr, index.plan.stages)), equal, batch, alone)


def table(results: Sequence[Compared]) -> str:
    """In Markdown; what was left out below."""
    lines = [
        "| vectors | recall@10 asked | contender | recall@10 | fastest of its library | batch: µs | plan = 1 | alone: µs | plan = 1 |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    notes: dict[str, None] = {}
    for one in results:
        for number, line in enumerate(one.lines):
            head = f"| {one.collection} | {one.asked:g} |" if number == 0 else "| | |"
            times = " | ".join(f"{1e6 * each.seconds:,.0f} | {each.ratio:.2f}" for each in (line.batch, line.alone))
            lines.append(f"{head} {line.name} | {line.recall:.4f} | {line.fastest} | {times} |")
        notes |= dict.fromkeys(note if "not installed" in note else f"{one.collection}: {note}" for note in one.notes)
    if notes:
        lines += ["", "Left out: " + "; ".join(notes) + "."]
    return "\n".join(lines)


def noise_table(results: Sequence[Bounds]) -> str:
    """In Markdown."""
    lines = [
        "| vectors | tuned for | stages | ids equal those of a flat search | `recall=1.0`, batch: time, flat = 1 (rounds) | one query |",
        "|---|---:|---|---|---:|---:|",
    ]
    for one in results:
        batch, alone = (f"{each.ratio:.3f} ({each.low:.2f} to {each.high:.2f})" for each in (one.batch, one.alone))
        lines.append(f"| {one.collection} | {one.tuned:g} | {one.stages} | {'yes' if one.equal else '**no**'} | {batch} | {alone} |")
    return "\n".join(lines)
