"""What all transforms have in common: the verbs, checks, and chains of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Self

import numpy as np

from ..types import F32, MAX_DIM, Array
from ..validation import as_batch, as_float32, as_queries


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

    @property
    def orthogonal(self) -> bool:
        return False

    def __init__(self) -> None:
        self.dim = 0

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called, so that vectors can be transformed."""
        return self.dim > 0

    @property
    @abstractmethod
    def dims_out(self) -> int: ...

    def fit(self, X: Any) -> Self:
        """Learn from rows (n, D), n from 1 up. One that was fitted before starts anew; one whose fit fails stays as it was.

        Raises
        ------
        TypeError, ValueError
            Naming the argument: a wrong shape or dtype, NaN or infinity, no row.
        """
        self._fit(sample_of(X))
        return self

    def transform(self, X: Any) -> F32:
        """Vectors (n, D) or (D,) as (n, dims_out) or (dims_out,) float32.

        Raises
        ------
        TypeError, ValueError
            Naming the argument; also before `fit`.
        """
        if not self.fitted:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit(X) first")
        vectors, single = as_queries(X, self.dim, "X")
        out = self._transformed(np.ascontiguousarray(vectors))
        return out[0] if single else out

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """What was learned, as arrays; empty before `fit`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        """A fitted transform from what `state` gave; a `ValueError` if the arrays cannot be that."""

    @abstractmethod
    def _fit(self, sample: F32) -> None: ...

    @abstractmethod
    def _transformed(self, vectors: F32) -> F32: ...


def sample_of(X: Any, name: str = "X") -> F32:
    """Rows to be fitted to, as finite float32 (n, D)."""
    batch, single = as_batch(X, name)
    if single or not len(batch) or not 1 <= batch.shape[1] <= MAX_DIM:
        shape = batch.shape[1:] if single else batch.shape
        raise ValueError(f"{name}: expected at least one row of 1 to {MAX_DIM:,} dims to fit to, got shape {shape}")
    return np.ascontiguousarray(as_float32(batch, name))


class Chain(Transform):
    """Transforms one after another.

    Parameters
    ----------
    transforms : sequence of Transform
        At least one; each is fitted to what the one before returns.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
    >>> chain = asx.Chain([asx.PCA(16), asx.RandomRotation()]).fit(rows)
    >>> chain.transform(rows[0]).shape
    (16,)
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = tuple(transforms)
        if not self.transforms:
            raise ValueError("transforms: expected at least one, got none")
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise TypeError(f"transforms: expected transforms, got {transform!r}")

    @property
    def orthogonal(self) -> bool:
        return all(transform.orthogonal for transform in self.transforms)

    def __repr__(self) -> str:
        return f"Chain({list(self.transforms)!r})"

    @property
    def dims_out(self) -> int:
        return self.transforms[-1].dims_out if self.fitted else 0

    def state(self) -> dict[str, Array]:
        return {f"{number}.{name}": array for number, one in enumerate(self.transforms) for name, array in one.state().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        raise TypeError("state: a chain is made of its transforms: give each its own state")

    def _fit(self, sample: F32) -> None:
        # Copies, so that none has changed if a later one fails.
        fitted = tuple(copy(transform) for transform in self.transforms)
        for transform in fitted:
            transform._fit(sample)
            sample = transform._transformed(sample)
        self.transforms, self.dim = fitted, fitted[0].dim

    def _transformed(self, vectors: F32) -> F32:
        for transform in self.transforms:
            vectors = transform._transformed(vectors)
        return vectors


def state_array(state: Mapping[str, Array], name: str, ndim: int) -> F32:
    """One array of a state, checked: finite float32."""
    array = state.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != ndim or not array.size:
        came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)
        raise ValueError(f"state: expected {name!r} to be a {ndim}-D array of float32, got {came}")
    if not np.isfinite(array).all():
        raise ValueError(f"state: {name!r} holds NaN or infinity")
    return np.ascontiguousarray(array)
