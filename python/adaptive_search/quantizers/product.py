"""Product quantization: a row becomes the numbers of its nearest codewords in M subspaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .. import flat
from ..arrays import block_rows, ranges
from ..backends import current
from ..backends.protocol import Backend, Rows, Scan
from ..execution import progress_bar
from ..functional import squeezed
from ..types import F32, I64, MAX_DIM, U8, Array, Bool, Metric, Neighbors
from ..validation import as_codes, as_int, as_k, as_mask, as_threads
from . import kmeans
from .base import Quantizer, taken

BLOCK = 64
"""Rows of a block of the packed layout."""

POINTS_PER_CODEWORD = 256
SAMPLE_BYTES = 256 << 20


@dataclass(frozen=True)
class PackedCodes:
    """PQ codes in the blocked layout that scans fastest.

    Attributes
    ----------
    data : ndarray of uint8
        (blocks, M, 64) for 8 bits, (blocks, ceil(M / 2), 64) for 4 bits, the low nibble being the even subspace; rows that fill up
        the last block are 0.
    rows : int
        How many rows there are.
    subspaces, bits : int
        As in the quantizer.
    """

    data: U8
    rows: int
    subspaces: int
    bits: int

    def __post_init__(self) -> None:
        expected = (-(-self.rows // BLOCK), code_bytes(self.subspaces, self.bits), BLOCK)
        if self.data.dtype != np.uint8 or self.data.shape != expected or not self.data.flags.c_contiguous:
            raise ValueError(f"data: expected contiguous uint8 of shape {expected}, got {self.data.dtype} {self.data.shape}")

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"PackedCodes({self.rows} rows, subspaces={self.subspaces}, bits={self.bits})"

    @classmethod
    def of(cls, codes: U8, subspaces: int, bits: int) -> PackedCodes:
        """Pack row-major codes (N, code_bytes)."""
        data = np.empty((-(-len(codes) // BLOCK), code_bytes(subspaces, bits), BLOCK), np.uint8)
        if len(codes):
            current().pq_pack(np.ascontiguousarray(codes), bits, data)
        return cls(data, len(codes), subspaces, bits)

    def unpack(self) -> U8:
        """The row-major codes (N, code_bytes)."""
        out = np.empty((self.rows, code_bytes(self.subspaces, self.bits)), np.uint8)
        if self.rows:
            current().pq_unpack(self.data, self.bits, out)
        return out


def code_bytes(subspaces: int, bits: int) -> int:
    """Bytes of a row-major code: two 4-bit codes share one."""
    return -(-subspaces * bits // 8)


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
    seed : int
        Which random points the codebooks grow from. The same seed gives the same codebooks everywhere.
    iterations : int
        Most rounds of k-means.

    Attributes
    ----------
    codebooks : ndarray of float32, shape (M, 2**bits, ceil(D / M))
        The codewords; where the last subspaces end beyond D, the rest is 0.

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

    def __init__(self, subspaces: int, bits: int = 8, metric: Metric = "ip", *, seed: int = 0, iterations: int = 20) -> None:
        super().__init__(metric)
        self.subspaces = as_int(subspaces, "subspaces", 1, MAX_DIM)
        self.bits = as_int(bits, "bits", 1)
        if self.bits not in (4, 8):
            raise ValueError(f"bits: expected 4 or 8, got {bits}")
        self._seed = as_int(seed, "seed", 0)
        self._iterations = as_int(iterations, "iterations", 1)
        self.codebooks: F32 = np.empty((self.subspaces, 1 << self.bits, 0), np.float32)

    def __repr__(self) -> str:
        return f"ProductQuantizer({self.subspaces}, bits={self.bits}, metric={self.metric!r})"

    @property
    def code_bytes(self) -> int:
        return code_bytes(self.subspaces, self.bits)

    def fit(self, X: Any, *, threads: int | None = None, progress: bool = False) -> Self:
        """Learn codebooks from rows (n, D), or from a random 256 per codeword where there are more."""
        matrix = self._sample(X)
        if self.subspaces > matrix.dim:
            raise ValueError(f"X: expected at least one dim for each of {self.subspaces} subspaces, got shape {matrix.array.shape}")
        codewords = 1 << self.bits
        most = min(POINTS_PER_CODEWORD * codewords, max(8 * codewords, SAMPLE_BYTES // (4 * matrix.dim)))
        rows = np.arange(len(matrix))
        if len(matrix) > most:
            rows = np.sort(np.random.default_rng(self._seed).choice(len(matrix), most, replace=False))
        points = self._vectors(matrix, rows)
        with progress_bar(progress, "Training codebooks", "subspaces") as report:
            self.codebooks = kmeans.train(points, self.subspaces, codewords, self._iterations, self._seed, threads, report)
        self.dim = matrix.dim
        return self

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> U8:
        """Row-major codes (N, code_bytes) uint8; with 4 bits two codes share a byte, the low nibble being the even subspace."""

        backend = current()

        def encode(vectors: F32, codes: Array) -> None:
            nearest = np.empty((len(vectors), self.subspaces), np.int32)
            backend.pq_assign(vectors, self.codebooks, nearest)
            if self.bits == 8:
                codes[:] = nearest
            else:
                codes[:] = nearest[:, ::2]
                codes[:, : self.subspaces // 2] |= nearest[:, 1::2].astype(np.uint8) << 4

        return self._encoded(X, np.uint8, encode, threads, progress)

    def decode(self, codes: Any) -> F32:
        """The rows (N, D) that codes (row-major or packed) stand for."""
        self._check_fitted()
        array = self._codes(codes)
        array = array.unpack() if isinstance(array, PackedCodes) else array
        out = np.empty((len(array), self.dim), np.float32)
        numbers = np.arange(self.subspaces)
        for first, last in ranges(len(array), block_rows(4 * self.codebooks.shape[2] * self.subspaces)):
            part = array[first:last]
            if self.bits == 4:
                part = np.stack([part & 15, part >> 4], axis=2).reshape(len(part), -1)[:, : self.subspaces]
            out[first:last] = self.codebooks[numbers, part].reshape(last - first, -1)[:, : self.dim]
        return out

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
        current().pq_tables(queries, self.codebooks, self.metric == "l2", tables)
        if not np.isfinite(tables).all():
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
        batch, single = self._queries(queries)
        rows = self._codes(codes)
        allowed = as_mask(mask, len(batch), len(rows))
        found = flat.top_k(_PQFamily(current(), self, batch, rows), as_k(k), allowed, as_threads(threads))
        return squeezed(found, single)

    def _codes(self, codes: Any) -> U8 | PackedCodes:
        if not isinstance(codes, PackedCodes):
            return as_codes(codes, "codes", self.code_bytes)
        if (codes.subspaces, codes.bits) != (self.subspaces, self.bits):
            raise ValueError(f"codes: expected {self.subspaces} subspaces of {self.bits} bits, got {codes!r}")
        return codes

    def state(self) -> dict[str, Array]:
        return {"codebooks": self.codebooks, "dim": np.array([self.dim], np.int64)} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        """A quantizer with given codebooks, also with ones that were trained elsewhere.

        Parameters
        ----------
        state : mapping
            ``codebooks``: float32 (M, 16 or 256, ceil(D / M)), and ``dim``: int64 of one element, D.
        metric : str
            As for the constructor.
        """
        codebooks = taken(state, "codebooks", np.float32, 3)
        dims = taken(state, "dim", np.int64, 1)
        dim = int(dims[0]) if len(dims) == 1 else 0
        subspaces, codewords, width = codebooks.shape
        if not 1 <= subspaces <= dim <= MAX_DIM or codewords not in (16, 256) or width != -(-dim // subspaces):
            raise ValueError(f"state: expected 'codebooks' (M, 16 or 256, ceil(D / M)) for D = {dims[:1].tolist()}, got {codebooks.shape}")
        if not np.isfinite(codebooks).all():
            raise ValueError("state: 'codebooks' hold NaN or infinity")
        quantizer = cls(subspaces, 8 if codewords == 256 else 4, metric)
        quantizer.codebooks = np.ascontiguousarray(codebooks)
        quantizer.dim = dim
        return quantizer


@dataclass(frozen=True)
class _PQFamily:
    """Queries, as tables made per group of them, against PQ codes."""

    backend: Backend
    quantizer: ProductQuantizer
    batch: F32
    codes: U8 | PackedCodes

    @property
    def queries(self) -> int:
        return len(self.batch)

    @property
    def rows(self) -> int:
        return len(self.codes)

    @property
    def largest(self) -> bool:
        return self.quantizer.metric != "l2"

    @property
    def width(self) -> int:
        return self.quantizer.code_bytes

    @property
    def query_bytes(self) -> int:
        return 4 * self.quantizer.subspaces << self.quantizer.bits

    def blocks(self) -> Iterator[tuple[int, int]]:
        packed = isinstance(self.codes, PackedCodes)
        return ranges(self.rows, max(1, self.rows) if packed else block_rows(self.quantizer.code_bytes))

    def open(self, first: int, last: int) -> Rows:
        packed = self.codes if isinstance(self.codes, PackedCodes) else self.quantizer.pack(self.codes[first:last])
        return self.backend.pq_rows([(packed.data, packed.rows)], packed.subspaces, packed.bits)

    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        return self.backend.pq_scan(rows, self.quantizer.query_tables(self.batch[first:last]), k, self.largest, allowed)

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        tables = self.quantizer.query_tables(self.batch[first:last])
        return *self.backend.pq_rescore(rows, tables, candidates, k, self.largest), -1

    def check_rows(self, first: int, last: int, allowed: Bool | None) -> None:
        """Codes are always good."""
