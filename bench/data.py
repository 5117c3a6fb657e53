"""What is searched: made-up vectors like Matryoshka embeddings, and real sentence embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptive_search.types import F32

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / "build" / "bench"
VARIABLE = "ADAPTIVE_SEARCH_DATA"

BLOCK = 32_768
"""Vectors drawn at a time."""


class Collection(NamedTuple):
    """Vectors to search and queries to search with."""

    rows: F32
    queries: F32


@dataclass(frozen=True)
class Embeddings:
    """Real embeddings; the name says which."""

    name: str
    rows: F32
    queries: F32


class Clusters:
    """Clustered unit vectors whose variance decays over the dims, drawn a block at a time.

    4,000 clusters with weights 1/sqrt(rank). Centres (times 0.8) and noise (times 0.75) have the standard deviation 1/sqrt(1 + i/24)
    in dim i, so that the first 64, 128 and 256 of 768 dims hold about 37, 53 and 70 % of the energy.
    """

    def __init__(self, dim: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._deviation = np.sqrt(24 / (24 + np.arange(dim))).astype(np.float32)
        clusters = 4000
        self._centres = self._random.standard_normal((clusters, dim), np.float32) * (np.float32(0.8) * self._deviation)
        weights = 1 / np.sqrt(np.arange(1, clusters + 1))
        self._weights = weights / weights.sum()

    def draw(self, count: int) -> F32:
        """So many, all in memory: at most `BLOCK` at a time is wise."""
        block: F32 = self._random.standard_normal((count, len(self._deviation)), np.float32)
        block *= np.float32(0.75) * self._deviation
        block += self._centres[self._random.choice(len(self._centres), count, p=self._weights)]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        return block

    def blocks(self, count: int) -> Iterator[F32]:
        """So many, in blocks."""
        for first in range(0, count, BLOCK):
            yield self.draw(min(BLOCK, count - first))


def matryoshka_like(rows: int, dim: int, queries: int, *, seed: int = 0) -> Collection:
    """Vectors of `Clusters`; queries are drawn like rows."""
    vectors = np.empty((rows + queries, dim), np.float32)
    first = 0
    for block in Clusters(dim, seed).blocks(len(vectors)):
        vectors[first : first + len(block)] = block
        first += len(block)
    return Collection(vectors[:rows], vectors[rows:])


def noise(rows: int, dim: int, queries: int, *, seed: int = 1) -> Collection:
    """Independent normal numbers: no dim tells more than another, and the best rows are hardly better than the rest."""
    random = np.random.default_rng(seed)
    return Collection(*(random.standard_normal((count, dim), np.float32) for count in (rows, queries)))


def synthetic(rows: int, dim: int, queries: int) -> Collection:
    """`matryoshka_like` vectors, kept under ``build/`` for the next run, and mapped from there."""
    stem = CACHE / f"matryoshka-{rows}-{dim}-{queries}"
    paths = [stem.with_name(f"{stem.name}-{part}.npy") for part in Collection._fields]
    if not all(path.is_file() for path in paths):
        CACHE.mkdir(parents=True, exist_ok=True)
        for path, vectors in zip(paths, matryoshka_like(rows, dim, queries), strict=True):
            # Under its name only when it is whole.
            unfinished = path.with_suffix(".tmp.npy")
            np.save(unfinished, vectors)
            unfinished.replace(path)
    return Collection(*(np.load(path, mmap_mode="r") for path in paths))


def real() -> Embeddings:
    """The large collection from the directory that ``ADAPTIVE_SEARCH_DATA`` names, else the demo's."""
    directory = os.environ.get(VARIABLE, "")
    if directory:
        rows, queries = (_unit(Path(directory) / name) for name in ("sentences.f16.npy", "test_queries.f16.npy"))
        return Embeddings(f"{len(rows):,} sentences", rows, queries)
    demo = REPOSITORY / "examples" / "data"
    rows, queries = (_unit(demo / name) for name in ("sentences.f16.npy", "questions.f16.npy"))
    return Embeddings(f"the demo's {len(rows):,} sentences", rows, queries)


def _unit(path: Path) -> F32:
    """float32 vectors of unit length, so that an inner product is a cosine for everybody."""
    vectors: F32 = np.load(path).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
