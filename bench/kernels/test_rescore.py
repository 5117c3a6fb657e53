"""Rescoring of candidates, as the later stages of a cascade do: rows all over memory, a few for each query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import adaptive_search as asx
from adaptive_search.backends import current
from adaptive_search.backends.protocol import DenseChunk
from adaptive_search.types import Array

from ..contest import Contender, Contest, Target, asking, best_backends, contenders, on_backends
from ..data import Collection
from ..limits import Floor, random_rows
from ..peers import best_of
from ..settings import SETTINGS
from ..truth import set_recall

CANDIDATES = 200
WIDTHS = (64, 64, 128, 512)
"""Dims of the slabs."""


@contenders("NumPy", backends=[*best_backends(), *(f"{name} slabs" for name in best_backends())])
def test_rescore(hold: Callable[[Callable[[], Contest]], None], first_dims: Callable[[int, int], Collection]) -> None:
    def prepare() -> Contest:
        rows, queries = first_dims(SETTINGS.many, sum(WIDTHS))
        candidates = np.random.default_rng(0).integers(0, len(rows), (len(queries), CANDIDATES))
        slabs = DenseChunk(tuple(np.array(part) for part in np.split(rows, np.cumsum(WIDTHS)[:-1], axis=1)))

        def gathered(queries: Array, k: int) -> Array:
            lists = candidates[: len(queries)]
            scores = np.stack([rows[ids] @ query for ids, query in zip(lists, queries, strict=True)])
            return np.take_along_axis(lists, best_of(scores, k), axis=1)

        def in_slabs(queries: Array, k: int) -> Array:
            backend = current()
            prepared = backend.dense_rows("float32", [slabs])
            found: Array = backend.dense_rescore(prepared, queries, candidates[: len(queries)], k, "ip")[1]
            return found

        def least(_: str) -> Floor:
            return Floor(bytes=CANDIDATES * rows.strides[0], reading="random rows")

        return Contest(
            f"rescoring, {CANDIDATES} candidates of {len(rows):,} x {rows.shape[1]} float32, {asking(queries, False)}",
            {"NumPy": Contender(gathered)}
            | on_backends(lambda queries, k: asx.rescore(queries, rows, candidates[: len(queries)], k).ids, best_backends(), least)
            | on_backends(in_slabs, best_backends(), least, suffix=" slabs"),
            queries,
            set_recall(gathered(queries, 10)),
            work=CANDIDATES * 1e3,
            unit="M rows/s",
            rates={"random rows": lambda: random_rows(rows, candidates[:100])},
            # At most 1.3 times what it takes to read the rows, eight at a time.
            targets=[Target(3.0, row=12), Target(1 / 1.3, of="floor", row=12), Target(1.8, f"{asx.backend()} slabs", row=12)],
        )

    hold(prepare)
