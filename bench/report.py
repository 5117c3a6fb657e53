"""Turns a run of the benchmarks into a page: ``python -m bench.report build/bench.json`` writes ``build/bench.md`` and its plots."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
"""One contender: its median in seconds per query and the fields of ``contest.description``."""

COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#868e96", "#1971c2", "#f08c00")
MARKERS = "osD^vPX*"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m bench.report build/bench.json", file=sys.stderr)
        return 2
    source = Path(arguments[0])
    run = json.loads(source.read_text(encoding="utf-8"))
    groups = contests(run)
    if not groups:
        print(f"{source}: no benchmark in it", file=sys.stderr)
        return 2
    plots = {title: source.with_name(f"{source.stem}-{slug(title)}.png") for title, entries in groups.items() if entries[0]["family"]}
    for title, path in plots.items():
        plot(title, groups[title], path)
    page = source.with_suffix(".md")
    page.write_text(markdown(run, groups, {title: path.name for title, path in plots.items()}), encoding="utf-8")
    print(page, *plots.values(), sep="\n")
    return 0


def contests(run: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """Contenders by contest, fastest first."""
    benchmarks = sorted(run["benchmarks"], key=lambda benchmark: str(benchmark["fullname"]).partition("[")[0])
    titles = dict.fromkeys(benchmark["group"] for benchmark in benchmarks)
    entries = [{**benchmark["extra_info"], "group": benchmark["group"], "median": benchmark["stats"]["median"]} for benchmark in benchmarks]
    return {title: sorted((entry for entry in entries if entry["group"] == title), key=lambda entry: entry["median"]) for title in titles}


def markdown(run: Mapping[str, Any], groups: Mapping[str, Sequence[Entry]], plots: Mapping[str, str]) -> str:
    """The page: the machine, what was asked for, a table for each contest."""
    lines = ["# Benchmarks", "", *about(run, groups), "", *targets(groups)]
    for title, entries in groups.items():
        lines += ["", f"## {title}", ""]
        if entries[0]["note"]:
            lines += [entries[0]["note"], ""]
        if title in plots:
            lines += [f"![{title}]({plots[title]})", ""]
        lines += table(entries)
    return "\n".join(lines) + "\n"


def about(run: Mapping[str, Any], groups: Mapping[str, Sequence[Entry]]) -> list[str]:
    cpu = run["machine_info"]["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in run["machine_info"].get("versions", {}).items())
    lines = [f"{cpu.get('brand_raw', 'unknown CPU')}, {cpu.get('count', '?')} cores; {versions}; {run['datetime'][:10]}."]
    lines += [
        "",
        "Contenders of a table took turns, round by round; times are medians per query, ratios are medians over pairs of rounds, above 1 where the "
        "contender of the row is faster. ≈ marks a contender so slow that it was measured with a part of the queries. The best peer is the "
        "fastest contender that is not a backend of this library, whichever of its paths that is.",
    ]
    if any(entry["settings"] != "full" for entries in groups.values() for entry in entries):
        lines += ["", "**A quick run: it shows that everything works, and its figures mean nothing.**"]
    return lines


def best_peer(entries: Sequence[Entry]) -> str | None:
    return next((entry["contender"] for entry in entries if entry["backend"] is None), None)


def targets(groups: Mapping[str, Sequence[Entry]]) -> list[str]:
    """What was asked for, and what was measured."""
    rows = []
    for title, entries in groups.items():
        by_name = {entry["contender"]: entry for entry in entries}
        preferred = next((name for name in entries[0]["order"] if name in by_name), None)
        for target in entries[0]["targets"]:
            contender, rival = target["contender"] or preferred, target["rival"] or best_peer(entries)
            if contender in by_name and rival in by_name:
                ratio = by_name[contender]["ratios"][rival]
                met = "yes" if ratio >= target["least"] else "**no**"
                rows.append([title, contender, rival, f"{target['least']:.2f}", f"{ratio:.2f}", met])
    return ["## Targets", "", *grid(["contest", "contender", "rival", "asked: at least", "measured", "met"], rows, "lllrrl")] if rows else []


def table(entries: Sequence[Entry]) -> list[str]:
    """One contest, fastest first."""
    peer = best_peer(entries)
    against = any(entry["against"] for entry in entries)
    recall = any(entry["recall"] is not None for entry in entries)
    header = ["", "per query", entries[0]["unit"]]
    header += [f"ratio to {peer}"] if peer else []
    header += ["ratio to its exact search"] if against else []
    header += [entries[0]["judged_by"]] if recall else []
    rows = []
    for entry in entries:
        cut = "≈ " if entry["queries"] < entry["all_queries"] and not entry["alone"] else ""
        row = [f"**{entry['contender']}**" if entry["backend"] else entry["contender"], cut + duration(entry["median"]), figure(entry["rate"])]
        row += [f"{entry['ratios'][peer]:.2f}"] if peer else []
        row += [f"{entry['ratios'][entry['against']]:.2f}" if entry["against"] else ""] if against else []
        row += [f"{entry['recall']:.4f}"] if recall else []
        rows.append(row)
    return grid(header, rows, "l" + "r" * (len(header) - 1))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{figure(seconds / size)} {unit}"
    return f"{figure(seconds / 1e-9)} ns"


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def plot(title: str, entries: Sequence[Entry], path: Path) -> None:
    """Recall against queries per second; a line joins what differs only in its settings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure_, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    families = sorted(entries, key=lambda entry: str(entry["family"]))
    for number, (family, group) in enumerate(groupby(families, key=lambda entry: str(entry["family"]))):
        points = sorted((entry["recall"], 1 / entry["median"]) for entry in group)
        ours = any(entry["backend"] for entry in entries if entry["family"] == family)
        axes.plot(
            *zip(*points, strict=True),
            label=family,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if ours else "--",
        )
    axes.set(title=title, xlabel=entries[0]["judged_by"], ylabel="queries per second", yscale="log")
    axes.grid(which="both", alpha=0.3)
    axes.legend(title="dashed: peers")
    figure_.savefig(path, dpi=150)
    plt.close(figure_)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
