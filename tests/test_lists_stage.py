"""Lists as a stage: where they may stand, what they hold, and what is read back from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lists_cases import DIM, STAGES, asked, collection, expected, pairs, tuned

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend
from adaptive_search.layout import Slabs
from adaptive_search.representations import linked
from adaptive_search.storage import NewSegment, read_state, write_state


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_added_later_and_files(dtype: Any, backend: Backend, tmp_path: Path) -> None:
    rows = collection(1_500)
    if dtype == "int8":
        rows = np.clip(30 * rows, -127, 127).astype(np.int8)
    index = tuned("cosine", STAGES[3], rows[:1_000], 0.5, dtype)
    queries = asked(8)
    before = expected(index, backend, queries, 10, True)
    assert pairs(index.search(queries, 10)) == before
    index.save(tmp_path / "index")
    index.add(rows[1_000:1_003])  # a chunk of its own, as files are not added to
    index.add(rows[1_003:])
    assert len(index._store.chunks) == 2
    wanted = expected(index, backend, queries, 10, True)
    assert wanted != before
    assert pairs(index.search(queries, 10)) == wanted
    index.save(tmp_path / "index")
    for mmap in (True, False):
        assert pairs(asx.Index.open(tmp_path / "index", mmap=mmap).search(queries, 10)) == wanted


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("number", [13, 65_535])
def test_a_file_that_names_lists_that_are_not_there(number: int, mmap: bool, tmp_path: Path) -> None:
    tuned("ip", STAGES[0], collection(500), 1.0).save(tmp_path)
    state = read_state(tmp_path)
    arrays = dict(state.segments[0].arrays)
    name = next(name for name in arrays if name.endswith(".list"))
    arrays[name] = arrays[name].copy()
    arrays[name][77] = number
    write_state(tmp_path, [NewSegment(arrays, state.segments[0].rows)], aux=state.aux, meta=state.meta)
    with pytest.raises(asx.IndexFormatError, match="not below 13"):
        asx.Index.open(tmp_path, mmap=mmap)


@pytest.mark.parametrize("lists", [13, 200, 3_000])
def test_codes_are_held_twice(lists: int, backend: Backend) -> None:
    stages = [asx.Lists(lists), *STAGES[0][1:]]
    with_lists, without = (tuned("ip", some, collection(500), 1.0) for some in (stages, stages[1:]))
    # Its number, its place, and two bytes of codes for every place of the blocks that the lists take.
    sizes = np.bincount(with_lists._store.used("stage.0.list")[0])
    held = 2 * 64 * int((-(-sizes // 64)).sum()) / 500
    assert with_lists.plan.bytes_per_row - without.plan.bytes_per_row - 2 - 4 == pytest.approx(held, rel=0.3)


@pytest.mark.parametrize(
    "stages",
    [
        [asx.Lists(4)],
        [asx.Lists(4), asx.Full()],
        [asx.Lists(4), asx.PQ(4)],
        [asx.Lists(4), asx.PQ(4, keep=10)],
        [asx.Lists(4), asx.Int8(), asx.Full()],
        [asx.Int8(), asx.Lists(4), asx.PQ(4), asx.Full()],
        [asx.Lists(4), asx.Lists(4), asx.PQ(4), asx.Full()],
    ],
    ids=str,
)
def test_lists_come_before_codes_and_nowhere_else(stages: Any) -> None:
    with pytest.raises(ValueError, match="Lists only first, before a PQ without keep that is not the last"):
        asx.Cascade(stages)


@pytest.mark.parametrize("lists", [0, 1, 65_537, -3])
def test_a_number_of_lists_that_cannot_be(lists: int) -> None:
    with pytest.raises(ValueError, match="lists: expected"):
        asx.Lists(lists)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("8",), TypeError, "lists"),
        ((8.5,), TypeError, "lists"),
        ((None,), TypeError, "lists"),
    ],
    ids=str,
)
def test_bad_arguments_of_lists(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asx.Index(DIM, "ip", cascade=asx.Cascade([asx.Lists(*arguments), asx.PQ(4), asx.Full()]))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"centroids": np.zeros((3, DIM), np.float32)},
        {"centroids": np.zeros((4, DIM), np.float64)},
        {"centroids": np.zeros((4, DIM - 1), np.float32)},
        {"centroids": np.full((4, DIM), np.nan, np.float32)},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_refused(state: Any) -> None:
    lists, _ = linked(stage.bind(Slabs(DIM, "float32", ()), "ip", "x") for stage in (asx.Lists(4), asx.PQ(4)))
    with pytest.raises(ValueError, match="state: expected centroids"):
        lists.restore(state)
    with pytest.raises(TypeError, match="lists go before codes"):
        lists.before(lists)
