"""Cascades worth trying for vectors of some kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .cascade import Cascade
from .representations import PQ, Binary, Full, Int8, Lists, Stage
from .rotations import principal_directions
from .types import F32, Metric

SPECTRUM_ROWS = 4_096
"""Rows that tell whether dims are alike."""

MOST_ROTATED = 4_096
"""Dims of vectors whose principal directions are learned without being asked for: beyond, that takes minutes."""

MOST_TURNED = 1_024
"""Dims of vectors up to which an OPQ rotation is learned without being asked for, in a minute or two."""

WEIGHT = 4.0
"""Of errors along a row in codes that are chosen without being asked for: the best of 1 to 16 on tuning queries of sentence embeddings."""


LISTED_ROWS = 16_384
"""Rows from which on passing by most of them takes less time than looking at all their codes."""

ROWS_OF_A_LIST = (100, 25)
"""About. Short lists pay where rows lie in clusters, if there are more lists than clusters."""

MOST_LISTS = 8_192
"""More take longer to learn than there is patience for, and to compare with than they spare."""


def family(dim: int, metric: Metric, uneven: bool, rows: int) -> list[Cascade]:
    """Cascades worth trying for so many rows of some kind; first those that are likely to be fast, which spares the others a trial.

    Parameters
    ----------
    uneven : bool
        Whether the first dims tell nearly as much as the same number of principal directions, as those of Matryoshka embeddings do.
    """
    found: list[list[Stage]] = []
    widths = [dims for dims in (64, 128, 192, 256) if dims <= 0.75 * dim]
    # Few dims of an even kind tell little: what scores the survivors then takes all of them.
    middle = min(256, dim) if uneven else dim
    if dim >= 96:
        rotation: Literal["pca"] | None = None if uneven else "pca"
        # Half a byte for every pair of dims: few bytes to read for a single query. Of many rows fewer survive if errors along them count.
        weight = WEIGHT if metric != "l2" and rows >= LISTED_ROWS else 1.0
        codes = [PQ(dims // 2, 4, dims=dims, rotation=rotation, anisotropy=weight) for dims in widths[:3]]
        found += [[code, Int8(middle, bounded=True), Full()] for code in codes]
        found += [[Int8(dims, rotation=rotation), Int8(middle, bounded=True), Full()] for dims in widths if dims < middle]
        if metric != "l2" and not uneven and 128 <= dim <= MOST_TURNED and rows < LISTED_ROWS:
            # The same bytes keep more of what inner products need, for longer learning.
            found.append([PQ(64, 4, rotation="opq", anisotropy=WEIGHT), Int8(bounded=True), Full()])
        if metric == "cosine":
            found.append([Binary(), Int8(bounded=True), Full()])
    if dim > 256 and uneven:
        found.append([Int8(middle, bounded=True), Full()])
    if dim >= 16:
        found.append([Int8(bounded=True), Full()])
    return [Cascade(stages) for stages in found]


def listed(cascade: Cascade, rows: int) -> list[Cascade]:
    """A cascade that begins with codes with inverted lists before them, worth trying; none if it does not, or if there are too few rows."""
    if rows < LISTED_ROWS or not isinstance(cascade.stages[0], PQ) or len(cascade.stages) < 2:
        return []
    lists = {min(MOST_LISTS, 1 << round(math.log2(rows / each))): None for each in ROWS_OF_A_LIST}
    return [Cascade([Lists(count), *cascade.stages]) for count in lists]


def longer(cascade: Cascade, cascades: Sequence[Cascade]) -> Cascade | None:
    """Of cascades the one with the next longer codes than those that a cascade begins with, alike but for that; None if there is none."""
    first = cascade.stages[0]
    if not isinstance(first, PQ):
        return None
    found = [(other.stages[0].subspaces, other) for other in cascades if isinstance(other.stages[0], PQ) and _alike(first, other.stages[0])]
    return min((one for one in found if one[0] > first.subspaces), key=lambda one: one[0], default=(0, None))[1]


def wider(cascade: Cascade, dim: int) -> Cascade | None:
    """A cascade with int8 codes of all dims before its vectors, of which fewer are read then, and bounds of as many dims as before; None
    if it has no shorter ones there."""
    *before, codes, last = cascade.stages
    if not before or not isinstance(codes, Int8) or codes.dims is None or codes.dims == dim:
        return None
    return Cascade([*before, Int8(bounded=True, bound_dims=codes.dims), last])


def _alike(one: PQ, other: PQ) -> bool:
    return (one.bits, one.rotation, one.anisotropy) == (other.bits, other.rotation, other.anisotropy)


def is_uneven(sample: F32) -> bool:
    """Whether the first dims of rows hold nearly as much as their principal directions do."""
    dims = min(128, sample.shape[1] // 2)
    if not dims or not len(sample) or sample.shape[1] > MOST_ROTATED:
        return True
    some = sample[:: -(-len(sample) // SPECTRUM_ROWS)]
    held = np.square(some[:, :dims], dtype=np.float64).sum()
    return bool(held >= 0.85 * np.square(some @ principal_directions(some, dims).T, dtype=np.float64).sum())


def exact_family(dim: int, uneven: bool) -> list[Cascade]:
    """Cascades with bounds that cannot fail; ``uneven`` as for `family`."""
    if dim < 16:
        return []
    widths = [dims for dims in (256, dim) if dims <= dim]
    found: list[Stage] = [Int8(dims, bounded=True) for dims in dict.fromkeys(widths)]
    if not uneven:
        found += [Int8(dims, bounded=True, rotation="pca") for dims in (192, 256) if dims < dim]
    return [Cascade([stage, Full()]) for stage in found]
