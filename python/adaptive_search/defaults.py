"""The cascade that `Index.build` picks: from a table of measurements on other data, hence no promise."""

from __future__ import annotations

from dataclasses import dataclass

from .cascade import Cascade
from .representations import Binary, Full, Int8, Stage
from .types import Kind, Metric


@dataclass(frozen=True)
class Choice:
    """A first stage, and where it was measured to reach a recall.

    Attributes
    ----------
    recall : float
        The largest recall@k that it is good for.
    rows, dims, k : int
        From how many rows and dims on, and up to which k.
    metrics : tuple of str
        Sign bits know nothing of lengths, so they suit cosine alone.
    stage : type
        Of the first stage.
    keep : tuple of int
        (a, b): ``a * k + b`` rows go on to the full vectors.
    """

    recall: float
    rows: int
    dims: int
    k: int
    metrics: tuple[Metric, ...]
    stage: type[Binary | Int8]
    keep: tuple[int, int]

    def stages(self, k: int) -> list[Stage]:
        return [self.stage(keep=self.keep[0] * k + self.keep[1]), Full()]


# Cheapest first; the first that fits is taken. Measured with cosine on
#   S: 50,000 sentence embeddings (all-MiniLM-L6-v2, 384 dims, float16) and 500 questions that are not among them;
#   C: 50,000 clustered float32 vectors with decaying variance (4,000 clusters) of 32, 256 and 1,024 dims, and 300 more as queries.
# Recall@1, @10 (one query's time against exact search, avx512_bf16, one thread):
#                            S              C 1,024        C 256          C 32
#   Binary, 30 k          .970 .988      .937 .903      .973 .936      .250 .497
#     time                .11  .23       .07  .15       .09  .29
#   Int8, 2 k             1.00 1.00      .997 1.00      1.00 1.00      .990 1.00
#     time                .54  .55       .31  .23       .55  .71
# Below 10,000 rows an exact search of one query takes a few hundred microseconds, so that there is little to gain.
# For k = 100 sign bits need shortlists longer than they are worth (.50 to .64 on C), Int8 does not (1.00).
TABLE = (
    Choice(recall=0.90, rows=10_000, dims=256, k=10, metrics=("cosine",), stage=Binary, keep=(30, 0)),
    Choice(recall=0.99, rows=10_000, dims=32, k=1_000, metrics=("ip", "cosine", "l2"), stage=Int8, keep=(2, 8)),
)


def cascade(rows: int, dim: int, dtype: Kind, metric: Metric, recall: float, k: int) -> Cascade | None:
    """A cascade for such a collection; None, exact search, where no entry of the table fits."""
    if dtype == "int8":
        return None  # codes would be no shorter than the vectors
    for choice in TABLE:
        if recall <= choice.recall and rows >= choice.rows and dim >= choice.dims and k <= choice.k and metric in choice.metrics:
            return Cascade(choice.stages(k))
    return None
