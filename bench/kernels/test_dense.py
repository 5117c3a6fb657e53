"""Exact top-k by inner product of float32: batches of all sizes, one query, little to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

import adaptive_search as asx
from adaptive_search.types import Array

from ..contest import EXACT, LONELY, NUMBA_TARGET, Contender, Contest, Search, Target, asking, best_backends, contenders, on_backends
from ..data import Collection
from ..limits import CALL, Floor, floor
from ..peers import faiss_flat, numpy_dense, usearch_exact
from ..settings import SETTINGS
from ..truth import dense_recall

Hold = Callable[[Callable[[], Contest]], None]
FirstDims = Callable[[int, int], Collection]

FLAT = ("NumPy", "faiss loop", "faiss BLAS", "usearch")
BATCHES = [(SETTINGS.many, dims, batch, 10) for dims in (64, 128, 256, 768) for batch in (1, 2, 4, 8)]
BATCHES += [(SETTINGS.many if dims < 768 else SETTINGS.rows, dims, 32, k) for dims in (64, 128, 256, 768) for k in (10, 100)]
BATCHES += [(SETTINGS.rows, dims, 1000, 10) for dims in (64, 128, 256, 768)]
# Those that share rows come together, and share one copy of them.
BATCHES.sort(key=lambda case: case[:2])


def search(rows: Array) -> Search:
    return lambda queries, k: asx.top_k(queries, rows, k).ids


def float32_peers(rows: Array) -> dict[str, Contender]:
    peers = {"NumPy": numpy_dense(rows), **faiss_flat(rows), "usearch": usearch_exact(rows, 1)}
    return {name: Contender(peer) for name, peer in peers.items()}


def float32_contest(
    rows: Array, queries: Array, batch: int, k: int, targets: Sequence[Target], ours: Mapping[str, Contender], what: str = "float32"
) -> Contest:
    count, dims = rows.shape
    alone = batch == 1
    asked = queries[: LONELY if alone else batch]
    return Contest(
        f"{what}, {count:,} x {dims}, {asking(asked, alone, k=k)}",
        float32_peers(rows) | ours,
        asked,
        dense_recall(rows, asked[:EXACT], 10),
        work=count * dims * (4 if alone else 2),
        unit="GB/s" if alone else "GFLOP/s",
        alone=alone,
        k=k,
        judged=EXACT,
        # A thousand queries are to be asked at once.
        patience=20 if batch == 1000 else 4,
        targets=targets,
    )


def scan_floor(rows: Array, batch: int) -> Callable[[str], Floor | None]:
    """The batch reads the rows once."""
    return lambda backend: floor("float32", backend, operations=2 * rows.size, bytes=rows.nbytes / batch)


def asked_of(dims: int, batch: int) -> list[Target]:
    """Rows 1 to 4 of the table."""
    if batch == 1:
        return [Target(1.0, row=4), Target(0.9, of="floor", row=4)]
    if batch <= 4:
        return [Target(0.85, of="floor", row=3)]
    if batch == 8:
        return [Target(2.0, row=3)]
    row = 1 if batch == 32 else 2
    speeds = {1: {64: 2.0, 128: 2.0, 256: 2.0, 768: 1.6}, 2: {64: 1.5, 128: 1.3, 256: 1.3, 768: 1.05}}
    return [Target(speeds[row][dims], row=row), *([Target({1: 0.85, 2: 0.88}[row], of="floor", row=row)] if dims >= 128 else [])]


@contenders(*FLAT, backends=best_backends())
@pytest.mark.parametrize(("count", "dims", "batch", "k"), BATCHES)
def test_float32(hold: Hold, first_dims: FirstDims, count: int, dims: int, batch: int, k: int) -> None:
    def prepare() -> Contest:
        rows, queries = first_dims(count, dims)
        ours = on_backends(search(rows), best_backends(), scan_floor(rows, batch))
        return float32_contest(rows, queries, batch, k, asked_of(dims, batch), ours)

    hold(prepare)


@contenders(*FLAT, backends=[f"{name} Index" for name in best_backends()])
def test_slabs(hold: Hold, first_dims: FirstDims) -> None:
    """The rows of an index with prefix stages lie in pieces."""

    def prepare() -> Contest:
        rows, queries = first_dims(SETTINGS.many, 768)
        index = asx.Index(768, "ip", cascade=asx.Cascade([asx.Prefix(64, keep=1000), asx.Prefix(128, keep=100), asx.Full()]))
        index.add(rows)
        ours = on_backends(
            lambda queries, k: index.search(queries, k, recall=1.0).ids, best_backends(), scan_floor(rows, 1), suffix=" Index"
        )
        targets = [Target(0.85, f"{asx.backend()} Index", row=4)]
        return float32_contest(rows, queries, 1, 10, targets, ours, "float32, slabs of 64, 64 and 640 dims")

    hold(prepare)


@contenders(*FLAT)
@pytest.mark.parametrize("batch", [1, 100])
def test_every_backend(hold: Hold, first_dims: FirstDims, batch: int) -> None:
    def prepare() -> Contest:
        rows, queries = first_dims(SETTINGS.rows, 128)
        ours = on_backends(search(rows), floor=scan_floor(rows, batch))
        return float32_contest(rows, queries, batch, 10, [NUMBA_TARGET], ours, "float32, every backend")

    hold(prepare)


@contenders(*FLAT)
def test_few_rows(hold: Hold, first_dims: FirstDims) -> None:
    """What a call costs when there is next to nothing to do."""

    def prepare() -> Contest:
        rows, queries = first_dims(1000, 384)

        def least(backend: str) -> Floor | None:
            scan = scan_floor(rows, 1)(backend)
            return scan and replace(scan, reading="cache", call=CALL)

        # With the call, at most 1.5 times what the cache allows.
        targets = [Target(1.0, rival="faiss loop", row=14), Target(1 / 1.5, of="floor", row=14)]
        return float32_contest(rows, queries, 1, 10, targets, on_backends(search(rows), floor=least))

    hold(prepare)
