"""The index on real sentence embeddings: a cascade against exact search, and recall against speed for cascades of all sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import faiss
import numpy as np
import pytest
from usearch.index import Index as UsearchIndex

import adaptive_search as asx
from adaptive_search.types import I64, Array

from .contest import Contender, Contest, Search, asking, contenders
from .data import Embeddings
from .peers import faiss_flat, faiss_search, numpy_dense
from .settings import SETTINGS
from .truth import nearest, set_recall

Hold = Callable[[Callable[[], Contest]], None]

K = 10
CASCADE = asx.Cascade([asx.Binary(384, keep=1000), asx.Int8(keep=100), asx.Full()])

FAMILIES: dict[str, dict[str, asx.Cascade]] = {
    "Binary → Int8 → Full": {
        f"Binary {keep} → Int8 {keep // 10} → Full": asx.Cascade([asx.Binary(keep=keep), asx.Int8(keep=max(K, keep // 10)), asx.Full()])
        for keep in (100, 200, 400, 1000, 2000)
    },
    "PQ 96 x 4 bits → Full": {
        f"PQ {keep} → Full": asx.Cascade([asx.PQ(96, bits=4, keep=keep), asx.Full()]) for keep in (10, 20, 50, 100, 200)
    },
    "Int8 → Full": {f"Int8 {keep} → Full": asx.Cascade([asx.Int8(keep=keep), asx.Full()]) for keep in (10, 20)},
    "exact": {"exact": asx.Cascade([asx.Full()])},
}
REFINE_FACTORS = (1, 2, 5, 10, 20)
"""How many times k rows of a fast scan faiss refines."""
EQUAL_FACTORS = (10, 20)
"""Those that reach about the recall of `CASCADE`."""
EXPANSIONS = (16, 32, 64, 128, 256)


def built(rows: Array, cascade: asx.Cascade | None) -> asx.Index:
    index = asx.Index(rows.shape[1], "cosine", cascade=cascade)
    index.add(rows)
    return index


def search(index: asx.Index) -> Search:
    return lambda queries, k: index.search(queries, k).ids


@pytest.fixture(scope="module")
def asked(embeddings: Embeddings) -> Array:
    """Questions for measuring time, evenly spread, because they come article by article."""
    return embeddings.queries[:: -(-len(embeddings.queries) // SETTINGS.queries)]


@pytest.fixture(scope="module")
def truth(embeddings: Embeddings) -> I64:
    """The true neighbours of all questions."""
    return nearest(embeddings.rows, embeddings.queries, K)


@pytest.fixture(scope="module")
def indexes(embeddings: Embeddings) -> tuple[asx.Index, asx.Index]:
    """Exact, and with the cascade."""
    return built(embeddings.rows, None), built(embeddings.rows, CASCADE)


@pytest.fixture(scope="module")
def refined(embeddings: Embeddings) -> Any:
    """faiss's fast scan over 96 codes of 4 bits, with the full vectors for what it finds."""
    index = faiss.IndexRefineFlat(faiss.IndexPQFastScan(embeddings.rows.shape[1], 96, 4, faiss.METRIC_INNER_PRODUCT))
    index.train(embeddings.rows)
    index.add(embeddings.rows)
    return index


def refined_search(index: Any, factor: int) -> Search:
    find = faiss_search(index)

    def search(queries: Array, k: int) -> Array:
        index.k_factor = factor
        return find(queries, k)

    return search


def title(what: str, embeddings: Embeddings, queries: Array, threads: int, alone: bool) -> str:
    return f"{what}, {embeddings.name}, {asking(queries, alone, threads)}"


@contenders(
    "NumPy",
    "faiss loop",
    "faiss BLAS",
    *(f"faiss FastScan + refine x {factor}" for factor in EQUAL_FACTORS),
    backends=[f"{name} {what}" for name in asx.backends() for what in ("exact", "cascade")],
)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alone", [True, False])
def test_cascade(
    hold: Hold,
    embeddings: Embeddings,
    asked: Array,
    truth: I64,
    indexes: tuple[asx.Index, asx.Index],
    refined: Any,
    alone: bool,
    threads: int,
) -> None:
    def prepare() -> Contest:
        exact, cascade = (search(index) for index in indexes)
        rows = embeddings.rows
        peers = {"NumPy": numpy_dense(rows), **faiss_flat(rows)}
        peers |= {f"faiss FastScan + refine x {factor}": refined_search(refined, factor) for factor in EQUAL_FACTORS}
        everybody = {name: Contender(peer) for name, peer in peers.items()}
        for name in asx.backends():
            everybody[f"{name} exact"] = Contender(exact, name)
            everybody[f"{name} cascade"] = Contender(cascade, name, against=f"{name} exact")
        recall = set_recall(truth)(cascade(embeddings.queries, K))
        stages = " → ".join(map(repr, CASCADE.stages))
        return Contest(
            title("Cascade", embeddings, asked, threads, alone),
            everybody,
            asked,
            set_recall(nearest(rows, asked, K)),
            work=1e6,
            unit="k queries/s",
            threads=threads,
            alone=alone,
            equal=False,
            note=f"Cascade: {stages}. Its recall@{K} over all {len(embeddings.queries):,} questions: {recall:.4f}.",
        )

    hold(prepare)


@cache
def frontier() -> dict[str, str]:
    """Everybody in the plot, and the line each belongs to."""
    ours = {name: family for family, cascades in FAMILIES.items() for name in cascades}
    refine = {f"faiss FastScan + refine x {factor}": "faiss FastScan + refine" for factor in REFINE_FACTORS}
    graph = {f"usearch HNSW {expansion}": "usearch HNSW" for expansion in EXPANSIONS}
    return {**refine, **graph, **ours}


@pytest.fixture(scope="module")
def competitors(embeddings: Embeddings, refined: Any) -> dict[str, Contender]:
    graph = UsearchIndex(ndim=embeddings.rows.shape[1], metric="ip")
    graph.add(np.arange(len(embeddings.rows)), embeddings.rows, threads=2)

    def graph_search(expansion: int) -> Search:
        def search(queries: Array, k: int) -> Array:
            graph.expansion_search = expansion
            keys: Array = graph.search(queries, k, threads=1).keys
            return keys.reshape(len(queries), -1).astype(np.int64)

        return search

    searches = [refined_search(refined, factor) for factor in REFINE_FACTORS] + [graph_search(expansion) for expansion in EXPANSIONS]
    searches += [search(built(embeddings.rows, cascade)) for cascades in FAMILIES.values() for cascade in cascades.values()]
    ours = {name for cascades in FAMILIES.values() for name in cascades}
    return {
        name: Contender(find, asx.backend() if name in ours else None, family)
        for (name, family), find in zip(frontier().items(), searches, strict=True)
    }


@contenders(backends=list(frontier()))
@pytest.mark.parametrize("alone", [True, False])
def test_frontier(hold: Hold, embeddings: Embeddings, asked: Array, competitors: dict[str, Contender], alone: bool) -> None:
    def prepare() -> Contest:
        return Contest(
            title("Recall against speed", embeddings, asked, 1, alone),
            competitors,
            asked,
            set_recall(nearest(embeddings.rows, asked, K)),
            work=1e6,
            unit="k queries/s",
            alone=alone,
            equal=False,
            note=f"Backend: {asx.backend()}. Recall over {len(asked):,} questions. Everybody searches on one thread.",
        )

    hold(prepare)
