"""Sign bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .. import flat
from ..arrays import block_rows, ranges
from ..backends import current
from ..execution import progress_bar
from ..flat import HammingFamily
from ..functional import squeezed
from ..types import F32, MAX_DIM, U8, Array, Metric, Neighbors
from ..validation import as_codes, as_int, as_k, as_mask, as_threads, check_rotation
from . import itq
from .base import SAMPLE_BYTES, Quantizer, some_rows, taken
from .directions import ROTATIONS, Directions, Rotation


class BinaryQuantizer(Quantizer):
    """One bit per dim: whether the element is greater than zero.

    Ranks by the Hamming distance h between the codes of query and row. For vectors in random directions the expected share of
    differing signs is their angle divided by pi, so ``cos(pi h / bits)`` estimates their cosine c. Scores are c, ``|q| c`` for
    inner products and ``1 + |q|**2 - 2 |q| c`` for l2: estimates for rows of unit length. (Charikar, "Similarity estimation
    techniques from rounding algorithms", 2002.)

    With a rotation, bits are signs of the coordinates along other directions, as seen from the mean of the rows that were learned from.
    Scores then suit rows that are as far from the mean as those were.

    Parameters
    ----------
    bits : int, optional
        By default one per dim; otherwise only the first ``bits`` dims, or directions, give bits.
    metric : {"ip", "cosine", "l2"}
        What scores estimate; the order is that of the distance in any case, except that for l2 the best scores are the smallest.
    rotation : {"itq", "random", "dims"} or None
        "dims": the dims as they are, each with the mean of the rows as its threshold. "itq": directions whose signs tell the most of the
        rows, learned (Gong and Lazebnik, "Iterative quantization", 2011). "random": directions of no account, so that no dim tells more
        than another.
    seed : int
        Of random directions, and of the rows that are learned from where there are many. The same seed gives the same directions on every
        backend, and with "itq" wherever the linear algebra of NumPy is the same.

    Attributes
    ----------
    directions : Directions or None
        What was learned for a rotation: ``matrix`` (bits, D), ``mean`` (D,), ``radius``.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.float32([[1, 1], [1, -1], [-1, -1]])
    >>> quantizer = asx.BinaryQuantizer(metric="cosine").fit(rows)
    >>> codes = quantizer.encode(rows)
    >>> quantizer.top_k([2.0, 3.0], codes, k=3).ids
    array([0, 1, 2])
    >>> far = rows + np.float32(10)
    >>> asx.BinaryQuantizer().fit(far).encode(far).ravel().tolist()
    [192, 192, 192]
    >>> len(set(asx.BinaryQuantizer(rotation="itq").fit(far).encode(far).ravel().tolist()))
    3
    """

    def __init__(self, bits: int | None = None, metric: Metric = "ip", rotation: Rotation | None = None, *, seed: int = 0) -> None:
        super().__init__(metric)
        self._asked = None if bits is None else as_int(bits, "bits", 1)
        check_rotation(rotation, *ROTATIONS)
        self.rotation = rotation
        self.seed = as_int(seed, "seed", 0)
        self.directions: Directions | None = None

    def __repr__(self) -> str:
        more = f", rotation={self.rotation!r}" if self.rotation else ""
        return f"BinaryQuantizer(bits={self._asked}, metric={self.metric!r}{more})"

    @property
    def bits(self) -> int:
        """Bits of a code; 0 before `fit` if not given."""
        return self.dim if self._asked is None else self._asked

    @property
    def code_bytes(self) -> int:
        return -(-self.bits // 8)

    def fit(self, X: Any, *, progress: bool = False) -> Self:
        """Learn how many dims rows (n, D) have; signs of dims need nothing else. For a rotation, learn from up to 65,536 rows, fewer
        where there are more than 550 bits."""
        matrix = self._sample(X)
        self._check_bits(matrix.dim)
        directions = None
        if self.rotation is not None:
            bits = matrix.dim if self._asked is None else self._asked
            most = min(itq.rows_wanted(bits), max(1, SAMPLE_BYTES // (4 * matrix.dim)))
            points = self._compared(self._vectors(matrix, some_rows(len(matrix), most, self.seed)))
            with progress_bar(progress, "Learning directions", "rounds") as report:
                directions = Directions.learned(self.rotation, points, bits, self.seed, report)
        self.directions, self.dim = directions, matrix.dim
        return self

    def _check_bits(self, dim: int) -> None:
        if self._asked is not None and self._asked > dim:
            raise ValueError(f"bits: expected at most one per dim ({dim}), got {self._asked}")

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> U8:
        """Codes (N, code_bytes) uint8, packed as by ``np.packbits(bits, axis=1)``."""

        def encode(vectors: F32, codes: Array) -> None:
            codes[:] = self._signs(self._compared(vectors))

        return self._encoded(X, np.uint8, encode, threads, progress)

    def _scaled(self, vectors: F32) -> F32:
        # Scaling to unit length could round the smallest elements to 0 and change their bit, so that it is left to `_compared`.
        return vectors

    def _compared(self, vectors: F32) -> F32:
        """Vectors (n, D) as they are compared with the mean."""
        return vectors if self.rotation is None else super()._scaled(vectors)

    def _signs(self, vectors: F32) -> U8:
        if self.directions is not None:
            return self.directions.codes(vectors)
        return np.packbits(vectors[:, : self.bits] > 0, axis=1)

    def decode(self, codes: Any) -> F32:
        """Vectors (N, D) of unit length with the signs of the code; dims without a bit are 0. With a rotation: the mean, and from there as
        far along the signs as rows are from it."""
        self._check_fitted()
        array = as_codes(codes, "codes", self.code_bytes)
        size = np.float32(1 / np.sqrt(self.bits))
        out = np.zeros((len(array), self.dim), np.float32)
        for first, last in ranges(len(array), block_rows(4 * self.dim)):
            signs = np.unpackbits(array[first:last], axis=1, count=self.bits)
            if self.directions is not None:
                out[first:last] = self.directions.decoded(signs)
            else:
                out[first:last, : self.bits] = np.where(signs, size, -size)
        return out

    def query_codes(self, queries: F32) -> U8:
        """Codes of checked float32 queries (Q, D)."""
        return self._signs(queries if self.directions is None else self.directions.asked(queries, self.metric))

    def estimates(self, queries: F32, distances: F32) -> F32:
        """Scores in the metric's units for Hamming distances (Q, k) of checked float32 queries (Q, D); NaN stays NaN, and
        what is beyond float32 is infinite."""
        cosines = np.cos(np.pi / self.bits * distances.astype(np.float64))
        norms = np.empty(len(queries), np.float32)
        current().dense_norms("float32", [queries], norms)
        lengths = norms.astype(np.float64)[:, np.newaxis]
        if self.directions is not None:
            base, step = self.directions.line(queries, self.metric)
            scores = base[:, np.newaxis] + step[:, np.newaxis] * cosines
        elif self.metric == "cosine":
            scores = np.where(lengths > 0, cosines, np.where(np.isnan(cosines), np.nan, 0.0))
        elif self.metric == "ip":
            scores = lengths * cosines
        else:
            scores = 1.0 + lengths * lengths - 2.0 * lengths * cosines
        with np.errstate(over="ignore"):
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
            Scores estimate the metric for rows of unit length; with a rotation, for rows as far from the mean as those learned from.
        """
        batch, single = self._queries(queries)
        rows = as_codes(codes, "codes", self.code_bytes)
        family = HammingFamily(current(), rows, self.query_codes(batch), self.bits)
        allowed = as_mask(mask, len(batch), len(rows))
        found = flat.top_k(family, as_k(k), allowed, as_threads(threads))
        return squeezed(Neighbors(found.ids, self.estimates(batch, found.scores)), single)

    def state(self) -> dict[str, Array]:
        if not self.fitted:
            return {}
        learned = {} if self.directions is None else self.directions.state()
        return {"shape": np.array([self.dim, self.bits], np.int64), **learned}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        shape = taken(state, "shape", np.int64, 1)
        if len(shape) != 2 or not 1 <= shape[1] <= shape[0] <= MAX_DIM:
            raise ValueError(f"state: expected 'shape' to be (dim, bits), got {shape[:4].tolist()}")
        dim, bits = shape.tolist()
        directions = Directions.of_state(state, bits, dim) if "directions" in state else None
        quantizer = cls(bits, metric, None if directions is None else directions.kind)
        quantizer.dim, quantizer.directions = dim, directions
        return quantizer
