"""Rows, stages and the expected answers that the tests of inverted lists share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from index_cases import way_of

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend
from adaptive_search.calibration import Calibration
from adaptive_search.margins import ErrorModel
from adaptive_search.running import Opening

DIM = 16
STAGES: list[list[Any]] = [
    [asx.Lists(13), asx.PQ(4, 4), asx.Int8()],
    [asx.Lists(5), asx.PQ(6, 4, dims=9, rotation="pca")],
    [asx.Lists(40), asx.PQ(3, 8)],
    [asx.Lists(9), asx.PQ(4, 4, rotation="opq"), asx.Int8()],
]


def collection(count: int, seed: int = 0) -> Any:
    """In clumps, some of which are equal, with a zero row."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((24, DIM))[random.integers(0, 24, count)] + 0.4 * random.standard_normal((count, DIM))
    rows[random.integers(0, count, count // 5)] = rows[random.integers(0, count, count // 5)]
    rows[count // 2] = 0
    return rows.astype(np.float32)


def asked(count: int, seed: int = 1) -> Any:
    queries = collection(count, 0) + 0.3 * np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    queries[-1] = 0
    queries[-2] *= 40
    return queries


def tuned(metric: Any, stages: Sequence[Any], rows: Any, margins: float, dtype: Any = "float32") -> asx.Index:
    """As if tuned, with errors that leave some rows, and some lists, to the stages that follow."""
    index = asx.Index(DIM, metric, dtype, cascade=asx.Cascade([*stages, asx.Full()]), fit_rows=len(rows))
    index.add(rows, np.random.default_rng(5).permutation(3 * len(rows))[: len(rows)])
    return as_if_tuned(index, margins)


def as_if_tuned(index: asx.Index, margins: float) -> asx.Index:
    scale = {"cosine": 0.15, "ip": 0.6, "l2": 1.5}[index.metric]
    models = (*(ErrorModel(0.01, 0.9, scale) for _ in index.plan.stages[:-1]), None)
    index._tuned = Calibration(0.9, 10, models, Opening(), (margins,), (0.0,), 100, True, 1.0)
    return index


def expected(index: asx.Index, backend: Backend, queries: Any, k: int, allowed: Any) -> list[list[tuple[int, float]]]:
    """Ids and scores of the k rows of the best (value, score, smallest id), in the order of scores: a value is the least of the score and
    of all upper bounds. Every row is looked at."""
    stages = way_of(index, backend).stages
    count = index._store.total
    everything = np.tile(np.arange(count), (len(queries), 1))
    values = np.full((len(queries), count), np.inf)
    for stage in stages:
        raw, rows = stage.representation.rescore(backend, stage.rows, queries, everything, count)
        keys = np.take_along_axis(raw, np.argsort(rows, axis=1), axis=1).astype(np.float64)
        if not stage.representation.largest:
            keys = -keys
        if stage.adaptive:
            uppers = stage.bounding(stage.representation.units(backend, queries)).of(keys)
            values = np.minimum(values, np.where(np.isnan(uppers), np.inf, uppers))
    values = np.minimum(values, keys)
    ids = index._store.ids
    found = []
    for value, score, may in zip(values, keys, np.broadcast_to(allowed, values.shape), strict=True):
        order = np.lexsort((ids, -score, -value))
        best = order[may[order]][:k]
        best = best[np.lexsort((ids[best], -score[best]))]
        sign = -1.0 if index.metric == "l2" else 1.0
        found.append([(int(ids[row]), float(np.float32(sign * score[row]) + np.float32(0))) for row in best])
    return found


def pairs(found: asx.Neighbors) -> list[list[tuple[int, float]]]:
    there = zip(found.ids, found.scores, strict=True)
    return [[(int(i), float(s)) for i, s in zip(ids, scores, strict=True) if i >= 0] for ids, scores in there]
