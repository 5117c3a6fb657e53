"""Turns a run of the benchmarks into a page: ``python -m bench.report build/bench.json`` writes ``build/bench.md`` and its plots.

``python -m bench.report kernels [build/bench.json]`` prints the table of kernels: what was asked of each, and what is reached.

``python -m bench.report promise`` measures the recall that plans deliver against the one asked for, and prints the table;
``python -m bench.report cascades`` compares such plans with peers at the same recall, and exact search with a flat one on noise;
``python -m bench.report matryoshka [rows]`` searches 1,281,167 float16 vectors of 2,048 dims by a plan and without (about 14 GB of memory);
``python -m bench.report bytes`` compares codes of as many bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from . import cascades, equal_bytes, matryoshka, promise
from .settings import RECALL_TOLERANCE, SETTINGS

Entry = Mapping[str, Any]
"""One contender: its median in seconds per query and the fields of ``contest.description``."""

COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#868e96", "#1971c2", "#f08c00")
MARKERS = "osD^vPX*"

RECALLS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
"""Marks of the recall axis, which is stretched towards 1."""


ROWS = {
    1: "float32, 32 queries",
    2: "float32, 1000 queries",
    3: "float32, 2 to 8 queries",
    4: "float32, one query",
    5: "bfloat16 and float16",
    6: "int8",
    7: "Hamming, 200 queries",
    8: "Hamming, one query",
    9: "PQ of 4 bits",
    10: "PQ of 8 bits",
    11: "1 bit with factors",
    12: "rescoring",
    13: "PQ encoding and training",
    14: "few rows",
    15: "two threads",
}
"""The table of kernels."""

USAGE = (
    "usage: python -m bench.report promise | cascades [sentences | clustered | noise] | matryoshka [rows] | bytes | "
    "[kernels] build/bench.json"
)


def _cascades(part: str = "") -> Iterator[str]:
    if part not in ("", "sentences", "clustered", "noise"):
        raise SystemExit(USAGE)
    if part != "noise":
        yield cascades.table(list(cascades.measure(cascades.cases(part))))
    if not part:
        yield ""
    if part in ("", "noise"):
        yield cascades.noise_table(list(cascades.on_noise()))


COMMANDS: dict[str, Callable[..., Iterator[str]]] = {
    "promise": lambda: iter([promise.table(list(promise.measure()))]),
    "cascades": _cascades,
    "bytes": lambda: iter([equal_bytes.table(list(equal_bytes.measure()))]),
    "matryoshka": lambda rows=SETTINGS.huge: iter([matryoshka.table(matryoshka.measure(matryoshka.Sizes(int(rows))))]),
}
"""Those that measure by themselves."""


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS and len(arguments) <= 1 + (arguments[0] in ("cascades", "matryoshka")):
        for text in COMMANDS[arguments[0]](*arguments[1:]):
            print(text)
        return 0
    kernels = list(arguments[:1]) == ["kernels"]
    sources = (arguments[1:] or ["build/bench.json"]) if kernels else arguments
    if len(sources) != 1:
        print(USAGE, file=sys.stderr)
        return 2
    source = Path(sources[0])
    if not source.is_file():
        print(f"{source}: no such file; make bench writes it", file=sys.stderr)
        return 2
    run = json.loads(source.read_text(encoding="utf-8"))
    groups = contests(run)
    if not groups:
        print(f"{source}: no benchmark in it", file=sys.stderr)
        return 2
    if kernels:
        print(kernel_table(run, groups))
        return 0
    plots = {title: source.with_name(f"{source.stem}-{slug(title)}.png") for title, entries in groups.items() if entries[0]["family"]}
    for title, path in plots.items():
        plot(title, groups[title], path)
    page = source.with_suffix(".md")
    page.write_text(markdown(run, groups, {title: path.name for title, path in plots.items()}), encoding="utf-8")
    print(page, *plots.values(), sep="\n")
    return 0


def contests(run: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """Contenders by contest, fastest first."""
    groups: dict[str, list[Entry]] = {}
    for benchmark in run["benchmarks"]:
        entry = {**benchmark["extra_info"], "median": benchmark["stats"]["median"]}
        groups.setdefault(benchmark["group"], []).append(entry)
    return {title: sorted(entries, key=lambda entry: entry["median"]) for title, entries in groups.items()}


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


def machine(run: Mapping[str, Any], groups: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Where the figures are from, who was not there, and what the machine can do."""
    cpu = run["machine_info"]["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in run["machine_info"].get("versions", {}).items())
    lines = [f"{cpu.get('brand_raw', 'unknown CPU')}, {cpu.get('count', '?')} cores; {versions}; {run['datetime'][:10]}."]
    missing = run["machine_info"].get("missing")
    if missing:
        lines += ["", f"Not installed, and in no contest: {', '.join(missing)}."]
    rates: dict[str, list[float]] = {}
    for entry in (entry for entries in groups.values() for entry in entries):
        for name, rate in entry["rates"].items():
            rates.setdefault(name, []).append(rate)
    known = [f"{name} {figure(median(values) / 1e9)}" for name, values in sorted(rates.items()) if median(values)]
    if known:
        lines += ["", f"Limits, in G operations or GB a second, measured in every round, as medians over all contests: {', '.join(known)}."]
    if any(entry["settings"] != "full" for entries in groups.values() for entry in entries):
        lines += ["", "**A quick run: it shows that everything works, and its figures mean nothing.**"]
    return lines


def about(run: Mapping[str, Any], groups: Mapping[str, Sequence[Entry]]) -> list[str]:
    return [
        *machine(run, groups),
        "",
        "Contenders of a table took turns, round by round. Times are medians per query. Ratios are medians over pairs of rounds, above 1",
        "where the contender of the row is faster than the best peer: the fastest contender, by whichever of its paths, that is no",
        f"backend of this library and whose recall is no more than {RECALL_TOLERANCE} below. ≈ marks what was measured with a part of the",
        "queries, because all of them would have taken too long. The floor is the least time that the limits of the machine allow.",
    ]


def best_peer(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The fastest peer whose recall is no less."""
    peers = (other for other in entries if other["backend"] is None)
    return next((peer for peer in peers if not finds_less(peer, entry)), None)


def finds_less(entry: Entry, other: Entry) -> bool:
    """Whether recall is worse, among the queries that both have answered."""
    if entry["common_recall"] is None:
        return False
    return bool(entry["common_recall"] < other["common_recall"] - RECALL_TOLERANCE)


class Verdict(NamedTuple):
    """A target and what came of it; texts for a table."""

    row: int | None
    case: str
    contender: str
    target: str
    reached: str
    against: str
    fraction: str
    met: str

    def cells(self) -> list[str]:
        return [str(self.row or ""), *self[1:]]


def verdicts(title: str, entries: Sequence[Entry]) -> list[Verdict]:
    """What was asked for in a contest, and what was measured; nothing about contenders that cannot run on this machine."""
    by_name = {entry["contender"]: entry for entry in entries}
    preferred = next((name for name in entries[0]["order"] if name in by_name), None)
    found = []
    for target in entries[0]["targets"]:
        name = target["contender"] or preferred
        if name is None:
            found.append(Verdict(target["row"], title, "none", asked(target), "not there", "", "", "**no**"))
        elif entry := by_name.get(name):
            rival = by_name.get(target["rival"]) if target["rival"] else best_peer(entry, entries)
            value, against = reached(target["of"], entry, rival)
            if against:
                met = "not measured" if value is None else "yes" if value >= target["least"] else "**no**"
                found.append(Verdict(target["row"], title, name, asked(target), shown(target["of"], value), against, fraction(entry), met))
    return found


def reached(of: str, entry: Entry, rival: Entry | None) -> tuple[float | None, str]:
    """What a target compares with, None if it is not known, and against whom; nobody if the rival takes no part."""
    if of == "floor":
        return entry["fraction"], entry["limit"] or "the floor"
    if rival is None:
        return None, ""
    if of == "speed":
        return entry["ratios"][rival["contender"]], rival["contender"]
    if of == "recall":
        return entry["common_recall"] - rival["common_recall"], rival["contender"]
    known = entry["fraction"] and rival["fraction"]
    return entry["fraction"] / rival["fraction"] if known else None, f"{rival['contender']}, and loops"


def asked(target: Mapping[str, Any]) -> str:
    return f"≥ {shown(target['of'], target['least'])}"


def shown(of: str, value: float | None) -> str:
    if value is None:
        return "?"
    texts = {
        "speed": f"{value:.2f} x",
        "floor": f"{value:.0%} of floor",
        "scaling": f"{value:.2f} x scaling",
        "recall": f"recall {value:+.4f}",
    }
    return texts[of]


def fraction(entry: Entry) -> str:
    """The share of the floor that is reached, and what sets the floor."""
    return f"{entry['fraction']:.0%} of {entry['limit']}" if entry["fraction"] else ""


VERDICTS = ["row", "case", "contender", "target", "reached", "against", "fraction of the floor", "met"]


def targets(groups: Mapping[str, Sequence[Entry]]) -> list[str]:
    """What was asked for, and what was measured."""
    rows = [verdict.cells() for title, entries in groups.items() for verdict in verdicts(title, entries)]
    return ["## Targets", "", *grid(VERDICTS, rows, "rllrrlrl")] if rows else []


def kernel_table(run: Mapping[str, Any], groups: Mapping[str, Sequence[Entry]]) -> str:
    """Row by row of the table of kernels what was asked for, and what was measured; which rows this run has nothing about."""
    everything = [verdict for title, entries in groups.items() for verdict in verdicts(title, entries) if verdict.row]
    everything.sort(key=lambda verdict: verdict.row or 0)
    missed = [f"{row} ({name})" for row, name in ROWS.items() if row not in {verdict.row for verdict in everything}]
    met = sum(verdict.met == "yes" for verdict in everything)
    lines = [*machine(run, groups), "", *grid(VERDICTS, [verdict.cells() for verdict in everything], "rllrrlrl")]
    lines += ["", f"{met} of {len(everything)} targets met."]
    if missed:
        lines += ["", f"Rows without a measurement in this run: {', '.join(missed)}."]
    return "\n".join(lines)


def table(entries: Sequence[Entry]) -> list[str]:
    """One contest, fastest first."""
    first = entries[0]
    peers = any(entry["backend"] is None for entry in entries)
    against = any(entry["against"] for entry in entries)
    judged = any(entry["recall"] is not None for entry in entries)
    limited = any(entry["fraction"] for entry in entries)
    header = ["contender", "per query", first["unit"]]
    header += ["ratio", "to the best peer"] if peers else []
    header += ["ratio to its exact search"] if against else []
    header += ["fraction of the floor"] if limited else []
    header += [first["judged_by"]] if judged else []
    rows = []
    for entry in entries:
        name = f"**{entry['contender']}**" if entry["backend"] else entry["contender"]
        row = [
            name,
            about_if(entry["queries"] < entry["all_queries"] and not entry["alone"]) + duration(entry["median"]),
            figure(entry["rate"]),
        ]
        if peers:
            peer = best_peer(entry, entries)
            row += [f"{entry['ratios'][peer['contender']]:.2f}", peer["contender"]] if peer else ["", "none finds as much"]
        if against:
            row += [f"{entry['ratios'][entry['against']]:.2f}" if entry["against"] else ""]
        if limited:
            row += [fraction(entry)]
        if judged:
            row += [about_if(entry["judged"] < entry["all_queries"]) + f"{entry['recall']:.4f}"]
        rows.append(row)
    return grid(header, rows, "lrr" + "rl" * peers + "r" * (against + limited + judged))


def about_if(partial: bool) -> str:
    return "≈ " if partial else ""


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
    import numpy as np

    least = min(entry["recall"] for entry in entries)
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
    lost = 0.002
    axes.set_xscale("function", functions=(lambda recall: -np.log(1 + lost - recall), lambda value: 1 + lost - np.exp(-value)))
    axes.set(ylabel="queries per second", yscale="log", xlabel=entries[0]["judged_by"], xticks=[mark for mark in RECALLS if mark > least])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(least - 0.02, 1 + lost / 4)
    axes.set_title(title, fontsize="medium")
    axes.grid(which="both", alpha=0.3)
    axes.legend(title="dashed: peers")
    figure_.savefig(path, dpi=150)
    plt.close(figure_)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
