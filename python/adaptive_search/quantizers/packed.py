"""Codes in the blocked layout that scans fastest, and searches through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..arrays import block_rows, ranges
from ..backends import current
from ..backends.protocol import Backend, CodeChunk, Rows, Scaling, Scan
from ..types import F32, I64, U8, Bool

BLOCK = 64
"""Rows of a block of the packed layout."""

LARGEST_FACTOR = 1e30
"""Kernels take factors, and terms of either sign, below this."""


@dataclass(frozen=True)
class PackedCodes:
    """Codes in the blocked layout that scans fastest: of a `ProductQuantizer`, or of a `RaBitQuantizer`, whose rows have factors.

    Attributes
    ----------
    data : ndarray of uint8
        (blocks, M, 64) for 8 bits, (blocks, ceil(M / 2), 64) for 4 bits, the low nibble being the even subspace; rows that fill up
        the last block are 0.
    rows : int
        How many rows there are.
    subspaces, bits : int
        As in the quantizer; RaBit codes have 4 bits for every 4, 2 or 1 dims.
    factors, norms2, products : ndarray of float32, shape (rows,), or None
        What RaBit codes hold beside their levels: their factors and, for l2, |x - mean|^2, or else <mean, x - mean>.
    """

    data: U8
    rows: int
    subspaces: int
    bits: int
    factors: F32 | None = None
    norms2: F32 | None = None
    products: F32 | None = None

    def __post_init__(self) -> None:
        expected = (-(-self.rows // BLOCK), code_bytes(self.subspaces, self.bits), BLOCK)
        if self.data.dtype != np.uint8 or self.data.shape != expected or not self.data.flags.c_contiguous:
            raise ValueError(f"data: expected contiguous uint8 of shape {expected}, got {self.data.dtype} {self.data.shape}")
        for name, values in (("factors", self.factors), ("norms2", self.norms2), ("products", self.products)):
            if values is None:
                continue
            if values.dtype != np.float32 or values.shape != (self.rows,) or not values.flags.c_contiguous:
                raise ValueError(f"{name}: expected contiguous float32 of shape ({self.rows},), got {values.dtype} {values.shape}")
        if self.factors is not None:
            check_factors(self.factors, self.terms, "factors")

    @property
    def terms(self) -> F32 | None:
        """What scores take from a row beside its factor."""
        return self.products if self.norms2 is None else self.norms2

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        factors = ", with factors" if self.factors is not None else ""
        return f"PackedCodes({self.rows} rows, subspaces={self.subspaces}, bits={self.bits}{factors})"

    @classmethod
    def of(
        cls, codes: U8, subspaces: int, bits: int, factors: F32 | None = None, norms2: F32 | None = None, products: F32 | None = None
    ) -> PackedCodes:
        """Pack row-major codes (N, code_bytes)."""
        data = np.empty((-(-len(codes) // BLOCK), code_bytes(subspaces, bits), BLOCK), np.uint8)
        if len(codes):
            current().pq_pack(np.ascontiguousarray(codes), bits, data)
        return cls(data, len(codes), subspaces, bits, factors, norms2, products)

    def unpack(self) -> U8:
        """The row-major codes (N, code_bytes), as `encode` gave them."""
        out = np.empty((self.rows, code_bytes(self.subspaces, self.bits)), np.uint8)
        if self.rows:
            current().pq_unpack(self.data, self.bits, out)
        tail = [values.astype("<f4").view(np.uint8).reshape(-1, 4) for values in (self.factors, self.terms) if values is not None]
        return np.concatenate([out, *tail], axis=1) if tail else out


def code_bytes(subspaces: int, bits: int) -> int:
    """Bytes of a row-major code: two 4-bit codes share one."""
    return -(-subspaces * bits // 8)


def check_factors(factors: F32, terms: F32 | None, name: str) -> None:
    """Numbers of rows (N,) that kernels can take."""
    good = (factors >= 0) & (factors < LARGEST_FACTOR)
    if terms is not None:
        good &= np.abs(terms) < LARGEST_FACTOR
    if not good.all():
        raise ValueError(f"{name}: row {int((~good).argmax())} is too long, or has no factor that `encode` could have given")


@dataclass(frozen=True)
class PackedFamily:
    """Queries, as tables made per group of them, against codes; row-major ones are packed block by block.

    ``ask`` makes tables, and what is made of their sums, of queries (Q, D) float32.
    """

    backend: Backend
    batch: F32
    codes: U8 | PackedCodes
    largest: bool
    query_bytes: int
    pack: Callable[[U8], PackedCodes]
    ask: Callable[[F32], tuple[F32, Scaling | None]]

    @property
    def queries(self) -> int:
        return len(self.batch)

    @property
    def rows(self) -> int:
        return len(self.codes)

    @property
    def width(self) -> int:
        codes = self.codes
        return int(codes.data.shape[1] if isinstance(codes, PackedCodes) else codes.shape[1])

    def blocks(self) -> Iterator[tuple[int, int]]:
        packed = isinstance(self.codes, PackedCodes)
        return ranges(self.rows, max(1, self.rows) if packed else block_rows(self.width))

    def open(self, first: int, last: int) -> Rows:
        packed = self.codes if isinstance(self.codes, PackedCodes) else self.pack(self.codes[first:last])
        chunk = CodeChunk(packed.data, packed.rows, packed.factors, packed.terms)
        return self.backend.pq_rows([chunk], packed.subspaces, packed.bits)

    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        tables, scaling = self.ask(self.batch[first:last])
        return self.backend.pq_scan(rows, tables, k, self.largest, allowed, scaling)

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        tables, scaling = self.ask(self.batch[first:last])
        return *self.backend.pq_rescore(rows, tables, candidates, k, self.largest, scaling), -1

    def check_rows(self, first: int, last: int, allowed: Bool | None) -> None:
        """Codes are always good."""
