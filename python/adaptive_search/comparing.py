"""The command ``compare``: stages from text, the table on a terminal and in files."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .evaluate import Comparison
from .representations import STAGES, Stage

EXAMPLE = "such as 'Binary()', 'PQ(48, bits=4)' or 'Int8(64, rotation=\"pca\")'"


def parse_stages(texts: Sequence[str]) -> list[Stage] | None:
    """Stages as they are written in Python; None if there are none.

    Examples
    --------
    >>> parse_stages(["PQ(48, bits=4)", "Int8(dims=64, rotation='pca')"])
    [PQ(subspaces=48, bits=4), Int8(dims=64, rotation='pca')]
    """
    return [_parse_stage(text) for text in texts] or None


def _parse_stage(text: str) -> Stage:
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("no call")
        name = call.func.id
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError):
        raise ValueError(f"stage: expected a stage as it is written in Python, {EXAMPLE}, got {text!r}") from None
    if name not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {text!r}")
    try:
        return STAGES[name](*values, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"stage: {text!r} is not possible: {error}") from None


def show(comparison: Comparison) -> None:
    """Print the table in lines as long as they have to be: one that is cut off tells nothing."""
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(comparison.header):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for cells in comparison.cells():
        table.add_row(*cells)
    console = Console(highlight=False)
    console.width = max(console.width, Console(width=1_000).measure(table).maximum)
    console.print(f"{comparison.title}\n")
    console.print(table)
    for note in comparison.notes:
        console.print(f"\n{note}", soft_wrap=True)


def write_json(comparison: Comparison, path: Path) -> None:
    """What was measured, on what, as one object whose ``rows`` are those of the table."""
    path.write_text(json.dumps(asdict(comparison) | {"rows": comparison.records()}, indent=2) + "\n", encoding="utf-8")


def write_csv(comparison: Comparison, path: Path) -> None:
    """The table with all its digits, below a line of names."""
    records = comparison.records()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
