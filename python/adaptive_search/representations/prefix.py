"""The first dims of the vectors, read in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.protocol import Backend, Bound, Level, Rows
from ..layout import Slabs
from ..margins import Units
from ..rows import RowStore
from ..types import F32, I64, Metric
from .base import Bounding, Representation, Stage, query_norms, rounding, score_units, unit_queries
from .full import dense_chunks


@dataclass(frozen=True, repr=False)
class Prefix(Stage):
    """The first ``dims`` dims, as Matryoshka embeddings are made for. Costs 8 bytes a row: two norms.

    Parameters
    ----------
    dims : int
        1 up to the index's dim.
    keep : int or None
        Rows that go on to the next stage.
    renormalize : bool
        For metric ``"cosine"``: True scores the cosine of the truncated vectors; False the plain product of the truncated unit
        vectors, which has hard bounds. No difference for ``"ip"`` and ``"l2"``, which score the truncated vectors as they are.

    Examples
    --------
    >>> from adaptive_search import Prefix
    >>> Prefix(64, keep=200)
    Prefix(dims=64, keep=200)
    """

    dims: int
    keep: int | None = None
    renormalize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.renormalize, bool | np.bool_):
            raise TypeError(f"renormalize: expected True or False, got {self.renormalize!r}")

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> PrefixRows:
        if self.dims > slabs.dim:
            raise ValueError(f"Prefix(dims={self.dims}) is longer than the vectors, which have {slabs.dim} dims")
        return PrefixRows(slabs, metric, self.dims, self.renormalize)


LARGEST_NORM, SMALLEST_NORM = 1e15, 1e-15
"""Beyond, products of norms come near the limits of float32, and bounds say nothing; small ones are divided by for cosine only."""


def largest_norm(norms: Sequence[F32], metric: Metric) -> float | None:
    """Of all rows; None if some norm is such that bounds say nothing."""
    largest = max((float(norm.max(initial=0.0)) for norm in norms), default=0.0)
    smallest = min((float(norm.min(where=norm > 0, initial=1.0)) for norm in norms), default=1.0)
    return None if largest > LARGEST_NORM or (metric == "cosine" and smallest < SMALLEST_NORM) else largest


@dataclass(frozen=True)
class PrefixBounds:
    """Plain products of prefixes; by Cauchy and Schwarz the rest adds at most the product of the norms of the rests."""

    rows: Rows
    metric: Metric
    dims: int
    dim: int
    largest: float
    bytes_per_row: int

    def level(self, backend: Backend, queries: F32, scan: bool) -> Level:
        whole = unit_queries(backend, queries, self.metric)
        norms = query_norms(backend, queries)
        rests = np.sqrt(np.square(whole[:, self.dims :], dtype=np.float64).sum(axis=1)) * (1 + 1e-9)
        offset = rounding(self.metric, self.dim, norms, self.largest)
        margin = 2.0 * rests if self.metric == "l2" else rests
        bound = Bound(offset, np.ones(len(queries)), margin)
        squares = np.square(queries, dtype=np.float64).sum(axis=1)
        cut = np.ascontiguousarray(whole[:, : self.dims])
        return backend.prefix_level(self.rows, cut, squares, self.largest, self.metric, bound, scan)


class PrefixRows(Representation):
    """The slabs that hold the first dims."""

    def __init__(self, slabs: Slabs, metric: Metric, dims: int, renormalize: bool) -> None:
        self._slabs = slabs
        self._metric = metric
        self._dims = dims
        # Cosine divides by the norm that comes with the rows. With that of the whole row it yields the product of unit vectors' prefixes,
        # up to a factor per query, which `estimates` adds.
        self._plain_product = metric == "cosine" and not renormalize
        whole = self._plain_product or dims == slabs.dim
        self._norm = "norm" if whole else f"norm.first.{dims}"

    @property
    def bytes_per_row(self) -> int:
        widths = np.diff(self._slabs.edges)
        starts = np.asarray(self._slabs.edges[:-1])
        itemsize = self._slabs.columns[0].dtype.itemsize
        return int(np.clip(self._dims - starts, 0, widths).sum()) * itemsize + 4

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        return backend.dense_rows(self._slabs.kind, dense_chunks(self._slabs, store, self._dims, self._norm), store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        scores, positions, _ = backend.dense_rescore(rows, self._cut(queries), candidates, k, self._metric)
        return scores, positions

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self.units(backend, queries))
        return backend.dense_level(rows, self._cut(queries), self._metric, bound, scan), bound

    @property
    def largest(self) -> bool:
        return self._metric != "l2"

    def units(self, backend: Backend, queries: F32) -> Units:
        units = score_units(backend, queries, self._metric)
        return (
            units._replace(key_unit=1.0 / np.maximum(self._share(backend, queries).astype(np.float64), 1e-6))
            if self._plain_product
            else units
        )

    def bounded(self, backend: Backend, store: RowStore) -> PrefixBounds | None:
        if self._dims == self._slabs.dim:
            return None
        norms, rests = store.used("norm"), store.used(f"norm.rest.{self._dims}")
        largest = largest_norm(norms, self._metric)
        if largest is None:
            return None
        if self._metric == "cosine":
            shares = (np.divide(rest, norm, out=np.zeros_like(rest), where=norm > 0) for rest, norm in zip(rests, norms, strict=True))
            rests = [share * np.float32(1 + 2**-21) for share in shares]
        rests = [np.ascontiguousarray(rest) for rest in rests]
        rows = backend.dense_rows(self._slabs.kind, dense_chunks(self._slabs, store, self._dims, "norm", rests), store.ids)
        return PrefixBounds(rows, self._metric, self._dims, self._slabs.dim, largest, self.bytes_per_row + 4)

    def estimates(self, backend: Backend, queries: F32, raw: F32) -> F32:
        if not self._plain_product:
            return raw
        return raw * self._share(backend, queries)[:, None]

    def _share(self, backend: Backend, queries: F32) -> F32:
        """The length of each query's prefix as a part of the whole."""
        whole, first = _norm(backend, queries), _norm(backend, queries[:, : self._dims])
        return np.divide(first, whole, out=np.zeros_like(first), where=whole > 0)

    def _cut(self, queries: F32) -> F32:
        return np.ascontiguousarray(queries[:, : self._dims])


def _norm(backend: Backend, queries: F32, upward: bool = False) -> F32:
    out = np.zeros(len(queries), np.float32)
    if queries.shape[1]:
        backend.dense_norms("float32", [queries], out, upward)
    return out
