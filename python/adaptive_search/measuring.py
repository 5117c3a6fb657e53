"""Measuring one representation of some vectors: bytes, time, and the true neighbors found."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from .arrays import Matrix, ranges
from .cascade import Cascade
from .fitting import spread
from .index import Index
from .quantizers import ProductQuantizer, RaBitQuantizer
from .quantizers.base import Quantizer
from .representations import Stage
from .types import F32, F64, I64, Array, Metric

BATCHES = 5
SINGLES = 101
SECONDS = 1.0
"""A time is the median of so many searches of the batch, or of so many queries alone; fewer where they take longer than this together."""


@dataclass(frozen=True)
class Measurement:
    """One row of the table. What could not be measured is None, and ``why`` says the reason.

    Attributes
    ----------
    representation : str
        As it is written in Python.
    bytes_per_row : int
        What a row takes in memory as held for a scan, padding and stored norms included. The vectors that an index keeps beside it for
        exact scores are not counted; of a `Prefix`, which is a part of them, its dims and norm are.
    fit_seconds : float
        To learn the representation; 0 if there is nothing to learn, or it was learned before.
    encode_seconds : float
        To add all rows: for a stage to an index, which stores the vectors too (`Full` shows how long that alone takes).
    recall : float
        Mean share of the true k neighbors, by id, among the k rows with the best estimates.
    recall_error : float
        Standard error of ``recall`` over the queries.
    among : tuple of float
        The same share among more rows: those of `evaluate.Comparison.among`.
    batch_us, single_us : float
        Microseconds per query for k rows: all queries in one call, and one query in a call.
    why : str
        Why there is no such representation; empty if there is.
    """

    representation: str
    bytes_per_row: int | None = None
    fit_seconds: float | None = None
    encode_seconds: float | None = None
    recall: float | None = None
    recall_error: float | None = None
    among: tuple[float, ...] = ()
    batch_us: float | None = None
    single_us: float | None = None
    why: str = ""


class _Subject(ABC):
    """A representation on the bench."""

    learns = True

    @abstractmethod
    def fit(self, sample: Array) -> None: ...

    @abstractmethod
    def encode(self, vectors: Array) -> None: ...

    @abstractmethod
    def search(self, queries: F32, k: int, threads: int | None) -> I64:
        """The ids of the best k rows of every query."""

    @abstractmethod
    def bytes_per_row(self, queries: F32) -> int: ...


class _StageSubject(_Subject):
    """An index that searches through one stage."""

    def __init__(self, stage: Stage, task: Task) -> None:
        alone = stage if stage.shortlist is None else replace(stage, keep=None)  # type: ignore[call-arg]
        self._index = Index(task.matrix.dim, task.metric, task.matrix.kind, Cascade([alone]))
        self.learns = stage.fit_rows > 0

    def fit(self, sample: Array) -> None:
        self._index.fit(sample)

    def encode(self, vectors: Array) -> None:
        self._index.add(vectors)

    def search(self, queries: F32, k: int, threads: int | None) -> I64:
        return self._index.search(queries, k, threads=threads).ids

    def bytes_per_row(self, queries: F32) -> int:
        stage = self._index.search(queries[:1], 1, stats=True)[1].stages[0]
        return int(stage.bytes[0] // stage.scored[0])


class _QuantizerSubject(_Subject):
    """A quantizer and its codes, packed where they can be."""

    def __init__(self, quantizer: Quantizer, task: Task) -> None:
        if quantizer.metric != task.metric:
            raise ValueError(f"it estimates {quantizer.metric!r}, not {task.metric!r}")
        self._quantizer = copy.copy(quantizer)
        self._codes: Any = None
        self.learns = not quantizer.fitted

    def fit(self, sample: Array) -> None:
        self._quantizer.fit(sample)

    def encode(self, vectors: Array) -> None:
        codes = self._quantizer.encode(vectors)
        self._codes = self._quantizer.pack(codes) if isinstance(self._quantizer, ProductQuantizer | RaBitQuantizer) else codes

    def search(self, queries: F32, k: int, threads: int | None) -> I64:
        return self._quantizer.top_k(queries, self._codes, k, threads=threads).ids

    def bytes_per_row(self, queries: F32) -> int:
        return self._quantizer.code_bytes


@dataclass(frozen=True)
class Task:
    """What all representations are measured on."""

    matrix: Matrix
    batch: F32
    truth: I64
    metric: Metric
    k: int
    among: tuple[int, ...]
    threads: int | None

    def measure(self, representation: Stage | Quantizer) -> Measurement:
        try:
            return self._measured(representation)
        except ValueError as error:
            return Measurement(repr(representation), why=" ".join(str(error).split()))

    def _measured(self, representation: Stage | Quantizer) -> Measurement:
        made = _StageSubject if isinstance(representation, Stage) else _QuantizerSubject
        subject: _Subject = made(representation, self)  # type: ignore[arg-type]
        vectors = self.matrix.array
        fit = _seconds(lambda: subject.fit(vectors[spread(len(vectors), self.matrix.dim)])) if subject.learns else 0.0
        encode = _seconds(lambda: subject.encode(vectors))
        # Also warms the caches, and compiles what is compiled when first used.
        shares = found_shares(subject.search(self.batch, max((self.k, *self.among)), self.threads), self.truth, (self.k, *self.among))
        recall, *others = shares.mean(axis=0).tolist()
        return Measurement(
            repr(representation),
            bytes_per_row=subject.bytes_per_row(self.batch),
            fit_seconds=fit,
            encode_seconds=encode,
            recall=recall,
            recall_error=float(shares[:, 0].std() / np.sqrt(len(shares))),
            among=tuple(others),
            batch_us=1e6 / len(self.batch) * _median_seconds(lambda _: self._search(subject, self.batch), BATCHES),
            single_us=1e6 * _median_seconds(lambda number: self._search(subject, self.batch[number % len(self.batch)]), SINGLES),
        )

    def _search(self, subject: _Subject, queries: F32) -> None:
        subject.search(queries, self.k, self.threads)


def found_shares(found: I64, truth: I64, among: Sequence[int]) -> F64:
    """The share of each query's true neighbors among the first so many found: (Q, len(among)).

    Examples
    --------
    >>> found_shares(np.array([[7, 2, 1]]), np.array([[1, 2]]), (1, 2, 3)).tolist()
    [[0.0, 0.5, 1.0]]
    """
    shares = np.empty((len(truth), len(among)))
    ends = np.minimum(among, found.shape[1]) - 1
    for first, last in ranges(len(truth), 256):
        hits = (found[first:last, :, None] == truth[first:last, None, :]).any(axis=2)
        shares[first:last] = hits.cumsum(axis=1)[:, ends] / truth.shape[1]
    return shares


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median_seconds(work: Callable[[int], None], most: int) -> float:
    """Of up to ``most`` calls, numbered from 0, as many as fit into `SECONDS`."""
    taken: list[float] = []
    while len(taken) < most and sum(taken) < SECONDS:
        number = len(taken)
        taken.append(_seconds(lambda number=number: work(number)))  # type: ignore[misc]
    return median(taken)
