"""Signed bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ..backends.protocol import Backend, DenseChunk, IntegerMetric, Rows, Scan
from ..layout import Column, Slabs
from ..quantizers import Int8Quantizer
from ..rows import RowStore
from ..types import F32, I64, Array, Bool, Metric
from .base import Representation, Stage, prefix_queries


@dataclass(frozen=True, repr=False)
class Int8(Stage):
    """A signed byte for each of the first ``dims`` dims (see `Int8Quantizer`); 4 more bytes a row for l2.

    Parameters
    ----------
    dims : int or None
        1 up to the index's dim; None takes all. For metric ``"cosine"`` the truncated vectors are re-normalised.
    keep : int or None
        Rows that go on to the next stage.

    Examples
    --------
    >>> from adaptive_search import Int8
    >>> Int8(keep=100)
    Int8(keep=100)
    """

    fit_rows: ClassVar[int] = 1_000

    dims: int | None = None
    keep: int | None = None

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> Int8Rows:
        dims = slabs.dim if self.dims is None else self.dims
        if dims > slabs.dim:
            raise ValueError(f"Int8(dims={dims}) is longer than the vectors, which have {slabs.dim} dims")
        return Int8Rows(Int8Quantizer(metric), dims, name)


class Int8Rows(Representation):
    """Signed bytes of every row and, for l2, the squared norm of what they stand for."""

    def __init__(self, quantizer: Int8Quantizer, dims: int, name: str) -> None:
        self._quantizer = quantizer
        self._dims = dims
        self._name = name
        self._metric: IntegerMetric = "l2" if quantizer.metric == "l2" else "ip"
        codes = Column(f"{name}.codes", np.dtype(np.int8), dims)
        norms = Column(f"{name}.norms2", np.dtype(np.float32))
        self.columns = (codes, norms) if self._metric == "l2" else (codes,)

    @property
    def fitted(self) -> bool:
        return self._quantizer.fitted

    def fit(self, sample: F32) -> Self:
        return self._with(Int8Quantizer(self._quantizer.metric).fit(sample[:, : self._dims]))

    def encode(self, vectors: F32) -> dict[str, Array]:
        codes = self._quantizer.encode(vectors[:, : self._dims])
        values: dict[str, Array] = {self.columns[0].name: codes}
        if self._metric == "l2":
            values[self.columns[1].name] = self._quantizer.norms2(codes)
        return values

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        codes, *norms = (store.used(column.name) for column in self.columns)
        chunks = [DenseChunk((own,), norms[0][number] if norms else None) for number, own in enumerate(codes)]
        return backend.dense_rows("int8", chunks, store.ids)

    def scan(self, backend: Backend, rows: Rows, queries: F32, k: int, allowed: Bool | None) -> Scan:
        return backend.integer_scan(rows, *self._prepare(backend, queries), k, self._metric, allowed)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.integer_rescore(rows, *self._prepare(backend, queries), candidates, k, self._metric)

    def state(self) -> dict[str, Array]:
        return self._quantizer.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        quantizer = Int8Quantizer.from_state(state, self._quantizer.metric)
        if quantizer.dim != self._dims:
            raise ValueError(f"state: expected limits of {self._dims} dims, got {quantizer.dim}")
        return self._with(quantizer)

    def _prepare(self, backend: Backend, queries: F32) -> tuple[Array, F32, F32]:
        return self._quantizer.prepare(prefix_queries(backend, queries, self._dims, self._quantizer.metric))

    def _with(self, quantizer: Int8Quantizer) -> Self:
        return type(self)(quantizer, self._dims, self._name)
