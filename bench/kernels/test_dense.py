"""Exact top-10 by inner product: float32, 16-bit floats and int8, one query and batches; rescoring of candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import faiss
import ml_dtypes
import numpy as np
import pytest
from usearch.index import ScalarKind

import adaptive_search as asx
from adaptive_search.types import Array

from ..contest import NUMBA_TARGET, Contender, Contest, Search, Target, contenders, numbered, on_every_backend
from ..data import Collection
from ..peers import best_of, faiss_flat, faiss_scalar, numpy_dense, usearch_exact
from ..truth import dense_recall, set_recall

Hold = Callable[[Callable[[], Contest]], None]

FLAT = ("NumPy", "faiss loop", "faiss BLAS", "usearch")


def search(rows: Array) -> Search:
    return lambda queries, k: asx.top_k(queries, rows, k).ids


def everybody(peers: Mapping[str, Search], rows: Array) -> dict[str, Contender]:
    return {name: Contender(peer) for name, peer in peers.items()} | on_every_backend(search(rows))


def float32_contest(rows: Array, queries: Array, threads: int, alone: bool, title: str, *targets: Target) -> Contest:
    count, dims = rows.shape
    return Contest(
        title,
        everybody({"NumPy": numpy_dense(rows), **faiss_flat(rows), "usearch": usearch_exact(rows, threads)}, rows),
        queries,
        dense_recall(rows, queries, 10),
        work=count * dims * (4 if alone else 2),
        unit="GB/s" if alone else "GFLOP/s",
        threads=threads,
        alone=alone,
        targets=targets,
    )


@contenders(*FLAT)
@pytest.mark.parametrize("threads", [1, 2])
def test_one_query(hold: Hold, collection: Collection, threads: int) -> None:
    rows, queries = collection.rows, collection.queries[:50]
    targets = [Target(0.85), NUMBA_TARGET] if threads == 1 else []
    title = f"float32, {len(rows):,} x 768, one query, {numbered(threads)}"
    hold(lambda: float32_contest(rows, queries, threads, True, title, *targets))


@contenders(*FLAT)
@pytest.mark.parametrize(
    ("dims", "batch", "threads"), [(64, 100, 1), (64, 1000, 1), (128, 100, 1), (128, 1000, 1), (128, 1000, 2), (768, 100, 1), (768, 100, 2)]
)
def test_batch(hold: Hold, collection: Collection, dims: int, batch: int, threads: int) -> None:
    def prepare() -> Contest:
        rows, queries = (np.ascontiguousarray(vectors[:, :dims]) for vectors in collection)
        title = f"float32, {len(rows):,} x {dims}, {len(queries[:batch])} queries, {numbered(threads)}"
        targets = [Target(1.0), NUMBA_TARGET] if threads == 1 and dims < 768 else []
        return float32_contest(rows, queries[:batch], threads, False, title, *targets)

    hold(prepare)


@contenders(*FLAT)
def test_few_rows(hold: Hold, collection: Collection) -> None:
    """What a call costs when there is next to nothing to do."""

    def prepare() -> Contest:
        rows, queries = (np.ascontiguousarray(vectors[:1000, :384]) for vectors in collection)
        return float32_contest(rows, queries, 1, True, "float32, 1,000 x 384, one query, 1 thread")

    hold(prepare)


@contenders("NumPy", "faiss SQ", "usearch")
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 100])
def test_half(hold: Hold, collection: Collection, batch: int, kind: str) -> None:
    def prepare() -> Contest:
        dims = 256
        rows = np.ascontiguousarray(collection.rows[:, :dims]).astype(kind if kind == "float16" else ml_dtypes.bfloat16)
        # Rounded as well, because usearch compares only vectors of one type.
        queries = collection.queries[: max(batch, 50), :dims].astype(rows.dtype).astype(np.float32)
        wide = rows.astype(np.float32)
        same = usearch_exact(rows.view(np.uint16), 1, dtype=ScalarKind.F16 if kind == "float16" else ScalarKind.BF16)
        level = faiss.ScalarQuantizer.QT_fp16 if kind == "float16" else faiss.ScalarQuantizer.QT_bf16
        peers: dict[str, Search] = {
            "NumPy": numpy_dense(rows),
            "faiss SQ": faiss_scalar(wide, level),
            "usearch": lambda batch, k: same(batch.astype(rows.dtype).view(np.uint16), k),
        }
        alone = batch == 1
        return Contest(
            f"{kind}, {len(rows):,} x {dims}, {'one query' if alone else f'{len(queries)} queries'}, 1 thread",
            everybody(peers, rows),
            queries,
            dense_recall(wide, queries, 10),
            work=rows.size * 2,
            unit="GB/s" if alone else "GFLOP/s",
            alone=alone,
        )

    hold(prepare)


@contenders("NumPy", "faiss SQ", "usearch")
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (100, 1), (100, 2)])
def test_int8(hold: Hold, collection: Collection, batch: int, threads: int) -> None:
    """int8 queries on int8 rows, exact integers: for everybody the same problem."""

    def prepare() -> Contest:
        dims = 256
        scale = 127 / np.abs(collection.rows[:, :dims]).max()
        rows, queries = (np.rint(np.clip(vectors[:, :dims] * scale, -127, 127)).astype(np.int8) for vectors in collection)
        queries = queries[: max(batch, 50)]
        signed = faiss_scalar(rows.astype(np.float32), faiss.ScalarQuantizer.QT_8bit_direct_signed)
        peers: dict[str, Search] = {
            "NumPy": numpy_dense(rows),
            "faiss SQ": lambda batch, k: signed(batch.astype(np.float32), k),
            "usearch": usearch_exact(rows, threads),
        }
        alone = batch == 1
        return Contest(
            f"int8, {len(rows):,} x {dims}, {'one query' if alone else f'{len(queries)} queries'}, {numbered(threads)}",
            everybody(peers, rows),
            queries,
            dense_recall(rows, queries, 10),
            work=rows.size * (1 if alone else 2),
            unit="GB/s" if alone else "GOP/s",
            threads=threads,
            alone=alone,
        )

    hold(prepare)


@contenders("NumPy")
def test_rescore(hold: Hold, collection: Collection) -> None:
    """What the later stages of a cascade do: rows all over memory, a few for each query."""

    def prepare() -> Contest:
        rows, queries = collection.rows, collection.queries[:200]
        candidates = np.random.default_rng(0).integers(0, len(rows), (len(queries), 200))

        def gathered(queries: Array, k: int) -> Array:
            lists = candidates[: len(queries)]
            scores = np.stack([rows[ids] @ query for ids, query in zip(lists, queries, strict=True)])
            return np.take_along_axis(lists, best_of(scores, k), axis=1)

        return Contest(
            f"rescoring, 200 candidates of {len(rows):,} x 768 float32, {len(queries)} queries, 1 thread",
            {"NumPy": Contender(gathered)}
            | on_every_backend(lambda queries, k: asx.rescore(queries, rows, candidates[: len(queries)], k).ids),
            queries,
            set_recall(gathered(queries, 10)),
            work=200 * 1e3,
            unit="M rows/s",
        )

    hold(prepare)
