"""Exact top-k by inner product of 16-bit floats and int8, beside float32 of the same backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import faiss
import ml_dtypes
import numpy as np
import pytest
from usearch.index import ScalarKind

import adaptive_search as asx
from adaptive_search.types import Array

from ..contest import EXACT, LONELY, Contender, Contest, Search, Target, asking, best_backends, contenders, on_backends
from ..data import Collection
from ..limits import floor
from ..peers import faiss_scalar, numkong_dense, numpy_dense, scann_brute_force, usearch_exact
from ..settings import SETTINGS
from ..truth import dense_recall

Hold = Callable[[Callable[[], Contest]], None]
FirstDims = Callable[[int, int], Collection]

# bfloat16 with its own arithmetic and without, and AVX2.
BACKENDS = best_backends()
if "avx512_bf16" in BACKENDS:
    BACKENDS.insert(1, "avx512")
BEST_FLOAT = f"{asx.backend()} float32"
# Of float32, what the preferred backend does and what AVX2 does.
FLOATS = {name: f"{name} float32" if name in best_backends() else BEST_FLOAT for name in BACKENDS}


BATCHES = [(64, 32), (128, 32), (256, 32), (256, 200), (768, 32), (768, 200)]


def search(rows: Array) -> Search:
    return lambda queries, k: asx.top_k(queries, rows, k).ids


def narrow_contest(
    title: str, kind: str, peers: Mapping[str, Search], rows: Array, wide: Array, queries: Array, batch: int, targets: list[Target]
) -> Contest:
    """Everybody on ``rows``, and the library's float32 on ``wide``, which are the same numbers."""
    alone = batch == 1
    reader = search(rows)
    same = search(wide)
    # float16 has no arithmetic of its own here.
    arithmetic = "float32" if kind == "float16" else kind
    return Contest(
        f"{title}, {len(rows):,} x {rows.shape[1]}, {asking(queries, alone)}",
        {name: Contender(peer) for name, peer in peers.items()}
        | on_backends(reader, BACKENDS, lambda backend: floor(arithmetic, backend, 2 * rows.size, rows.nbytes / batch))
        | on_backends(
            lambda queries, k: same(queries.astype(np.float32, copy=False), k),
            best_backends(),
            lambda backend: floor("float32", backend, 2 * wide.size, wide.nbytes / batch),
            suffix=" float32",
        ),
        queries,
        dense_recall(wide, queries[:EXACT].astype(np.float32, copy=False), 10),
        work=rows.nbytes if alone else 2 * rows.size,
        unit="GB/s" if alone else "GOP/s" if kind == "int8" else "GFLOP/s",
        alone=alone,
        judged=EXACT,
        targets=targets,
    )


def asked_of_half(kind: str, batch: int) -> list[Target]:
    """Row 5 of the table."""
    if batch == 1:
        return [Target(0.9, of="floor", row=5)]
    unpacked = [Target(0.9, name, FLOATS[name], row=5) for name in BACKENDS if kind == "float16" or name != "avx512_bf16"]
    if kind == "float16" or "avx512_bf16" not in BACKENDS:
        return unpacked
    return [
        Target(0.85, of="floor", row=5),
        # numkong multiplies matrices and leaves the selection to NumPy; faiss is the best that searches by itself.
        Target(6.0, row=5),
        Target(6.0, rival="faiss SQ", row=5),
        Target(1.7, rival=BEST_FLOAT, row=5),
        *unpacked,
    ]


@contenders("NumPy", "faiss SQ", "usearch", "numkong", backends=[*BACKENDS, *dict.fromkeys(FLOATS.values())])
@pytest.mark.parametrize(
    ("kind", "dims", "batch"),
    [
        *(("bfloat16", dims, batch) for dims, batch in BATCHES),
        *(("float16", dims, 32) for dims in (128, 768)),
        ("bfloat16", 768, 1),
        ("float16", 768, 1),
    ],
)
def test_half(hold: Hold, first_dims: FirstDims, kind: str, dims: int, batch: int) -> None:
    def prepare() -> Contest:
        vectors = first_dims(SETTINGS.rows, dims)
        rows = vectors.rows.astype(kind if kind == "float16" else ml_dtypes.bfloat16)
        # Rounded as well, because usearch and numkong compare only vectors of one type.
        queries = vectors.queries[: LONELY if batch == 1 else batch].astype(rows.dtype).astype(np.float32)
        wide = rows.astype(np.float32)
        same = usearch_exact(rows.view(np.uint16), 1, dtype=ScalarKind.F16 if kind == "float16" else ScalarKind.BF16)
        level = faiss.ScalarQuantizer.QT_fp16 if kind == "float16" else faiss.ScalarQuantizer.QT_bf16
        peers: dict[str, Search] = {
            "NumPy": numpy_dense(rows),
            "faiss SQ": faiss_scalar(wide, level),
            "usearch": lambda batch, k: same(batch.astype(rows.dtype).view(np.uint16), k),
        }
        for name, peer in numkong_dense(rows).items():
            peers[name] = lambda batch, k, peer=peer: peer(batch.astype(rows.dtype), k)
        return narrow_contest(kind, kind, peers, rows, wide, queries, batch, asked_of_half(kind, batch))

    hold(prepare)


def asked_of_int8(dims: int, batch: int) -> list[Target]:
    """Row 6 of the table."""
    if batch == 1:
        return [Target(1.0, row=6), Target(0.9, of="floor", row=6)]
    over_float = Target(3.0 if dims >= 256 else 2.4, rival=BEST_FLOAT, row=6)
    if dims < 256:
        return [over_float]
    exact = "faiss SQ8 direct"
    speeds = [Target(6.0, row=6), Target(6.0, rival=exact, row=6), Target(3.5, "avx2", row=6), Target(3.5, "avx2", exact, row=6)]
    return [Target(0.7, of="floor", row=6), *speeds, over_float]


@contenders(
    "NumPy", "faiss SQ8", "faiss SQ8 direct", "usearch", "numkong", "scann int8", backends=[*BACKENDS, *dict.fromkeys(FLOATS.values())]
)
@pytest.mark.parametrize(
    ("dims", "batch", "most"),
    [*((dims, batch, 127) for dims, batch in BATCHES), (256, 200, 63), (768, 200, 63), (768, 1, 127)],
)
def test_int8(hold: Hold, first_dims: FirstDims, dims: int, batch: int, most: int) -> None:
    """int8 queries on int8 rows, exact integers: the same numbers for everybody. AVX2 multiplies queries of 7 bits faster."""

    def prepare() -> Contest:
        vectors = first_dims(SETTINGS.rows, dims)
        rows, queries = (as_int8(part, limit) for part, limit in zip(vectors, (127, most), strict=True))
        queries = queries[: LONELY if batch == 1 else batch]
        wide = rows.astype(np.float32)
        peers: dict[str, Search] = {"NumPy": numpy_dense(rows), "usearch": usearch_exact(rows, 1), **numkong_dense(rows)}
        floats = {
            "faiss SQ8": faiss_scalar(wide, faiss.ScalarQuantizer.QT_8bit),
            "faiss SQ8 direct": faiss_scalar(wide, faiss.ScalarQuantizer.QT_8bit_direct_signed),
            **scann_brute_force("scann int8", wide, "INT8"),
        }
        for name, peer in floats.items():
            peers[name] = lambda batch, k, peer=peer: peer(batch.astype(np.float32), k)
        title = "int8" if most == 127 else "int8, queries of 7 bits"
        return narrow_contest(title, "int8", peers, rows, wide, queries, batch, asked_of_int8(dims, batch))

    hold(prepare)


def as_int8(vectors: Array, limit: int) -> Array:
    codes: Array = np.rint(vectors * (limit / np.abs(vectors).max())).astype(np.int8)
    return codes
