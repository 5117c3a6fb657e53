"""The commands of ``adaptive-search``, each a thin layer over the public API: read files, call, show."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import PQ, Binary, Cascade, Full, Index, Int8, Neighbors, Prefix, RaBit, backend, comparing, evaluate, plots
from .backends import PREFERENCE, missing
from .types import Array

app = typer.Typer(
    name="adaptive-search",
    help="Search embeddings on the CPU through cascades of cheap and exact representations.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Metric = Literal["cosine", "ip", "l2"]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of an index.", show_default=False)]

# Queries per call: enough for the batch kernels, few enough for a smooth progress bar and a prompt Ctrl-C.
QUERY_GROUP = 256


@app.command()
def demo(
    data: Annotated[Path, typer.Option(metavar="DIR", help="The data; a part of the source repository.")] = Path("examples/data"),
) -> None:
    """Search real sentences, then compare all backends."""
    from .demo import run

    run(data, Console())


@app.command()
def build(
    vectors: Annotated[Path, typer.Argument(metavar="VECTORS.npy", help="One vector a row; memory-mapped.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New directory for the index.", show_default=False)],
    metric: Annotated[Metric, typer.Option(help="How rows are compared.")] = "cosine",
    ids: Annotated[Path | None, typer.Option(metavar="IDS.npy", help="Integer ids, one a row; row numbers by default.")] = None,
    recall: Annotated[float, typer.Option(help="Recall@k to tune the index for; 1.0 is exact search.")] = 0.95,
    k: Annotated[int, typer.Option("-k", help="Neighbors per query to tune the index for.")] = 10,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="QUERIES.npy", help="Queries like those to come: the recall is then certified; stored rows otherwise."),
    ] = None,
    cascade: Annotated[
        str | None,
        typer.Option(
            metavar="STAGES",
            help="Stages from cheap to dear instead of those that tuning chooses: NAME[@SIZE][:KEEP], separated by commas, such as "
            "'binary:1000,int8:100,full', 'pq@48x8:200,full' or 'prefix@64:500,prefix@128:100,full'; 'exact' for none.",
        ),
    ] = None,
) -> None:
    """Build an index of the rows of VECTORS.npy and save it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already: name a new directory")
    chosen = None if cascade is None else parse_cascade(cascade)
    rows = read_matrix(vectors)
    labels = None if ids is None else read_array(ids)
    asked = None if queries is None else read_matrix(queries)
    if asked is not None and cascade is not None:
        raise ValueError("--queries tune an index whose cascade is not given: leave out one of --queries and --cascade")
    watched = sys.stderr.isatty()
    start = time.perf_counter()
    if cascade is None:
        index = Index.build(rows, labels, metric, recall, k, asked, progress=watched)
    else:
        index = Index(rows.shape[1], metric, dtype=index_dtype(rows), cascade=chosen)
        index.add(rows, labels, progress=watched)
    index.save(output)
    console = Console()
    console.print(f"{len(index):,} rows of {index.dim} dims in {time.perf_counter() - start:.1f} s, saved in {output}", highlight=False)
    console.print(f"{stages_text(index)}, {index.plan.bytes_per_row:,} bytes a row", highlight=False)


@app.command()
def search(
    directory: Directory,
    queries: Annotated[Path, typer.Argument(metavar="QUERIES.npy", help="One query a row, or a single one.", show_default=False)],
    k: Annotated[int, typer.Option("-k", help="Neighbors per query.")] = 10,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write .npz (ids, scores) or .tsv instead.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Exact search, whatever the plan of the index.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads to use; all cores by default.")] = None,
    show: Annotated[int, typer.Option(help="Queries shown in the table.")] = 10,
) -> None:
    """Find the nearest rows of every query."""
    if output is not None and output.suffix not in (".npz", ".tsv"):
        raise ValueError(f"output must end in .npz or .tsv, got {output.name}")
    index = Index.open(directory)
    batch = np.atleast_2d(read_array(queries))
    start = time.perf_counter()
    with progress_bar("searching", len(batch)) as advance:
        parts = []
        for first in range(0, len(batch), QUERY_GROUP):
            group = batch[first : first + QUERY_GROUP]
            parts.append(index.search(group, k, recall=1.0 if exact else None, threads=threads))
            advance(len(group))
    seconds = time.perf_counter() - start
    found = join(parts)
    if output is None:
        console = Console()
        console.print(neighbors_table(found, show))
        if len(batch) > show:
            console.print(f"{len(batch) - show:,} more queries: see all with -o FILE.tsv or -o FILE.npz", highlight=False)
    elif output.suffix == ".npz":
        np.savez(output, ids=found.ids, scores=found.scores)
    else:
        write_tsv(output, found)
    Console(stderr=True).print(f"{len(batch):,} queries in {seconds:.3f} s on {backend()}", highlight=False)


@app.command()
def compare(
    vectors: Annotated[Path, typer.Argument(metavar="VECTORS.npy", help="One vector a row; memory-mapped.", show_default=False)],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES.npy", help="Queries like those to come, one a row.", show_default=False)],
    metric: Annotated[Metric, typer.Option(help="How rows are compared.")] = "cosine",
    k: Annotated[int, typer.Option("-k", "--k", help="True neighbors to look for.")] = 10,
    stage: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help=f"A representation, {comparing.EXAMPLE}; any number of them. By default a set for the dim."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it, .png or .svg (needs matplotlib).")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the table as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table as CSV.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to search with; all cores by default.")] = None,
) -> None:
    """Compare representations of VECTORS.npy: bytes a row, recall, time."""
    representations = comparing.parse_stages(stage or ())
    if plot is not None:
        plots.check_path(plot)
    for path in (plot, json, csv):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"there is no directory {path.parent} to write {path.name} into")
    rows, batch = read_matrix(vectors), read_array(queries)
    among = [count for count in evaluate.AMONG if count > k]
    watched = sys.stderr.isatty()
    found = evaluate.compare(rows, batch, representations, metric=metric, k=k, among=among, threads=threads, progress=watched)
    comparing.show(found)
    if json is not None:
        comparing.write_json(found, json)
    if csv is not None:
        comparing.write_csv(found, csv)
    if plot is not None:
        plots.save_comparison(found, plot)


@app.command()
def info(
    directory: Directory,
    verify: Annotated[bool, typer.Option("--verify", help="Also check every byte of the files.")] = False,
) -> None:
    """Show what an index holds and how it searches."""
    index = Index.open(directory)
    if verify:
        index.verify()
    plan = index.plan
    files = [path for path in directory.iterdir() if path.is_file()]
    table = Table(show_header=False, box=None)
    for name, value in (
        ("rows", f"{len(index):,}"),
        ("dims", f"{index.dim}"),
        ("metric", index.metric),
        ("dtype", index.dtype),
        *([] if index.transform is None else [("transform", repr(index.transform))]),
        ("stages", stages_text(index)),
        ("bytes a row", f"{plan.bytes_per_row:,}"),
        *([] if plan.recall is None else [("recall asked for", f"{plan.recall:g}" + (f" at k={plan.k}" if plan.k else ""))]),
        *([] if plan.interval is None else [("recall measured", "{:.4f} to {:.4f}".format(*plan.interval))]),
        ("recall certified", "yes" if plan.certified else f"no: {plan.why}"),
        ("on disk", f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB in {len(files)} files"),
        *([("checksums", "all bytes verified")] if verify else []),
    ):
        table.add_row(name, value)
    Console(highlight=False).print(table)


@app.command("backends")
def show_backends() -> None:
    """List the backends, and why some cannot run here."""
    table = Table("backend", "state", box=None, pad_edge=False)
    for name in PREFERENCE:
        reason = missing(name)
        table.add_row(name, f"not available: {reason}" if reason else "in use" if name == backend() else "available")
    Console(highlight=False).print(table)


# --- what the commands share ----------------------------------------------------------------------------------------------


def parse_cascade(text: str) -> Cascade | None:
    """Turn ``"binary:1000,pq@48x8:200,full"`` into a cascade; ``"exact"`` is None.

    Examples
    --------
    >>> parse_cascade("prefix@64:200,full") == Cascade([Prefix(64, keep=200), Full()])
    True
    """
    if text == "exact":
        return None
    return Cascade([_parse_stage(stage.strip()) for stage in text.split(",")])


def _parse_stage(text: str) -> Binary | RaBit | PQ | Int8 | Prefix | Full:
    match = re.fullmatch(r"([a-z0-9]+)(?:@(\d+)(?:x(\d+))?)?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"cascade: a stage is NAME[@SIZE][:KEEP], got {text!r}")
    name = match[1]
    size, bits, keep = (None if group is None else int(group) for group in match.groups()[1:])
    if bits is not None and name != "pq":
        raise ValueError(f"cascade: only pq takes SUBSPACESxBITS, got {text!r}")
    if name == "full":
        if size is not None or keep is not None:
            raise ValueError(f"cascade: full takes neither size nor keep, got {text!r}")
        return Full()
    if keep is None:
        raise ValueError(f"cascade: {name} needs a number of rows to keep, such as {text}:100")
    if name == "binary":
        return Binary(size, keep=keep)
    if name == "rabit":
        return RaBit(1 if size is None else size, keep=keep)
    if name == "int8":
        return Int8(size, keep=keep)
    if name not in ("pq", "prefix"):
        raise ValueError(f"cascade: stages are binary, rabit, pq, int8, prefix and full, got {name!r}")
    if size is None:
        raise ValueError(f"cascade: {name} needs a size, such as {name}@64:{keep}")
    return Prefix(size, keep=keep) if name == "prefix" else PQ(size, 8 if bits is None else bits, keep=keep)


def read_array(path: Path) -> Array:
    """Memory-map an array of a ``.npy`` file."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays: give a .npy file")
    return array


def read_matrix(path: Path) -> Array:
    """Memory-map a matrix of a ``.npy`` file."""
    array = read_array(path)
    if array.ndim != 2:
        raise ValueError(f"{path} must hold one vector a row, shape (rows, dims), got shape {array.shape}")
    return array


def index_dtype(rows: Array) -> str:
    """The index's dtype for rows as given: 16-bit floats and int8 are kept, everything else is float32."""
    return str(rows.dtype) if rows.dtype in (np.float16, np.int8) else "float32"


def stages_text(index: Index) -> str:
    """What a search goes through, cheap to dear."""
    return " → ".join(map(repr, index.plan.stages))


def join(parts: list[Neighbors]) -> Neighbors:
    """Stack the answers of groups of queries; widths differ only if all rows of a group were filtered, never here."""
    if not parts:
        return Neighbors(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
    return Neighbors(np.concatenate([part.ids for part in parts]), np.concatenate([part.scores for part in parts]))


def neighbors_table(found: Neighbors, show: int) -> Table:
    """One line a neighbor, queries set apart."""
    table = Table(box=None, pad_edge=False)
    for title in ("query", "rank", "id", "score"):
        table.add_column(title, justify="right")
    for query, (ids, scores) in enumerate(zip(found.ids[:show], found.scores[:show], strict=True)):
        for rank, (row, score) in enumerate(zip(ids, scores, strict=True), 1):
            table.add_row(str(query) if rank == 1 else "", str(rank), str(row), f"{score:.6g}", end_section=rank == len(ids))
    return table


def write_tsv(path: Path, found: Neighbors) -> None:
    """Columns query, rank, id, score, with a header line; scores with all their digits."""
    with path.open("w", encoding="utf-8") as file:
        file.write("query\trank\tid\tscore\n")
        for query, (ids, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
            for rank, (row, score) in enumerate(zip(ids, scores, strict=True), 1):
                file.write(f"{query}\t{rank}\t{row}\t{score:.9g}\n")


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that disappears when the work is done; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)
