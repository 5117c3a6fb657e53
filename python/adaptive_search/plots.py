"""Pictures of measurements: what a representation finds against its bytes and its time. Needs matplotlib (the extra ``plots``)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .evaluate import Comparison
from .measuring import Measurement
from .types import F64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette, which people tell apart whatever colours they see; every family has a marker of its own as well."""
MARKERS = "osD^vPX"

RECALLS = (0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
LOST = 0.003
"""The recall axis is stretched towards 1, like the logarithm of what is missed plus this."""

WITHIN = 100
DPI = 160

STEP = 6
REACH = 150
"""Names are put somewhere on a grid of such steps around their marks, in points."""

FAR = 10
"""Points from a mark to its name beyond which a line leads there."""


def save_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw the table of `adaptive_search.evaluate.compare` into a file: recall against bytes per row, and against time per query.

    A filled mark is the recall among the first k rows, a hollow one that among 100 (or the largest number measured, if 100 was not).
    A line joins what differs only in its sizes.

    Parameters
    ----------
    comparison : Comparison
    path : path
        Ends in ``.png`` or ``.svg``.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Another ending, or nothing was measured.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> vectors = np.random.default_rng(0).standard_normal((2000, 32), dtype=np.float32)
    >>> table = asx.evaluate.compare(vectors, vectors[:50], [asx.Binary(), asx.Int8()])
    >>> asx.plots.save_comparison(table, "comparison.png")  # doctest: +SKIP
    """
    check_path(path)
    draw_comparison(comparison).savefig(path, dpi=DPI)


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise unless a picture can be written there: a ValueError about the ending, an ImportError without matplotlib."""
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"path: expected a name that ends in {' or '.join(FORMATS)}, got {Path(path).name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib (pip install 'adaptive-search[plots]')") from error


def draw_comparison(comparison: Comparison) -> Figure:
    """The figure that `save_comparison` writes, to go on with."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    rows = [row for row in comparison.rows if not row.why]
    if not rows:
        raise ValueError("comparison: there is nothing to draw, no representation was measured")
    figure = Figure(figsize=(12, 6.2), dpi=DPI)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.065, right=0.99, top=0.93, bottom=0.16, wspace=0.04)
    figure.suptitle(comparison.title, fontsize="medium")
    left.set(xlabel="bytes per row", ylabel=f"share of the true {comparison.k} found")
    right.set(xlabel=f"µs per query, {comparison.queries:,} in a batch")
    left.set_xscale("log", base=2)
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    among = _among(comparison)
    panels = [(left, _points(rows, "bytes_per_row", among)), (right, _points(rows, "batch_us", among))]
    for axes, points in panels:
        _draw(axes, points)
    for axes, points in panels:
        _label(axes, points)
    kinds = [Line2D([], [], color="#555555", marker="o", label=f"among the first {comparison.k}")]
    if among is not None:
        label = f"among the first {comparison.among[among]}"
        kinds.append(Line2D([], [], color="#555555", marker="o", markerfacecolor="white", linestyle=":", label=label))
    figure.legend(handles=kinds, loc="lower center", ncols=2, frameon=False)
    return figure


def short(representation: str) -> str:
    """A representation's name without the names of its arguments, and without the metric, which all share.

    Examples
    --------
    >>> short("Int8(dims=64, rotation='pca')")
    'Int8(64, pca)'
    """
    return re.sub(r"\w+=", "", re.sub(r"(, )?metric='\w+'", "", representation)).replace("'", "")


def family(representation: str) -> str:
    """What a representation is called whatever its numbers are.

    Examples
    --------
    >>> family("Int8(dims=64, rotation='pca')") == family("Int8(dims=128, rotation='pca')") != family("Int8(dims=64)")
    True
    """
    return re.sub(r"(\w+=)?\d+(, )?", "", representation)


class _Point(NamedTuple):
    """A representation in a panel: what it costs there, what it finds among the first k and, if measured, among more."""

    family: str
    cost: float
    name: str
    alone: float
    within: float | None


def _among(comparison: Comparison) -> int | None:
    """Which of the numbers of rows is drawn beside k."""
    if not comparison.among:
        return None
    return comparison.among.index(WITHIN) if WITHIN in comparison.among else len(comparison.among) - 1


def _points(rows: Sequence[Measurement], cost: str, among: int | None) -> list[_Point]:
    """Points by family, cheap ones first."""
    found = []
    for row in rows:
        within = None if among is None else row.among[among]
        found.append(_Point(family(row.representation), getattr(row, cost), short(row.representation), row.recall or 0.0, within))
    return sorted(found, key=lambda point: point[:2])


def _draw(axes: Axes, points: Sequence[_Point]) -> None:
    from matplotlib.ticker import NullLocator

    for number, (_, group) in enumerate(groupby(points, key=lambda point: point.family)):
        members = list(group)
        costs = [point.cost for point in members]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        within = [point.within for point in members if point.within is not None]
        if within:
            axes.plot(costs, within, color=colour, marker=marker, markerfacecolor="white", linestyle=":", linewidth=1)
        axes.plot(costs, [point.alone for point in members], color=colour, marker=marker, linewidth=1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(x=0.12)
    least = min(point.alone for point in points)
    axes.set_yscale("function", functions=(_stretched, _shrunk))
    axes.set_ylim(_shrunk(_stretched(least) - 0.25), _shrunk(_stretched(1.0) + 0.25))
    axes.set_yticks([mark for mark in RECALLS if mark >= least - 0.1])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _stretched(recall: Any) -> Any:
    return -np.log(np.maximum(1 + LOST - np.asarray(recall), 1e-6))


def _shrunk(place: Any) -> Any:
    return 1 + LOST - np.exp(-np.asarray(place))


def _label(axes: Axes, points: Sequence[_Point]) -> None:
    """Write names beside the filled marks, each at the nearest place where it covers neither a mark, nor a line, nor another name."""
    from matplotlib.patheffects import withStroke

    pixel = DPI / 72
    taken = _obstacles(axes)
    frame = np.array(axes.get_window_extent().extents) / pixel
    halo = [withStroke(linewidth=2, foreground="white")]
    for point in points:
        place = (point.cost, point.alone)
        text = axes.annotate(point.name, place, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=8, path_effects=halo)
        extent = text.get_window_extent()
        size = np.array([extent.width, extent.height]) / pixel
        mark = axes.transData.transform(place) / pixel
        offset = free_offset(mark, size, taken, frame)
        text.set_position(tuple(offset))
        taken.append(_box(mark + offset, size))
        if (np.abs(offset) - size / 2).max() > FAR:
            arrow = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6}
            axes.annotate("", place, tuple(offset), textcoords="offset points", arrowprops=arrow, zorder=1)


def _obstacles(axes: Axes) -> list[F64]:
    """Boxes, in points, around the marks and along the lines between them."""
    found = []
    for line in axes.lines:
        places = axes.transData.transform(line.get_xydata()) * 72 / DPI
        found += [_box(place, np.array([10.0, 10.0])) for place in places]
        for one, other in pairwise(places):
            steps = np.linspace(0, 1, 2 + int(np.hypot(*(other - one)) / 4))
            found += [_box(one + step * (other - one), np.array([1.0, 1.0])) for step in steps]
    return found


def _box(middle: F64, size: F64) -> F64:
    """Left, bottom, right, top."""
    return np.concatenate([middle - size / 2, middle + size / 2])


def free_offset(mark: F64, size: F64, taken: Sequence[F64], frame: F64) -> F64:
    """From a mark to the middle of a text of some size: the nearest place within the frame that covers no box taken, or the nearest at all.

    Examples
    --------
    >>> taken = [np.array([54.0, 40.0, 90.0, 60.0])]
    >>> free_offset(np.array([50.0, 50.0]), np.array([20.0, 10.0]), taken, np.array([0.0, 0.0, 100.0, 100.0]))
    array([-16.,   0.])
    """
    reach = np.arange(0, REACH, STEP)
    # Beside the mark at whole steps, above and below it anywhere.
    across = np.concatenate([reach + size[0] / 2, np.arange(0, size[0] / 2, STEP)])
    x, y = (axis.ravel() for axis in np.meshgrid(np.concatenate([across, -across]), np.concatenate([reach, -reach])))
    offsets = np.stack([x, y], axis=1)
    gaps = np.maximum(np.abs(offsets) - size / 2, 0)
    distance = np.hypot(gaps[:, 0], 1.5 * gaps[:, 1])
    # Far enough that a text does not touch its own mark; beside it before above or below.
    order = np.lexsort((np.abs(x), np.abs(y), distance))
    offsets = offsets[order[distance[order] >= STEP]]
    low, high = mark + offsets - size / 2, mark + offsets + size / 2
    inside = ((low >= frame[:2]) & (high <= frame[2:])).all(axis=1)
    boxes = np.array(taken).reshape(-1, 4)
    covers = ((low[:, None] < boxes[None, :, 2:]) & (high[:, None] > boxes[None, :, :2])).all(axis=2).any(axis=1)
    free = np.flatnonzero(inside & ~covers)
    nearest: F64 = offsets[free[0] if len(free) else 0]
    return nearest
