"""Operations let other threads of Python run while they work."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from adaptive_search.backends.protocol import Backend, DenseChunk


def dense_scan(backend: Backend) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    rows = backend.dense_rows("float32", [DenseChunk((rng.standard_normal((20000, 256)).astype(np.float32),))])
    scan = backend.dense_scan(rows, rng.standard_normal((150, 256)).astype(np.float32), 10, "l2")
    return lambda: scan.run(0, rows.visits)


def dense_rescore(backend: Backend) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    rows = backend.dense_rows("float16", [DenseChunk((rng.standard_normal((4000, 256)).astype(np.float16),))])
    queries, candidates = rng.standard_normal((300, 256)).astype(np.float32), rng.integers(0, 4000, (300, 4000))
    return lambda: backend.dense_rescore(rows, queries, candidates, 10, "ip")


def hamming_scan(backend: Backend) -> Callable[[], object]:
    codes = np.random.default_rng(0).integers(0, 256, (30000, 128)).astype(np.uint8)
    rows = backend.bit_rows([codes], 1024)
    scan = backend.hamming_scan(rows, codes[:300], 10)
    return lambda: scan.run(0, rows.visits)


def pq_assign(backend: Backend) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    vectors, codebooks = rng.standard_normal((5000, 256)).astype(np.float32), rng.standard_normal((32, 256, 8)).astype(np.float32)
    out = np.empty((5000, 32), np.int32)
    return lambda: backend.pq_assign(vectors, codebooks, out)


@pytest.mark.parametrize("prepare", [dense_scan, dense_rescore, hamming_scan, pq_assign], ids=lambda prepare: prepare.__name__)
def test_other_threads_run_meanwhile(backend: Backend, prepare: Callable[[Backend], Callable[[], object]]) -> None:
    """This thread waits for the start, then counts until the work is done: it gets nowhere if the work holds the GIL throughout."""
    prepare(backend)()  # what is compiled on first use is compiled now
    work = prepare(backend)
    started, done = threading.Event(), threading.Event()

    def run() -> None:
        started.set()
        work()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    turns = 0
    while not done.is_set():
        done.wait(0.0005)
        turns += 1
    thread.join()
    assert turns > 5
