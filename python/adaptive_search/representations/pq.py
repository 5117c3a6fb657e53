"""Product-quantization codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ..backends.protocol import Backend, Bound, Level, Rows
from ..layout import Column, Slabs
from ..quantizers import ProductQuantizer
from ..rows import RowStore
from ..types import F32, I64, Array, Metric
from .base import Representation, Stage, prefix_queries


@dataclass(frozen=True, repr=False)
class PQ(Stage):
    """Product-quantization codes (see `ProductQuantizer`), held in the blocked layout alone.

    Parameters
    ----------
    subspaces : int
        1 up to the index's dim: a byte a row for each, or half a byte.
    bits : {8, 4}
        256 or 16 codewords per subspace.
    keep : int or None
        Rows that go on to the next stage.

    Examples
    --------
    >>> from adaptive_search import PQ
    >>> PQ(48, keep=100)
    PQ(subspaces=48, keep=100)
    """

    fit_rows: ClassVar[int] = 10_000

    subspaces: int
    bits: int = 8
    keep: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (4, 8):
            raise ValueError(f"bits: expected 4 or 8, got {self.bits}")

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> PQRows:
        if self.subspaces > slabs.dim:
            raise ValueError(f"PQ(subspaces={self.subspaces}) needs at least a dim for each subspace, the vectors have {slabs.dim}")
        return PQRows(ProductQuantizer(self.subspaces, self.bits, metric), slabs.dim, name)


class PQRows(Representation):
    """Codes of every row, interleaved by 64 rows."""

    def __init__(self, quantizer: ProductQuantizer, dim: int, name: str) -> None:
        self._quantizer = quantizer
        self._dim = dim
        self._name = name
        self.columns = (Column(f"{name}.codes", np.dtype(np.uint8), quantizer.code_bytes, blocked=True),)

    @property
    def fitted(self) -> bool:
        return self._quantizer.fitted

    def fit(self, sample: F32) -> Self:
        return self._with(ProductQuantizer(self._quantizer.subspaces, self._quantizer.bits, self._quantizer.metric).fit(sample))

    def encode(self, vectors: F32) -> dict[str, Array]:
        return {self.columns[0].name: self._quantizer.encode(vectors)}

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        packed = store.used(self.columns[0].name)
        chunks = [(own, chunk.rows) for own, chunk in zip(packed, store.chunks, strict=True)]
        return backend.pq_rows(chunks, self._quantizer.subspaces, self._quantizer.bits, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.pq_rescore(rows, self._tables(backend, queries), candidates, k, self.largest)

    def level(self, backend: Backend, rows: Rows, queries: F32, bound: Bound, scan: bool) -> Level:
        return backend.pq_level(rows, self._tables(backend, queries), self.largest, bound, scan)

    def named(self, name: str) -> Self:
        return type(self)(self._quantizer, self._dim, name)

    def state(self) -> dict[str, Array]:
        return self._quantizer.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        quantizer = ProductQuantizer.from_state(state, self._quantizer.metric)
        expected = (self._dim, self._quantizer.subspaces, self._quantizer.bits)
        if (quantizer.dim, quantizer.subspaces, quantizer.bits) != expected:
            raise ValueError(f"state: expected codebooks for (dim, subspaces, bits) = {expected}")
        return self._with(quantizer)

    @property
    def largest(self) -> bool:
        return self._quantizer.metric != "l2"

    def _tables(self, backend: Backend, queries: F32) -> F32:
        return self._quantizer.query_tables(prefix_queries(backend, queries, self._dim, self._quantizer.metric))

    def _with(self, quantizer: ProductQuantizer) -> Self:
        return type(self)(quantizer, self._dim, self._name)
