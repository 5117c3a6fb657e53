"""Product quantization: a row becomes the numbers of its nearest codewords in M subspaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from .. import flat
from ..arrays import block_rows, ranges
from ..backends import current
from ..execution import progress_bar
from ..functional import best_rows, plain_threads
from ..rotations import is_orthogonal, rotated
from ..types import F32, I32, I64, MAX_DIM, U8, Array, Metric, Neighbors
from ..validation import (
    as_codes,
    as_float,
    as_float32,
    as_int,
    as_matrix,
    as_ndarray,
    check_elements,
    check_rotation,
)
from . import anisotropic, balanced as balancing, kmeans, opq
from .base import SAMPLE_BYTES, Quantizer, some_rows, taken
from .packed import PackedCodes, PackedFamily, code_bytes

POINTS_PER_CODEWORD = 256


class ProductQuantizer(Quantizer):
    """Codes of M numbers per row, one for each of M subspaces of ceil(D / M) dims (Jégou et al., "Product quantization for nearest
    neighbor search", 2011).

    A score is the sum of M table entries: products of the query's parts with the codewords, or their squared distances for l2. It is the
    exact metric between query and decoded row, and estimates that of the row.

    Parameters
    ----------
    subspaces : int
        M.
    bits : {8, 4}
        256 or 16 codewords per subspace.
    metric : {"ip", "cosine", "l2"}
        What scores estimate. With "cosine" rows and queries are scaled to unit length first.
    rotation : {"opq"} or None
        Learn an orthogonal map together with the codebooks and code what it makes of the rows, so that more of them is kept (Ge et al.,
        "Optimized product quantization", 2013). On what it learns from, the error is never larger than without. Queries are turned too,
        decoded rows turned back: scores stay those of the rows.
    anisotropy : float
        How many times as much as an error across the row an error along it counts, from 1 up; not for l2 (Guo et al., "Accelerating
        large-scale inference with anisotropic vector quantization", 2020). For sentence embeddings 4 does well. Decoded rows are farther
        from the rows than with 1, but their inner products with what points in much the same direction are nearer to the truth.
    balanced : bool
        Train codewords that are used more nearly alike (see `codeword_use`), at some cost in error where rows are unevenly spread:
        codes then tell more rows apart (Zhan et al., "RepCONC", 2022). Rows are encoded by their nearest codewords as ever. Not with
        ``anisotropy``.
    seed : int
        Which random points the codebooks grow from. The same seed gives the same codebooks everywhere, and with a rotation wherever
        the linear algebra of NumPy is the same.
    iterations : int
        Most rounds of k-means.

    Attributes
    ----------
    codebooks : ndarray of float32, shape (M, 2**bits, ceil(D / M))
        The codewords; where the last subspaces end beyond D, the rest is 0.
    rotation_matrix : ndarray of float32, shape (D, D), or None
        Coordinates that are coded are products with its rows.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((500, 8), dtype=np.float32)
    >>> quantizer = asx.ProductQuantizer(4, bits=4).fit(rows)
    >>> codes = quantizer.encode(rows)
    >>> codes.shape
    (500, 2)
    >>> found = quantizer.top_k(rows[:2], quantizer.pack(codes), k=5)
    >>> np.array_equal(found.ids, quantizer.top_k(rows[:2], codes, k=5).ids)
    True
    """

    def __init__(
        self,
        subspaces: int,
        bits: int = 8,
        metric: Metric = "ip",
        *,
        rotation: Literal["opq"] | None = None,
        anisotropy: float = 1.0,
        balanced: bool = False,
        seed: int = 0,
        iterations: int = 20,
    ) -> None:
        super().__init__(metric)
        self.subspaces = as_int(subspaces, "subspaces", 1, MAX_DIM)
        self.bits = as_int(bits, "bits", 1)
        if self.bits not in (4, 8):
            raise ValueError(f"bits: expected 4 or 8, got {bits}")
        check_rotation(rotation, "opq")
        self.rotation: Literal["opq"] | None = rotation
        self.anisotropy = as_float(anisotropy, "anisotropy", 1.0)
        if self.anisotropy > 1.0 and self.metric == "l2":
            raise ValueError("anisotropy: expected 1 for l2, where errors count alike in all directions")
        if not isinstance(balanced, bool | np.bool_):
            raise TypeError(f"balanced: expected True or False, got {balanced!r}")
        if balanced and self.anisotropy > 1.0:
            raise ValueError("balanced: expected False with anisotropy, which moves codewords in its own way")
        self.balanced = bool(balanced)
        self._seed = as_int(seed, "seed", 0)
        self._iterations = as_int(iterations, "iterations", 1)
        self.codebooks: F32 = np.empty((self.subspaces, 1 << self.bits, 0), np.float32)
        self.rotation_matrix: F32 | None = None

    def __repr__(self) -> str:
        more = f", rotation={self.rotation!r}" if self.rotation else ""
        more += f", anisotropy={self.anisotropy!r}" if self.anisotropy > 1.0 else ""
        more += ", balanced=True" if self.balanced else ""
        return f"ProductQuantizer({self.subspaces}, bits={self.bits}, metric={self.metric!r}{more})"

    @property
    def code_bytes(self) -> int:
        return code_bytes(self.subspaces, self.bits)

    def fit(self, X: Any, *, rotation_rows: int | None = None, threads: int | None = None, progress: bool = False) -> Self:
        """Learn codebooks from rows (n, D), or from a random 256 per codeword where there are more; a rotation, or with
        anisotropy, from up to 65,536.

        ``rotation_rows`` is the most of them that the rotation is learned from: fewer take less time in proportion, and keep a little less.
        """
        most_turned = None if rotation_rows is None else as_int(rotation_rows, "rotation_rows", 1)
        matrix = self._sample(X)
        if self.subspaces > matrix.dim:
            raise ValueError(f"X: expected at least one dim for each of {self.subspaces} subspaces, got shape {matrix.array.shape}")
        codewords = 1 << self.bits
        wanted = POINTS_PER_CODEWORD * (256 if self.rotation or self.anisotropy > 1.0 else codewords)
        most = min(wanted, max(8 * codewords, SAMPLE_BYTES // (4 * matrix.dim)))
        points = self._vectors(matrix, some_rows(len(matrix), most, self._seed))
        with progress_bar(progress, "Training codebooks", "rounds" if self.rotation else "subspaces") as report:
            asked = (points, self.subspaces, codewords, self._iterations, self._seed, threads, report)
            rotation, codebooks = opq.train(*asked, most_turned) if self.rotation else (None, kmeans.train(*asked))
        if self.anisotropy > 1.0 or self.balanced:
            turned = points if rotation is None else rotated(current(), points, rotation)
            if self.balanced:
                with progress_bar(progress, "Balancing codebooks", "subspaces") as report:
                    balancing.train(turned, codebooks, threads, report)
            else:
                with progress_bar(progress, "Training codebooks along rows", "rounds") as report:
                    anisotropic.train(turned, codebooks, self.anisotropy, threads, report)
        self.rotation_matrix, self.codebooks, self.dim = rotation, codebooks, matrix.dim
        return self

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> U8:
        """Row-major codes (N, code_bytes) uint8; with 4 bits two codes share a byte, the low nibble being the even subspace."""

        backend = current()

        def encode(vectors: F32, codes: Array) -> None:
            nearest = np.empty((len(vectors), self.subspaces), np.int32)
            if self.anisotropy > 1.0:
                anisotropic.assign(self._turned(vectors), self.codebooks, self.anisotropy, nearest)
            else:
                backend.pq_assign(self._turned(vectors), self.codebooks, nearest)
            self._write(nearest, codes)

        return self._encoded(X, np.uint8, encode, threads, progress)

    def nearest_codes(self, points: F32) -> U8:
        """Row-major codes of checked float32 points (n, D) as they are: of any length, and without regard to the anisotropy."""
        nearest, codes = np.empty((len(points), self.subspaces), np.int32), np.empty((len(points), self.code_bytes), np.uint8)
        current().pq_assign(self._turned(points), self.codebooks, nearest)
        self._write(nearest, codes)
        return codes

    def _write(self, nearest: I32, codes: Array) -> None:
        """Codes (n, code_bytes) of codeword numbers (n, M)."""
        if self.bits == 8:
            codes[:] = nearest
        else:
            codes[:] = nearest[:, ::2]
            codes[:, : self.subspaces // 2] |= nearest[:, 1::2].astype(np.uint8) << 4

    def decode(self, codes: Any) -> F32:
        """The rows (N, D) that codes (row-major or packed) stand for."""
        self._check_fitted()
        array = self._codes(codes)
        array = array.unpack() if isinstance(array, PackedCodes) else array
        out = np.empty((len(array), self.dim), np.float32)
        back = None if self.rotation_matrix is None else np.ascontiguousarray(self.rotation_matrix.T)
        for first, last in ranges(len(array), block_rows(4 * self.codebooks.shape[2] * self.subspaces)):
            part = kmeans.decoded(self.codebooks, self._numbers(array[first:last]), self.dim)
            out[first:last] = part if back is None else rotated(current(), part, back)
        return out

    def codeword_use(self, codes: Any) -> I64:
        """How many codes (row-major or packed) name each codeword: (M, 2**bits).

        Examples
        --------
        The perplexity of a subspace is the number of codewords that would tell as much if all were used alike.

        >>> import numpy as np, adaptive_search as asx
        >>> rows = np.random.default_rng(0).standard_normal((500, 8), dtype=np.float32)
        >>> quantizer = asx.ProductQuantizer(2, bits=4).fit(rows)
        >>> use = quantizer.codeword_use(quantizer.encode(rows))
        >>> use.shape, use.sum(axis=1).tolist(), bool(use.all())
        ((2, 16), [500, 500], True)
        >>> shares = np.maximum(use / use.sum(axis=1, keepdims=True), 1e-12)
        >>> bool((np.exp(-(shares * np.log(shares)).sum(axis=1)) > 14).all())
        True
        """
        self._check_fitted()
        array = self._codes(codes)
        array = array.unpack() if isinstance(array, PackedCodes) else array
        counts = np.zeros((self.subspaces, 1 << self.bits), np.int64)
        for first, last in ranges(len(array), block_rows(self.subspaces)):
            for count, named in zip(counts, self._numbers(array[first:last]).T, strict=True):
                count += np.bincount(named, minlength=len(count))
        return counts

    def _numbers(self, codes: U8) -> U8:
        """Codeword numbers (n, M) of row-major codes."""
        if self.bits == 8:
            return codes
        return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)[:, : self.subspaces]

    def _turned(self, vectors: F32) -> F32:
        """The coordinates (n, D) that are coded."""
        return vectors if self.rotation_matrix is None else rotated(current(), vectors, self.rotation_matrix)

    def pack(self, codes: Any) -> PackedCodes:
        """Row-major codes in the layout that scans fastest."""
        self._check_fitted()
        return PackedCodes.of(as_codes(codes, "codes", self.code_bytes), self.subspaces, self.bits)

    def tables(self, queries: Any) -> F32:
        """What every codeword adds to the score of every query: (Q, M, 2**bits), or (M, 2**bits) for a single query (D,)."""
        batch, single = self._queries(queries)
        tables = self.query_tables(batch)
        return tables[0] if single else tables

    def query_tables(self, queries: F32) -> F32:
        """`tables` of checked float32 queries (Q, D), of unit length for cosine."""
        tables = np.empty((len(queries), *self.codebooks.shape[:2]), np.float32)
        if not current().pq_tables(self._turned(queries), self.codebooks, self.metric == "l2", tables):
            finite = np.isfinite(tables).all(axis=(1, 2))
            raise ValueError(f"queries: scores of row {int((~finite).argmax())} are too large for float32")
        return tables

    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows with the best estimated score for every query, in the exact order of the float32 tables, ties by row number.

        Parameters
        ----------
        queries : array_like, shape (Q, D) or (D,)
            Floats.
        codes : array_like of uint8, shape (N, code_bytes), or PackedCodes
            What `encode` or `pack` gave. Row-major codes are packed block by block at every call.
        k, mask, threads
            As for `adaptive_search.top_k`.
        """
        self._check_fitted()
        if isinstance(codes, PackedCodes) and self._packs(codes) and self._asks_plainly and mask is None and plain_threads(threads):
            squared = self.metric == "l2"
            plain = current().plain_pq_top_k(queries, codes.data, codes.rows, self.codebooks, self.dim, squared, k, flat.SMALL_LOOKUPS)
            if plain is not None:
                return Neighbors._make(plain)
        batch, single = self._queries(queries)
        rows = self._codes(codes)
        entries = 4 * self.subspaces << self.bits
        family = PackedFamily(current(), batch, rows, self.metric != "l2", entries, self.pack, lambda some: (self.query_tables(some), None))
        return best_rows(family, k, mask, threads, single)

    def _packs(self, codes: PackedCodes) -> bool:
        """Whether they can be this quantizer's."""
        return (codes.subspaces, codes.bits) == (self.subspaces, self.bits) and codes.factors is None

    @property
    def _asks_plainly(self) -> bool:
        """Whether tables are made of queries as they are."""
        return self.rotation_matrix is None and self.metric != "cosine"

    def _codes(self, codes: Any) -> U8 | PackedCodes:
        if not isinstance(codes, PackedCodes):
            return as_codes(codes, "codes", self.code_bytes)
        if not self._packs(codes):
            raise ValueError(f"codes: expected {self.subspaces} subspaces of {self.bits} bits, got {codes!r}")
        return codes

    def state(self) -> dict[str, Array]:
        if not self.fitted:
            return {}
        state: dict[str, Array] = {"codebooks": self.codebooks, "dim": np.array([self.dim], np.int64)}
        if self.rotation_matrix is not None:
            state["rotation"] = self.rotation_matrix
        if self.anisotropy > 1.0:
            state["anisotropy"] = np.array([self.anisotropy])
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        codebooks = taken(state, "codebooks", np.float32, 3)
        dims = taken(state, "dim", np.int64, 1)
        if len(dims) != 1:
            raise ValueError(f"state: expected one 'dim', got {len(dims)}")
        rotation = taken(state, "rotation", np.float32, 2) if "rotation" in state else None
        anisotropy = taken(state, "anisotropy", np.float64, 1) if "anisotropy" in state else np.ones(1)
        if len(anisotropy) != 1:
            raise ValueError(f"state: expected one 'anisotropy', got {len(anisotropy)}")
        try:
            return cls.from_codebooks(codebooks, int(dims[0]), rotation, metric, float(anisotropy[0]))
        except ValueError as error:
            raise ValueError(f"state: {error}") from None

    @classmethod
    def from_codebooks(
        cls, codebooks: Any, dim: int | None = None, rotation: Any = None, metric: Metric = "ip", anisotropy: float = 1.0
    ) -> Self:
        """A quantizer that was trained elsewhere. Codes made elsewhere are those of `encode`: a byte for each subspace, or half a byte,
        the low half being the even subspace.

        Parameters
        ----------
        codebooks : array_like of floats, shape (M, 16 or 256, ceil(D / M))
            The codewords, the number in a code being the second index.
        dim : int, optional
            D; by default the dims of all subspaces together. What the last subspaces have beyond it has to be 0.
        rotation : array_like of floats, shape (D, D), optional
            An orthogonal matrix: coordinates that are coded are products with its rows.
        metric : {"ip", "cosine", "l2"}
            As for the constructor. "cosine" needs codebooks of rows of unit length.
        anisotropy : float
            As for the constructor: how rows are encoded.

        Raises
        ------
        TypeError, ValueError
            Naming the argument: another shape, NaN or infinity, a matrix that is not orthogonal.

        Examples
        --------
        Of faiss, after ``pq = faiss.ProductQuantizer(384, 48, 8)`` and its training, these would be
        ``faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)``, and the rotation of an ``opq = faiss.OPQMatrix(384, 48)``
        ``faiss.vector_to_array(opq.A).reshape(384, 384)``.

        >>> import numpy as np, adaptive_search as asx
        >>> codebooks = np.arange(32, dtype=np.float32).reshape(2, 16, 1)
        >>> quantizer = asx.ProductQuantizer.from_codebooks(codebooks, rotation=[[0.0, 1.0], [1.0, 0.0]])
        >>> quantizer.encode([[19.0, 3.2]]).tolist(), quantizer.decode(np.uint8([[0x33]])).tolist()
        ([[51]], [[19.0, 3.0]])
        """
        books = as_ndarray(codebooks, "codebooks")
        check_elements(books, "codebooks")
        if books.ndim != 3 or books.shape[1] not in (16, 256):
            raise ValueError(f"codebooks: expected shape (M, 16 or 256, ceil(D / M)), got {books.shape}")
        subspaces, codewords, width = books.shape
        dim = subspaces * width if dim is None else as_int(dim, "dim", 1)
        if not 1 <= subspaces <= dim <= MAX_DIM or width != -(-dim // subspaces):
            raise ValueError(f"codebooks: expected shape (M, 16 or 256, ceil(D / M)) for D = {dim}, got {books.shape}")
        kind: Literal["opq"] | None = None if rotation is None else "opq"
        quantizer = cls(subspaces, 8 if codewords == 256 else 4, metric, rotation=kind, anisotropy=anisotropy)
        quantizer.codebooks = as_float32(books.reshape(-1, width), "codebooks").reshape(books.shape).copy()
        if quantizer.codebooks.transpose(1, 0, 2).reshape(codewords, -1)[:, dim:].any():
            raise ValueError(f"codebooks: expected 0 beyond dim {dim}")
        if rotation is not None:
            quantizer.rotation_matrix = _orthogonal(rotation, dim)
        quantizer.dim = dim
        return quantizer


def _orthogonal(rotation: Any, dim: int) -> F32:
    matrix = as_matrix(rotation, "rotation", f"({dim}, {dim})")
    if matrix.shape != (dim, dim):
        raise ValueError(f"rotation: expected shape ({dim}, {dim}), got {matrix.shape}")
    matrix = np.array(as_float32(matrix, "rotation"), order="C")
    if not is_orthogonal(matrix):
        raise ValueError("rotation: expected an orthogonal matrix")
    return matrix
