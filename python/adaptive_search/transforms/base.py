"""What all transforms have in common: the verbs, and checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from ..execution import run_ranges
from ..types import F32, MAX_DIM, Array
from ..validation import as_batch, as_float32, as_queries

RANGE_ROWS = 256
"""Vectors that are transformed together, at least."""


class Transform(ABC):
    """A map of vectors, the same bits on every backend and in every batch.

    Attributes
    ----------
    dim : int
        Dims of the vectors it was fitted to; 0 before.
    dims_out : int
        Dims of what it returns; 0 before.
    orthogonal : bool
        Whether inner products of transformed vectors are those of the vectors, up to rounding, as long as all dims are kept.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    """Attributes that are arguments of the class."""

    @property
    def orthogonal(self) -> bool:
        return False

    def __init__(self) -> None:
        self.dim = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.parameters)})"

    @property
    def fitted(self) -> bool:
        """Whether vectors can be transformed: `fit` was called, or there was nothing to learn."""
        return self.dim > 0

    @property
    def dims_out(self) -> int:
        return self.width(self.dim) if self.fitted else 0

    def width(self, dim: int) -> int:
        """Dims of what it makes of vectors of ``dim`` dims, fitted or not; a `ValueError` if it cannot be fitted to such."""
        return dim

    def fit(self, X: Any) -> Self:
        """Learn from rows (n, D), n from 1 up. One that was fitted before starts anew; one whose fit fails stays as it was.

        Raises
        ------
        TypeError, ValueError
            Naming the argument: a wrong shape or dtype, NaN or infinity, no row.
        """
        self.learn(sample_of(X), "X")
        return self

    def transform(self, X: Any) -> F32:
        """Vectors (n, D) or (D,) as (n, dims_out) or (dims_out,) float32.

        Raises
        ------
        TypeError, ValueError
            Naming the argument; also before `fit`, and for vectors that it would take beyond float32.
        """
        if not self.fitted:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit(X) first")
        vectors, single = as_queries(X, self.dim, "X")
        out = self.applied(vectors, "X")
        return out[0] if single else out

    def applied(self, vectors: F32, name: str, threads: int | None = None) -> F32:
        """Checked vectors (n, D), contiguous, as (n, dims_out); a `ValueError` for those that it takes beyond float32."""
        out = self.by_ranges(vectors, threads)
        finite = np.isfinite(out)
        if not finite.all():
            row = int((~finite.all(axis=1)).argmax())
            raise ValueError(f"{name}: row {row} holds a number too large for float32 once transformed")
        return out

    def by_ranges(self, vectors: F32, threads: int | None = None) -> F32:
        """What `apply` gives, range by range: on several threads, within their caches, and with Ctrl-C in between."""
        out = np.empty((len(vectors), self.dims_out), np.float32)

        def work(first: int, last: int) -> None:
            out[first:last] = self.apply(vectors[first:last])

        run_ranges(work, len(vectors), threads=threads, grain=RANGE_ROWS)
        return out

    def spec(self) -> dict[str, Any]:
        """What it was made with, as plain values, for a file: `transform_of` reads them."""
        return {"transform": type(self).__name__, **{name: getattr(self, name) for name in self.parameters}}

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """What was learned, as arrays; empty before."""

    @classmethod
    def from_state(cls, state: Mapping[str, Array], spec: Mapping[str, Any]) -> Self:
        """The transform whose `state` and `spec` these are; a `TypeError` or `ValueError` if they cannot be that."""
        made = cls(**{name: value for name, value in spec.items() if name != "transform"})
        if state:
            made.restore(state)
        return made

    @abstractmethod
    def restore(self, state: Mapping[str, Array]) -> None:
        """Become fitted by what `state` gave; a `ValueError`, and no change, if it does not go with what this was made with."""

    @abstractmethod
    def learn(self, sample: F32, name: str) -> None:
        """`fit` to checked rows; errors call them ``name``."""

    @abstractmethod
    def apply(self, vectors: F32) -> F32:
        """Checked vectors (n, D), contiguous, as (n, dims_out): infinite or NaN where that is beyond float32."""


def sample_of(X: Any, name: str = "X") -> F32:
    """Rows to be fitted to, as finite float32 (n, D)."""
    batch, single = as_batch(X, name)
    if single or not len(batch) or not 1 <= batch.shape[1] <= MAX_DIM:
        shape = batch.shape[1:] if single else batch.shape
        raise ValueError(f"{name}: expected at least one row of 1 to {MAX_DIM:,} dims to fit to, got shape {shape}")
    return np.ascontiguousarray(as_float32(batch, name))


def state_array(state: Mapping[str, Array], name: str, shape: tuple[int | None, ...]) -> F32:
    """One array of a state, checked: finite float32 of a shape, in which None stands for any length from 1 up."""
    array = state.get(name)
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != np.float32
        or array.ndim != len(shape)
        or not array.size
        or any(length not in (None, came) for length, came in zip(shape, array.shape, strict=True))
    ):
        came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)
        expected = ", ".join("n" if length is None else str(length) for length in shape)
        raise ValueError(f"state: expected {name!r} to be float32 of shape ({expected}), got {came}")
    if not np.isfinite(array).all():
        raise ValueError(f"state: {name!r} holds NaN or infinity")
    return np.ascontiguousarray(array)


def only(state: Mapping[str, Array], *names: str) -> None:
    """A `ValueError` unless a state has these arrays and no others."""
    if state.keys() != set(names):
        raise ValueError(f"state: expected {', '.join(names)}, got {', '.join(map(repr, state))[:200]}")
