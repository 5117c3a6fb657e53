"""The first dims of the vectors, read in place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backends.protocol import Backend, Rows, Scan
from ..layout import Slabs
from ..rows import RowStore
from ..types import F32, I64, Bool, Metric
from .base import Bounds, Representation, Stage
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

    def scan(self, backend: Backend, rows: Rows, queries: F32, k: int, allowed: Bool | None) -> Scan:
        return backend.dense_scan(rows, self._cut(queries), k, self._metric, allowed)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        scores, positions, _ = backend.dense_rescore(rows, self._cut(queries), candidates, k, self._metric)
        return scores, positions

    def estimates(self, backend: Backend, queries: F32, raw: F32) -> F32:
        if not self._plain_product:
            return raw
        whole, first = _norm(backend, queries), _norm(backend, queries[:, : self._dims])
        share = np.divide(first, whole, out=np.zeros_like(first), where=whole > 0)
        return raw * share[:, None]

    def bounds(self, backend: Backend, store: RowStore, queries: F32, positions: I64, estimates: F32) -> Bounds | None:
        """By Cauchy and Schwarz: the rest of the dims adds at most the product of the norms of the rests."""
        if self._metric == "cosine" and not self._plain_product:
            return None
        query_norm = _norm(backend, queries)[:, None].astype(np.float64)
        query_rest = _norm(backend, queries[:, self._dims :], upward=True)[:, None].astype(np.float64)
        row_norm = store.gather("norm", positions).astype(np.float64)
        if self._dims < self._slabs.dim:
            row_rest = store.gather(f"norm.rest.{self._dims}", positions).astype(np.float64)
        else:
            row_rest = np.zeros_like(row_norm)
        if self._plain_product:
            query_rest = np.divide(query_rest, query_norm, out=np.zeros_like(query_rest), where=query_norm > 0)
            row_rest = np.divide(row_rest, row_norm, out=np.zeros_like(row_rest), where=row_norm > 0)
        score = estimates.astype(np.float64)
        if self._metric == "l2":
            # The rests are at least the difference and at most the sum of their norms apart. Norms that are rounded upwards
            # could make the difference too large; its error is far below the slack.
            low, high = score + (query_rest - row_rest) ** 2, score + (query_rest + row_rest) ** 2
        else:
            low, high = score - query_rest * row_rest, score + query_rest * row_rest
        slack = self._rounding(query_norm, row_norm)
        bounds = Bounds(_downward(low - slack), -_downward(-high - slack))
        # Once a sum has overflowed, what it stood for is lost.
        bounds.low[np.isinf(estimates)], bounds.high[np.isinf(estimates)] = -np.inf, np.inf
        return bounds

    def _cut(self, queries: F32) -> F32:
        return np.ascontiguousarray(queries[:, : self._dims])

    def _rounding(self, query_norm: np.ndarray, row_norm: np.ndarray) -> np.ndarray:
        """More than two canonical scores, of the prefix and of the whole, and the norms can be off by rounding (docs/architecture.md)."""
        unit = 4.0 * (self._slabs.dim + 8) * 2.0**-24
        query_norm, row_norm = np.hypot(query_norm, 1e-15), np.hypot(row_norm, 1e-15)
        if self._metric == "l2":
            return np.asarray(unit * (query_norm + row_norm) ** 2)
        return np.asarray(unit * query_norm * row_norm) if self._metric == "ip" else np.full_like(row_norm, unit)


def _norm(backend: Backend, queries: F32, upward: bool = False) -> F32:
    out = np.zeros(len(queries), np.float32)
    if queries.shape[1]:
        backend.dense_norms("float32", [queries], out, upward)
    return out


def _downward(values: np.ndarray) -> F32:
    """The next float32 below, or the nearest where that is infinite already."""
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf))
