"""The demo: real questions over real sentences, then what a cascade gains and costs on every backend of the machine."""

from __future__ import annotations

import gzip
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from . import PQ, Binary, Cascade, Full, Index, Int8, Neighbors, backend, backends, get_threads, use_backend
from .types import F32, I64, Array

K = 10
SHOWN_QUESTIONS = (50, 100, 575, 725, 325)
SINGLE_QUERIES = 100
SEARCHES: dict[str, Cascade | None] = {
    "exact": None,
    "Binary 400 → Int8 40 → Full": Cascade([Binary(keep=400), Int8(keep=40), Full()]),
    "PQ 50 → Full": Cascade([PQ(96, bits=4, keep=50), Full()]),
}


@dataclass(frozen=True)
class DemoData:
    """Sentences and questions with their embeddings, and which sentences hold the answer of each question (-1 = none)."""

    sentences: list[str]
    vectors: Array
    questions: list[str]
    queries: Array
    answers: Array


@dataclass(frozen=True)
class Measurement:
    """What one way to search did: recall against exact search; seconds per query, alone (median) and in one batch of all."""

    recall: float
    single: float
    batch: float


def run(directory: Path, console: Console) -> None:
    """Answer some questions, then print the table of cascades and backends."""
    data = load(directory)
    start = time.perf_counter()
    index = Index.build(data.vectors, metric="cosine", k=K)
    seconds = time.perf_counter() - start
    console.print(f"Indexed {len(index):,} sentence embeddings of {index.dim} dims in {seconds:.2f} s on {backend()};", highlight=False)
    console.print(f"a search goes through {' → '.join(map(repr, index.plan.stages))}.\n", highlight=False)
    for number in SHOWN_QUESTIONS:
        show_answers(console, data, number, index.search(data.queries[number], 3))
    console.print("● holds the answer, as marked by the people who wrote the questions\n", style="dim")

    indexes = {name: build_index(data.vectors, cascade) for name, cascade in SEARCHES.items()}
    columns = [Column(title, no_wrap=True) for title in ("backend", "search")]
    columns += [Column(title, no_wrap=True, justify="right") for title in (f"recall@{K}", "one query", "in a batch")]
    table = Table(*columns, box=box.SIMPLE, pad_edge=False)
    for name in backends():
        with console.status(f"measuring {name}"), use_backend(name):
            measured = measure(indexes, data.queries)
        for number, (search, result) in enumerate(measured.items()):
            numbers = (f"{result.recall:.4f}", f"{1e3 * result.single:.3f}", f"{1e3 * result.batch:.4f}")
            table.add_row("" if number else name, search, *numbers, end_section=number == len(measured) - 1)
    console.print(
        f"All {len(data.queries):,} questions on every backend: recall against exact search; milliseconds per query, one at a time and in "
        f"one batch, with {get_threads()} threads. Numbers behind stages are the rows that they keep.",
        highlight=False,
    )
    console.print(table)
    console.print("Exact search of so few rows is cheap: cascades are made for collections that do not fit the processor's caches.")


def load(directory: Path) -> DemoData:
    """Read the demo's five files."""
    if not (directory / "sentences.f16.npy").is_file():
        raise FileNotFoundError(
            f"no demo data in {directory}: run this in a checkout of the source repository, or name its examples/data with --data"
        )
    return DemoData(
        sentences=_read_lines(directory / "sentences.txt.gz"),
        vectors=np.load(directory / "sentences.f16.npy"),
        questions=_read_lines(directory / "questions.txt.gz"),
        queries=np.load(directory / "questions.f16.npy").astype(np.float32),
        answers=np.load(directory / "gold_sentences.i32.npy"),
    )


def _read_lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def show_answers(console: Console, data: DemoData, number: int, found: Neighbors) -> None:
    """Print a question and the sentences found, those that hold the answer marked."""
    console.print(Text(data.questions[number], style="bold"))
    for row, score in zip(found.ids, found.scores, strict=True):
        holds = row in data.answers[number]
        line = Text(f"  {'●' if holds else ' '} {score:.3f}  ", style="green" if holds else "")
        line.append(data.sentences[row])
        line.truncate(max(console.width, 40), overflow="ellipsis")
        console.print(line)
    console.print()


def build_index(vectors: Array, cascade: Cascade | None) -> Index:
    """An index over float16 vectors with a given cascade."""
    index = Index(vectors.shape[1], "cosine", dtype="float16", cascade=cascade)
    index.add(vectors)
    return index


def measure(indexes: dict[str, Index], queries: F32) -> dict[str, Measurement]:
    """Time every index on the backend in use; recall is against the index called "exact"."""
    truth = indexes["exact"].search(queries, K).ids
    results = {}
    for name, index in indexes.items():
        # Once untimed, so that neither compiling (Numba) nor cold memory is measured.
        index.search(queries, K)
        index.search(queries[0], K)
        start = time.perf_counter()
        found = index.search(queries, K).ids
        batch = (time.perf_counter() - start) / len(queries)
        alone = []
        for query in queries[:SINGLE_QUERIES]:
            start = time.perf_counter()
            index.search(query, K)
            alone.append(time.perf_counter() - start)
        results[name] = Measurement(recall(found, truth), statistics.median(alone), batch)
    return results


def recall(found: I64, truth: I64) -> float:
    """The mean share of the true neighbors that were found.

    Examples
    --------
    >>> recall(np.array([[1, 2], [3, 9]]), np.array([[2, 1], [3, 4]]))
    0.75
    """
    hits = sum(len(np.intersect1d(mine, best)) for mine, best in zip(found, truth, strict=True))
    return hits / truth.size
