"""What prefixes keep, raw and after transforms: ``python -m bench.prefixes``. Vectors from ``ADAPTIVE_SEARCH_DATA``, or the demo's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import adaptive_search as asx
from adaptive_search.measuring import found_shares
from adaptive_search.types import F32, I64

from .data import real
from .report import grid

K = 10
AMONG = (10, 50, 100)
QUESTIONS = 1_500


def found(queries: F32, rows: F32, true: I64, dims: int) -> list[float]:
    """Share of the true neighbours among the first so many by the cosine of a prefix."""
    ids = asx.top_k(queries, rows, AMONG[-1], metric="cosine", dims=dims).ids
    shares: list[float] = found_shares(ids, true, AMONG).mean(axis=0).tolist()
    return shares


def measure() -> Iterator[tuple[str, int, list[float]]]:
    """Transform, dims, shares. Rows alone are learned from."""
    collection = real()
    rows = np.asarray(collection.rows, np.float32)
    queries = np.asarray(collection.queries, np.float32)[:QUESTIONS]
    true = asx.top_k(queries, rows, K, metric="cosine").ids
    for name, transform in (("as they are", None), ("PCA", asx.PCA()), ("LearnedRotation", asx.LearnedRotation())):
        turned, asked = (rows, queries) if transform is None else (transform.fit(rows).transform(rows), transform.transform(queries))
        for dims in (32, 64, 128):
            yield name, dims, found(asked, turned, true, dims)


def main() -> None:
    rows = [(name, str(dims), *(f"{share:.3f}" for share in shares)) for name, dims, shares in measure()]
    header = ("vectors", "dims of the prefix", *(f"true {K} among the first {count}" for count in AMONG))
    print("\n".join(grid(header, rows, "lrrrr")))


if __name__ == "__main__":
    main()
