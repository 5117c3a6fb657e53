"""What codes of as many bytes find: ``python -m bench.report bytes``. Vectors from ``ADAPTIVE_SEARCH_DATA``, or the demo's. One thread.

Everybody learns from all rows, codes all rows, and is asked for those with the best inner products. Bytes are those held for a row in
memory, factors and norms included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import adaptive_search as asx
from adaptive_search.measuring import found_shares
from adaptive_search.types import F32, I64, Array

from .data import Embeddings, real
from .timing import timed

K = 10
AMONG = (10, 20, 50, 100)
ROUNDS = 3
"""Codings of all rows, whose median is taken."""

ANISOTROPIC = "anisotropic"

SIZES = (24, 48, 96)
"""Bytes; between them stand codes with a few more for their factors."""


class Contender(ABC):
    """A kind of code."""

    def __init__(self, name: str, by: str) -> None:
        self.name, self.by = name, by

    @abstractmethod
    def fit(self, rows: F32) -> None: ...

    @abstractmethod
    def encode(self, rows: F32) -> None: ...

    @abstractmethod
    def search(self, queries: F32, k: int) -> I64: ...

    @abstractmethod
    def bytes(self) -> int:
        """Of a row."""


class Ours(Contender):
    def __init__(self, name: str, quantizer: asx.ProductQuantizer | asx.RaBitQuantizer | asx.BinaryQuantizer) -> None:
        super().__init__(name, "adaptive_search")
        self.quantizer = quantizer
        self.codes: Any = None

    def fit(self, rows: F32) -> None:
        self.quantizer.fit(rows)

    def encode(self, rows: F32) -> None:
        codes = self.quantizer.encode(rows)
        self.codes = codes if isinstance(self.quantizer, asx.BinaryQuantizer) else self.quantizer.pack(codes)

    def search(self, queries: F32, k: int) -> I64:
        return self.quantizer.top_k(queries, self.codes, k).ids

    def bytes(self) -> int:
        return self.quantizer.code_bytes


class Faiss(Contender):
    """An index of codes, and what is done to vectors before."""

    def __init__(self, name: str, codes: Any, transform: Any = None) -> None:
        import faiss

        super().__init__(name, "faiss")
        self.codes, self.transform = codes, transform
        self.index = codes if transform is None else faiss.IndexPreTransform(transform, codes)

    def fit(self, rows: F32) -> None:
        self.index.train(rows)

    def encode(self, rows: F32) -> None:
        self.index.reset()
        self.index.add(rows)

    def search(self, queries: F32, k: int) -> I64:
        ids: I64 = self.index.search(queries, k)[1]
        return ids

    def bytes(self) -> int:
        return int(self.codes.code_size)


class Turbovec(Contender):
    def __init__(self, dim: int, bits: int) -> None:
        super().__init__(f"{bits} bits a dim", "turbovec")
        self.dim, self.bits = dim, bits
        self.sample: Array = np.empty(0)
        self.index: Any = None
        self.fixed = 0

    def fit(self, rows: F32) -> None:
        self.sample = np.ascontiguousarray(rows[:: max(1, len(rows) // 4096)])

    def encode(self, rows: F32) -> None:
        from .peers import turbovec

        self.index = turbovec.TurboQuantIndex(self.dim, self.bits)
        self.index.calibrate(self.sample)
        self.fixed = len(self.index.to_bytes())
        self.index.add(rows)
        self.index.prepare()

    def search(self, queries: F32, k: int) -> I64:
        return np.asarray(self.index.search(queries, k)[1]).astype(np.int64)

    def bytes(self) -> int:
        return round((len(self.index.to_bytes()) - self.fixed) / len(self.index))


class Measured(NamedTuple):
    """Seconds to learn and to code all rows; the share of the true `K` among the first so many of `AMONG`."""

    name: str
    by: str
    bytes: int
    fit: float
    encode: float
    shares: Sequence[float]


def contenders(dim: int) -> Iterator[list[Contender]]:
    """In groups that take turns: ours, and the same of a peer, which knows no anisotropic codes."""
    import faiss

    from .peers import turbovec

    for subspaces, bits in ((24, 8), (48, 8), (96, 4), (96, 8)):
        for rotation in (None, "opq"):
            name = f"{'OPQ' if rotation else 'PQ'}{subspaces}x{bits}"
            codes = faiss.IndexPQ(dim, subspaces, bits, faiss.METRIC_INNER_PRODUCT)
            transform = faiss.OPQMatrix(dim, subspaces) if rotation else None
            if transform is not None and bits == 4:
                # Left alone it learns with codebooks of 8 bits.
                transform.pq = codes.pq
            options: dict[str, Any] = {"metric": "cosine", "rotation": rotation}
            yield [
                Ours(name, asx.ProductQuantizer(subspaces, bits, **options)),
                Faiss(name, codes, transform),
                Ours(f"{name}, {ANISOTROPIC}", asx.ProductQuantizer(subspaces, bits, **options, anisotropy=4)),
            ]
    for bits in (dim // 2, dim):
        lsh = faiss.IndexLSH(bits, bits, False, False)
        transform = faiss.ITQTransform(dim, bits, bits < dim)
        name = f"ITQ, {bits} bits"
        yield [Ours(name, asx.BinaryQuantizer(bits, "cosine", "itq")), Faiss(name, lsh, transform)]
    name = f"signs of {dim} dims"
    yield [Ours(name, asx.BinaryQuantizer(metric="cosine")), Faiss(name, faiss.IndexLSH(dim, dim, False, False))]
    for bits in (1, 2):
        name = f"RaBitQ, {bits} bit{'s' if bits > 1 else ''} a dim"
        codes = faiss.IndexRaBitQ(dim, faiss.METRIC_INNER_PRODUCT, bits)
        yield [Ours(name, asx.RaBitQuantizer(bits, "cosine")), Faiss(name, codes, faiss.RandomRotationMatrix(dim, dim))]
    if turbovec:
        yield [Turbovec(dim, 2)]


def measure(groups: Callable[[int], Iterator[list[Contender]]] = contenders, collection: Embeddings | None = None) -> Iterator[Measured]:
    from .peers import limited_threads

    _, rows, queries = vars(collection or real()).values()
    with limited_threads(1):
        true = asx.top_k(queries, rows, K, metric="cosine").ids
        for group in groups(rows.shape[1]):
            fits = [timed(partial(contender.fit, rows)) for contender in group]
            codings = [[timed(partial(contender.encode, rows)) for contender in group] for _ in range(ROUNDS)]
            for contender, fit, times in zip(group, fits, zip(*codings, strict=True), strict=True):
                ids = contender.search(queries, AMONG[-1])
                shares = found_shares(ids, true, AMONG).mean(axis=0).tolist()
                yield Measured(contender.name, contender.by, contender.bytes(), fit, median(times), shares)


HEADER = ("bytes", "codes", "by", *(f"in {count}" for count in AMONG), "fit s", "encode s", "fit, peer's = 1", "encode, peer's = 1")


def table(results: Sequence[Measured]) -> str:
    """In Markdown: by bytes, what finds most among the first `AMONG` [1] first; times of ours relative to a peer's of the same codes."""
    peers = {one.name: one for one in results if one.by != "adaptive_search"}
    lines = [HEADER, ("---:", "---", "---", *["---:"] * (len(HEADER) - 3))]
    for one in sorted(results, key=lambda one: (max(size for size in (0, *SIZES) if size <= one.bytes), -one.shares[1])):
        peer = peers.get(one.name.removesuffix(f", {ANISOTROPIC}"))
        relative = ["", ""]
        if peer is not None and peer is not one:
            relative = [f"{one.fit / peer.fit:.2f}" if peer.fit > 0.01 else "", f"{one.encode / peer.encode:.2f}"]
        name = one.name if one.by != "adaptive_search" else f"**{one.name}**"
        shares = [f"{share:.3f}" for share in one.shares]
        lines.append((str(one.bytes), name, one.by, *shares, f"{one.fit:.1f}", f"{one.encode:.2f}", *relative))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
