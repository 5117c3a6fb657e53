"""Recall delivered against recall asked for: ``python -m bench.report promise``.

Every row of the table is about some plans for one recall, each tuned and calibrated on a draw of queries of its own. Fresh queries, which
no plan has seen, measure by id what is delivered. The promise is about the mean over draws: a single plan may lie a little below.

The first draw chooses the cascade among all; the others fit and calibrate that one again. Choosing takes most of the time (every
cascade of the family is learned, encoded and timed: 15 to 40 s), and what is promised is promised for a cascade that others chose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

import adaptive_search as asx
from adaptive_search.plan import Plan
from adaptive_search.types import F64

from .data import Collection, matryoshka_like, noise, real
from .rivals import K, Search, recall
from .settings import SETTINGS
from .timing import seconds

ROUNDS = 3
Z95 = 1.96


@dataclass(frozen=True)
class Sizes:
    """How much is measured: recalls, plans for each, queries that each is made from, fresh queries, those of them that are timed, rows
    (None: all sentences), dims."""

    asked: tuple[float, ...]
    draws: int
    drawn: int
    fresh: int
    timed: int
    sentences: int | None
    rows: int
    clustered: int
    noise: int


FULL = Sizes((0.8, 0.9, 0.95, 0.99), 4, 1000, 2000, 300, None, 50_000, 384, 128)
QUICK = Sizes((0.8, 0.95), 2, 120, 100, 100, 4_500, 4_500, 96, 32)


class Drawn(NamedTuple):
    """One plan and what it did: recall of every fresh query, rows of the last stage scored for each, and times per query in a batch."""

    plan: Plan
    recalls: F64
    last: float
    seconds: float
    flat: float


@dataclass(frozen=True)
class Delivered:
    """The plans for one recall."""

    collection: str
    asked: float
    plans: Sequence[Drawn]

    @property
    def recalls(self) -> list[float]:
        """Of each plan."""
        return [float(one.recalls.mean()) for one in self.plans]

    @property
    def half(self) -> float:
        """Half the 95% interval of the mean recall: over fresh queries, which all plans share, and over draws of plans."""
        table: F64 = np.array([one.recalls for one in self.plans])
        queries = table.mean(axis=0).std(ddof=1) ** 2 / table.shape[1]
        draws = table.mean(axis=1).std(ddof=1) ** 2 / len(table) if len(table) > 1 else 0.0
        return float(Z95 * np.sqrt(queries + draws))

    def cells(self) -> list[str]:
        """The row of the table, without the name of the collection."""
        plans = [one.plan for one in self.plans]
        low, high = (fmean((plan.interval or (np.nan, np.nan))[end] for plan in plans) for end in (0, 1))
        exact = sum(plan.stages == (asx.Full(),) for plan in plans)
        certified = f"{sum(plan.certified for plan in plans)} of {len(plans)}" + (f", {exact} exact" if exact else "")
        stages = Counter(" → ".join(map(repr, plan.stages)) for plan in plans)
        own, flat = (1e6 * median(times) for times in zip(*((one.seconds, one.flat) for one in self.plans), strict=True))
        return [
            f"{self.asked:g}",
            f"{fmean(self.recalls):.4f} ± {self.half:.4f}",
            " / ".join(f"{each:.4f}" for each in self.recalls),
            f"{low:.4f} to {high:.4f}",
            certified,
            "; ".join(f"{name} ({count})" if len(stages) > 1 else name for name, count in stages.most_common()),
            f"{fmean(one.last for one in self.plans):,.0f}",
            f"{own:,.0f} / {flat:,.0f}",
            f"{median(one.flat / one.seconds for one in self.plans):.2f}",
        ]


def sizes() -> Sizes:
    return FULL if SETTINGS.name == "full" else QUICK


def collections(of: Sizes) -> Iterator[tuple[str, Collection]]:
    """Names and vectors; queries in random order."""
    found = real()
    rows = found.rows[: of.sentences]
    name = found.name if of.sentences is None else f"{len(rows):,} sentences"
    yield name, Collection(rows, np.random.default_rng(0).permutation(found.queries))
    queries = of.fresh + 3 * of.drawn
    yield f"{of.rows:,} clustered vectors of {of.clustered} dims", matryoshka_like(of.rows, of.clustered, queries)
    yield f"{of.rows:,} vectors of {of.noise} dims, all of them noise", noise(of.rows, of.noise, queries)


def measure(of: Sizes | None = None) -> Iterator[Delivered]:
    """One entry for every collection and recall, on one thread."""
    of = of or sizes()
    for name, (rows, queries) in collections(of):
        count = min(of.fresh, len(queries) // 2)
        fresh, others = queries[:count], queries[count:]
        flat = asx.Index(rows.shape[1])
        flat.add(rows)
        truth = flat.search(fresh, K).ids
        for asked in of.asked:
            index = asx.Index(rows.shape[1])
            index.add(rows)
            plans = []
            for draw in range(of.draws):
                chosen = np.random.default_rng(draw).choice(len(others), min(of.drawn, len(others)), replace=False)
                plan = index.tune(others[chosen], k=K, recall=asked)
                found, stats = index.search(fresh, K, threads=1, stats=True)
                pairs = [tuple(seconds(each, [fresh[: of.timed]]) for each in (searching(index), searching(flat))) for _ in range(ROUNDS)]
                own, exact = min(pairs, key=lambda pair: abs(pair[1] / pair[0] - median(b / a for a, b in pairs)))
                plans.append(Drawn(plan, recall(found.ids, truth), float(stats.stages[-1].scored.mean()), own, exact))
                if draw == 0:
                    # With a cascade of its own, an index keeps its stages when it is tuned.
                    index = asx.Index(rows.shape[1], cascade=asx.Cascade(plan.stages), fit_rows=len(rows) + 1)
                    index.add(rows)
            yield Delivered(name, asked, plans)


def searching(index: asx.Index) -> Search:
    return lambda queries: index.search(queries, K, threads=1).ids


HEADER = [
    "collection",
    f"recall@{K} asked",
    "delivered",
    "each plan",
    "plan.interval, mean",
    "certified",
    "plan",
    "rows of the last stage",
    "µs a query, plan / flat",
    "speed, flat = 1",
]


def table(results: Sequence[Delivered]) -> str:
    """In Markdown."""
    lines = [HEADER, ["---", *["---:"] * 2, "---", "---", "---", "---", *["---:"] * 3]]
    before = ""
    for one in results:
        lines.append(["" if one.collection == before else one.collection, *one.cells()])
        before = one.collection
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
