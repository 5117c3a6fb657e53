"""What prefixes and sign codes keep, raw and turned: ``python -m bench.prefixes``. Vectors from ``ADAPTIVE_SEARCH_DATA``, or the demo's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import adaptive_search as asx
from adaptive_search.measuring import found_shares
from adaptive_search.types import F32, I64

from .data import real
from .report import grid

K = 10
AMONG = (10, 50, 100, 200)
QUESTIONS = 1_500


class Asked(NamedTuple):
    """Rows, questions, and the true neighbours of these."""

    rows: F32
    queries: F32
    true: I64


def asked() -> Asked:
    collection = real()
    rows = np.asarray(collection.rows, np.float32)
    queries = np.asarray(collection.queries, np.float32)[:QUESTIONS]
    return Asked(rows, queries, asx.top_k(queries, rows, K, metric="cosine").ids)


def shares(ids: I64, true: I64) -> list[float]:
    """Share of the true neighbours among the first so many of each list."""
    found: list[float] = found_shares(ids, true, AMONG).mean(axis=0).tolist()
    return found


def prefixes(of: Asked) -> Iterator[tuple[str, int, list[float]]]:
    """Transform, dims, what the cosine of prefixes finds. Rows alone are learned from."""
    for name, transform in (("as they are", None), ("PCA", asx.PCA()), ("LearnedRotation", asx.LearnedRotation())):
        rows, queries = of.rows, of.queries
        if transform is not None:
            rows, queries = transform.fit(rows).transform(rows), transform.transform(queries)
        for dims in (32, 64, 128):
            yield name, dims, shares(asx.top_k(queries, rows, AMONG[-1], metric="cosine", dims=dims).ids, of.true)


def signs(of: Asked) -> Iterator[tuple[str, int, list[float]]]:
    """Kind of code, bytes, what it finds: signs of the query against those of rows, or the query itself."""
    dim = of.rows.shape[1]
    quantizers: list[tuple[str, asx.BinaryQuantizer | asx.RaBitQuantizer]] = []
    for bits in (dim // 3, dim):
        quantizers += [
            (f"signs of {bits} dims", asx.BinaryQuantizer(bits, "cosine")),
            (f"signs along {bits} random directions", asx.BinaryQuantizer(bits, "cosine", "random")),
            (f"ITQ, {bits} bits", asx.BinaryQuantizer(bits, "cosine", "itq")),
        ]
    quantizers.append(("RaBitQ, one bit a dim, query not coded", asx.RaBitQuantizer(1, "cosine")))
    for name, quantizer in quantizers:
        codes = quantizer.fit(of.rows).encode(of.rows)
        yield name, quantizer.code_bytes, shares(quantizer.top_k(of.queries, codes, AMONG[-1]).ids, of.true)


def main() -> None:
    of = asked()
    for first, second, found in (("vectors", "dims of the prefix", prefixes(of)), ("codes", "bytes", signs(of))):
        rows = [(name, str(size), *(f"{share:.3f}" for share in each)) for name, size, each in found]
        print("\n".join(grid((first, second, *(f"true {K} among the first {count}" for count in AMONG)), rows, "lrrrrr")), end="\n\n")


if __name__ == "__main__":
    main()
