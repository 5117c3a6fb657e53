"""Wherever rows, queries, masks, ids and norms lie, and however rows are cut into pieces, dense operations give the same bits."""

from __future__ import annotations

import awkward
import numpy as np
import oracles
import pytest
from dense_cases import check, check_products, check_rescored, chunks, make, make_queries

from adaptive_search.backends.protocol import Backend, DenseChunk
from adaptive_search.types import KINDS, METRICS, Kind


@pytest.mark.parametrize("place", awkward.ROW_PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_places_of_rows(backend: Backend, kind: Kind, place: str) -> None:
    for dims in (1, 15, 33, 64, 100):
        rows, queries = make(kind, 135, dims), make_queries(19, dims)
        prepared = backend.dense_rows(kind, chunks(rows, (65,), place=awkward.ROW_PLACES[place]))
        for metric in METRICS:
            for count in (1, 4, 19):
                found = awkward.run(backend.dense_scan(prepared, queries[:count], 5, metric), prepared)
                check(found, metric, kind, queries[:count], rows, 5)
        candidates = np.tile(np.array([[134, 0, 64, 65, 7]], np.int64), (19, 1))
        check_rescored(backend.dense_rescore(prepared, queries, candidates, 5, "ip"), "ip", kind, queries, rows, candidates, 5)
        out = awkward.Guarded((19, 135), np.float32)
        backend.dense_dot(prepared, queries, out.array, 0, 135)
        check_products(out.array, kind, queries, rows)
        assert out.intact


@pytest.mark.parametrize("place", awkward.FLAT_PLACES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
def test_places_of_queries_masks_ids_and_norms(backend: Backend, place: str, count: int) -> None:
    put = awkward.FLAT_PLACES[place]
    rows, queries = make("float32", 200, 33), make_queries(count, 33)
    ids = np.random.default_rng(2).permutation(200).astype(np.int64)
    allowed = np.random.default_rng(3).random((count, 200)) < 0.7
    norms = oracles.canonical_norms(rows)
    prepared = backend.dense_rows("float32", [DenseChunk((rows,), put(norms))], put(ids))
    candidates = put(np.tile(np.array([[5, 199, 0]], np.int64), (count, 1)))
    for metric in METRICS:
        found = awkward.run(backend.dense_scan(prepared, put(queries), 10, metric, put(allowed)), prepared)
        check(found, metric, "float32", queries, rows, 10, ids, allowed)
        check_rescored(
            backend.dense_rescore(prepared, put(queries), candidates, 3, metric), metric, "float32", queries, rows, candidates, 3
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(1,), (15,), (16,), (17, 40), (7, 8, 33), (3, 5, 11, 20, 21, 50, 64)], ids=str)
def test_pieces_do_not_change_bits(backend: Backend, kind: Kind, cuts: tuple[int, ...]) -> None:
    rows, queries = make(kind, 200, 75), make_queries(18, 75)
    norms = oracles.canonical_norms(oracles.widened(kind, rows))
    for given_norms in (None, norms):
        for place in (None, awkward.before_forbidden_page, awkward.strided):
            prepared = backend.dense_rows(kind, chunks(rows, (130,), cuts, place, given_norms))
            for metric in METRICS:
                for count in (1, 18):
                    found = awkward.run(backend.dense_scan(prepared, queries[:count], 6, metric), prepared)
                    check(found, metric, kind, queries[:count], rows, 6)
            candidates = np.tile(np.array([[199, 3, 130]], np.int64), (18, 1))
            check_rescored(backend.dense_rescore(prepared, queries, candidates, 3, "l2"), "l2", kind, queries, rows, candidates, 3)


@pytest.mark.parametrize("cuts", [(0,), (9,), (0, 0, 4)], ids=str)
@pytest.mark.parametrize("dims", [0, 9])
def test_pieces_without_dims(backend: Backend, dims: int, cuts: tuple[int, ...]) -> None:
    """Pieces of no dims, and rows of nothing else, which all have the score 0."""
    rows, queries = make("float32", 100, dims), make_queries(20, dims)
    prepared = backend.dense_rows("float32", chunks(rows, cuts=tuple(min(cut, dims) for cut in cuts)))
    for count in (1, 20):
        check(awkward.run(backend.dense_scan(prepared, queries[:count], 6, "ip"), prepared), "ip", "float32", queries[:count], rows, 6)
