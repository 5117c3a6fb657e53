"""Coordinates relative to anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ..backends import current
from ..rotations import rotated
from ..types import F32, I64, Array
from ..validation import as_int
from .base import Transform, sample_of, state_array


class RelativeProjection(Transform):
    """Cosines with anchors: embeddings of different models become comparable when the anchors are the same things.

    (L. Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023.)

    Parameters
    ----------
    anchors : int, or array_like of shape (A, D)
        The anchors, or how many of the rows that it is fitted to become anchors: the first is the one farthest from their mean, each
        further one the farthest from all before, by the cosine.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> projection = asx.RelativeProjection(np.float32([[2, 0], [0, 5]])).fit(np.zeros((1, 2), np.float32))
    >>> [round(cosine, 4) for cosine in projection.transform([3.0, 4.0]).tolist()]
    [0.6, 0.8]
    """

    def __init__(self, anchors: Any) -> None:
        super().__init__()
        self._count: int | None = None
        self._given: F32 | None = None
        if np.ndim(anchors) == 0:
            self._count = as_int(anchors, "anchors", 1)
        else:
            self._given = sample_of(anchors, "anchors")
        self.anchors: F32 = np.empty((0, 0), np.float32)

    def __repr__(self) -> str:
        return f"RelativeProjection({self._count if self._given is None else self._given.shape})"

    @property
    def dims_out(self) -> int:
        return len(self.anchors)

    def state(self) -> dict[str, Array]:
        return {"anchors": self.anchors} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        made = cls(state_array(state, "anchors", 2))
        made._install(made._given)  # type: ignore[arg-type]
        return made

    def _fit(self, sample: F32) -> None:
        if self._given is not None:
            if self._given.shape[1] != sample.shape[1]:
                raise ValueError(f"X: expected {self._given.shape[1]} dims as the anchors have, got shape {sample.shape}")
            self._install(_units(self._given))
            return
        count = self._count or 1
        if count > len(sample):
            raise ValueError(f"X: expected at least {count} rows, one for each anchor, got shape {sample.shape}")
        units = _units(sample)
        self._install(units[_farthest(units, count)])

    def _install(self, anchors: F32) -> None:
        self.anchors, self.dim = np.ascontiguousarray(anchors), anchors.shape[1]

    def _transformed(self, vectors: F32) -> F32:
        return rotated(current(), _units(vectors), self.anchors)


def _units(vectors: F32) -> F32:
    out = np.empty_like(vectors)
    current().dense_unit(np.ascontiguousarray(vectors), out)
    return out


def _farthest(units: F32, count: int) -> I64:
    """Rows of unit vectors, each the farthest from those before."""
    chosen = [int((units @ units.mean(axis=0)).argmin())]
    nearest = units @ units[chosen[0]]
    while len(chosen) < count:
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
        np.maximum(nearest, units @ units[chosen[-1]], out=nearest)
    return np.array(chosen)
