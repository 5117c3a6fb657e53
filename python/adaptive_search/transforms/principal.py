"""Principal directions, as a rotation or scaled to equal variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from ..backends import current
from ..rotations import principal_directions, rotated
from ..types import F32, Array
from ..validation import as_float, as_int
from .base import Transform, state_array


class _Linear(Transform):
    """Products of vectors, minus a center, with the rows of a matrix."""

    def __init__(self, dims: int | None, center: bool) -> None:
        super().__init__()
        self.dims = None if dims is None else as_int(dims, "dims", 1)
        if not isinstance(center, bool | np.bool_):
            raise TypeError(f"center: expected True or False, got {center!r}")
        self.center = bool(center)
        self.matrix: F32 = np.empty((0, 0), np.float32)
        self.mean: F32 = np.empty(0, np.float32)

    @property
    def dims_out(self) -> int:
        return len(self.matrix)

    def state(self) -> dict[str, Array]:
        return {"matrix": self.matrix, "mean": self.mean} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        matrix, mean = state_array(state, "matrix", 2), state_array(state, "mean", 1)
        if mean.shape != (matrix.shape[1],):
            raise ValueError(f"state: expected a mean of {matrix.shape[1]} dims, got {mean.shape}")
        made = cls(len(matrix))  # type: ignore[call-arg]
        made.center = bool(mean.any())
        made._install(matrix, mean)
        return made

    def _directions(self, sample: F32) -> tuple[F32, F32]:
        """The first principal directions, and the mean that is taken off."""
        dims = sample.shape[1] if self.dims is None else self.dims
        if dims > sample.shape[1]:
            raise ValueError(f"X: expected at least {dims} dims, got shape {sample.shape}")
        mean = np.zeros(sample.shape[1], np.float32)
        if self.center:
            mean[:] = sample.mean(axis=0, dtype=np.float64)
        return principal_directions(sample - mean, dims), mean

    def _install(self, matrix: F32, mean: F32) -> None:
        self.matrix, self.mean, self.dim = np.ascontiguousarray(matrix), mean, matrix.shape[1]

    def _transformed(self, vectors: F32) -> F32:
        return rotated(current(), vectors - self.mean if self.center else vectors, self.matrix)


class PCA(_Linear):
    """Coordinates along the principal directions, those of the largest variance first, so that prefixes of any embedding tell much.

    (H. Hotelling, "Analysis of a complex of statistical variables into principal components", 1933.)

    Parameters
    ----------
    dims : int, optional
        How many directions to keep; all by default.
    center : bool
        Take the mean off first. Inner products then are those of centered vectors; without, they stay as they are.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> pca = asx.PCA().fit(np.float32([[0, 2], [1, 0], [0, -3]]))
    >>> pca.transform([[0.0, 1.0], [1.0, 0.0]]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, dims: int | None = None, center: bool = False) -> None:
        super().__init__(dims, center)

    @property
    def orthogonal(self) -> bool:
        return not self.center

    def __repr__(self) -> str:
        return f"PCA(dims={self.dims}, center={self.center})"

    def _fit(self, sample: F32) -> None:
        self._install(*self._directions(sample))


class Whitening(_Linear):
    """Principal coordinates divided by their standard deviations: all dims then vary alike, and none is of a piece with another.

    Parameters
    ----------
    dims : int, optional
        How many directions to keep; all by default.
    ridge : float
        Added to every variance, as a part of the mean variance: directions that hardly vary would otherwise become noise.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32) * np.float32([9, 3, 1, 0.3])
    >>> np.round(asx.Whitening(ridge=0.0).fit(rows).transform(rows).std(axis=0), 2).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, dims: int | None = None, ridge: float = 1e-3) -> None:
        super().__init__(dims, True)
        self.ridge = as_float(ridge, "ridge", 0.0)

    def __repr__(self) -> str:
        return f"Whitening(dims={self.dims}, ridge={self.ridge})"

    def _fit(self, sample: F32) -> None:
        directions, mean = self._directions(sample)
        variances = np.square(rotated(current(), sample - mean, directions), dtype=np.float64).mean(axis=0)
        total = np.square(sample - mean, dtype=np.float64).mean()
        floor = max(self.ridge * float(total), 1e-30)
        self._install((directions / np.sqrt(variances + floor)[:, None]).astype(np.float32), mean)
