"""Sign bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .. import flat
from ..backends import current
from ..flat import HammingFamily
from ..functional import squeezed
from ..types import F32, MAX_DIM, U8, Array, Metric, Neighbors
from ..validation import as_codes, as_int, as_k, as_mask, as_threads
from .base import Quantizer, taken


class BinaryQuantizer(Quantizer):
    """One bit per dim: whether the element is greater than zero.

    Ranks by the Hamming distance h between the codes of query and row. For vectors in random directions the expected share of
    differing signs is their angle divided by pi, so ``cos(pi h / bits)`` estimates their cosine c. Scores are c, ``|q| c`` for
    inner products and ``1 + |q|**2 - 2 |q| c`` for l2: estimates for rows of unit length. (Charikar, "Similarity estimation
    techniques from rounding algorithms", 2002.)

    Parameters
    ----------
    bits : int, optional
        Only the first ``bits`` dims give bits; by default all.
    metric : {"ip", "cosine", "l2"}
        What scores estimate; the order is that of the distance in any case, except that for l2 the best scores are the smallest.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.float32([[1, 1], [1, -1], [-1, -1]])
    >>> quantizer = asx.BinaryQuantizer(metric="cosine").fit(rows)
    >>> codes = quantizer.encode(rows)
    >>> quantizer.top_k([2.0, 3.0], codes, k=3).ids
    array([0, 1, 2])
    """

    def __init__(self, bits: int | None = None, metric: Metric = "ip") -> None:
        super().__init__(metric)
        self._asked = None if bits is None else as_int(bits, "bits", 1)

    def __repr__(self) -> str:
        return f"BinaryQuantizer(bits={self._asked}, metric={self.metric!r})"

    @property
    def bits(self) -> int:
        """Bits of a code; 0 before `fit` if not given."""
        return self.dim if self._asked is None else self._asked

    @property
    def code_bytes(self) -> int:
        return -(-self.bits // 8)

    def fit(self, X: Any, *, progress: bool = False) -> Self:
        """Learn how many dims rows (n, D) have; the signs need nothing else."""
        matrix = self._sample(X)
        self._check_bits(matrix.dim)
        self.dim = matrix.dim
        return self

    def _check_bits(self, dim: int) -> None:
        if self._asked is not None and self._asked > dim:
            raise ValueError(f"bits: expected at most one per dim ({dim}), got {self._asked}")

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> U8:
        """Codes (N, code_bytes) uint8, packed as by ``np.packbits(bits, axis=1)``."""

        def encode(vectors: F32, codes: Array) -> None:
            codes[:] = self.query_codes(vectors)

        return self._encoded(X, np.uint8, encode, threads, progress)

    def _scaled(self, vectors: F32) -> F32:
        # Scaling to unit length could round the smallest elements to 0 and change their bit, so it is left out.
        return vectors

    def decode(self, codes: Any) -> F32:
        """Vectors (N, D) of unit length with the signs of the code; dims without a bit are 0."""
        self._check_fitted()
        array = as_codes(codes, "codes", self.code_bytes)
        signs = np.unpackbits(array, axis=1, count=self.bits)
        size = np.float32(1 / np.sqrt(self.bits))
        out = np.zeros((len(array), self.dim), np.float32)
        out[:, : self.bits] = np.where(signs, size, -size)
        return out

    def query_codes(self, queries: F32) -> U8:
        """Codes of checked float32 queries (Q, D)."""
        return np.packbits(queries[:, : self.bits] > 0, axis=1)

    def estimates(self, queries: F32, distances: F32) -> F32:
        """Scores in the metric's units for Hamming distances (Q, k) of checked float32 queries (Q, D); NaN stays NaN."""
        cosines = np.cos(np.pi / self.bits * distances.astype(np.float64))
        norms = np.empty(len(queries), np.float32)
        current().dense_norms("float32", [queries], norms)
        lengths = norms.astype(np.float64)[:, np.newaxis]
        if self.metric == "cosine":
            scores = np.where(lengths > 0, cosines, np.where(np.isnan(cosines), np.nan, 0.0))
        elif self.metric == "ip":
            scores = lengths * cosines
        else:
            scores = 1.0 + lengths * lengths - 2.0 * lengths * cosines
        return scores.astype(np.float32)

    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows nearest to every query by Hamming distance, ties by row number.

        Parameters
        ----------
        queries : array_like, shape (Q, D) or (D,)
            Floats.
        codes : array_like of uint8, shape (N, code_bytes)
            What `encode` gave; used in place.
        k, mask, threads
            As for `hamming_top_k`.

        Returns
        -------
        Neighbors
            Scores estimate the metric for rows of unit length.
        """
        batch, single = self._queries(queries)
        rows = as_codes(codes, "codes", self.code_bytes)
        family = HammingFamily(current(), rows, self.query_codes(batch), self.bits)
        allowed = as_mask(mask, len(batch), len(rows))
        found = flat.top_k(family, as_k(k), allowed, as_threads(threads))
        return squeezed(Neighbors(found.ids, self.estimates(batch, found.scores)), single)

    def state(self) -> dict[str, Array]:
        return {"shape": np.array([self.dim, self.bits], np.int64)} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        shape = taken(state, "shape", np.int64, 1)
        if len(shape) != 2 or not 1 <= shape[1] <= shape[0] <= MAX_DIM:
            raise ValueError(f"state: expected 'shape' to be (dim, bits), got {shape[:4].tolist()}")
        quantizer = cls(int(shape[1]), metric)
        quantizer.dim = int(shape[0])
        return quantizer
