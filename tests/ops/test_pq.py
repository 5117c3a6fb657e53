"""Product quantization: table sums, tables, nearest codewords and the blocked layout, to the bit."""

from __future__ import annotations

from typing import Any

import awkward
import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from adaptive_search.backends import backends, get
from adaptive_search.backends.protocol import Backend, CodeChunk

Array = NDArray[Any]

SUBSPACES = (1, 2, 3, 7, 8, 15, 16, 31, 33, 48, 63, 96, 97)


def make(n: int, subspaces: int, bits: int, seed: int = 0) -> Array:
    """One code an entry, (n, M)."""
    return np.random.default_rng(seed).integers(0, 2**bits, (n, subspaces)).astype(np.uint8)


def make_tables(count: int, subspaces: int, bits: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, subspaces, 2**bits)).astype(np.float32)


def row_major(codes: Array, bits: int) -> Array:
    """Codes as ``encode`` returns them: two of four bits share a byte, the even subspace in the low nibble."""
    if bits == 8:
        return codes
    pairs = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return pairs[:, ::2] | pairs[:, 1::2] << 4


def blocked(codes: Array, bits: int) -> Array:
    """The layout of protocol.Backend.pq_rows."""
    stored = row_major(codes, bits)
    stored = np.pad(stored, ((0, -len(stored) % 64), (0, 0)))
    return np.ascontiguousarray(stored.reshape(-1, 64, stored.shape[1]).transpose(0, 2, 1))


def chunks(codes: Array, bits: int, sizes: tuple[int, ...] = (64 * 10**6,), place: Any = None) -> list[CodeChunk]:
    place = place or (lambda array: array)
    return [CodeChunk(place(blocked(codes[part], bits)), len(codes[part])) for part in awkward.cut(len(codes), sizes)]


def check(found: tuple[Array, Array], tables: Array, codes: Array, k: int, largest: bool, ids: Any = None, allowed: Any = None) -> None:
    scores, numbers = oracles.best(oracles.canonical_adc(tables, codes), k, ids=ids, largest=largest, allowed=allowed)
    np.testing.assert_array_equal(found[1], numbers)
    assert found[0].dtype == np.float32
    assert oracles.same_bits(found[0], scores)


def check_scans(backend: Backend, tables: Array, codes: Array, bits: int, k: int, counts: tuple[int, ...], **options: Any) -> None:
    """Scans with the first so many queries, for the largest and for the smallest sums."""
    ids, allowed = options.pop("ids", None), options.pop("allowed", None)
    prepared = backend.pq_rows(chunks(codes, bits, **options), codes.shape[1], bits, ids)
    for count in counts:
        mask = allowed if allowed is None or allowed.ndim == 1 else allowed[:count]
        for largest in (True, False):
            found = awkward.run(backend.pq_scan(prepared, tables[:count], k, largest, mask), prepared)
            check(found, tables[:count], codes, k, largest, ids, mask)


# --- scans ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("subspaces", SUBSPACES)
def test_subspaces(backend: Backend, subspaces: int, bits: int) -> None:
    for tables in (make_tables(21, subspaces, bits), whole(make_tables(21, subspaces, bits), 0, 63)):
        check_scans(backend, tables, make(230, subspaces, bits), bits, 7, (1, 6, 21), sizes=(128, 64))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("subspaces", [600, 2000, 5000])
def test_many_subspaces_do_not_overflow(backend: Backend, subspaces: int, bits: int) -> None:
    """Every entry near its table's maximum: sums of rounded entries are as large as they can be, and differences small."""
    codes = make(500, subspaces, bits)
    check_scans(backend, np.full((1, subspaces, 2**bits), 63, np.float32), codes, bits, 20, (1,))
    tables = make_tables(5, subspaces, bits)
    tables[1] = 1000 + tables[1]
    tables[2:4] = np.where(np.arange(2**bits) == 0, np.float32(-1000), 1000 + tables[2:4] / 100)
    tables[3, :24, 0] = -8000
    codes[100:] = np.maximum(codes[100:], 1)
    check_scans(backend, tables, codes, bits, 20, (1, 5))
    check_scans(backend, tables[3:], codes, bits, 20, (1,))


@pytest.mark.parametrize(("subspaces", "bits"), [(2067, 4), (2046, 8), (2059, 8)])
def test_a_tree_that_is_not_whole_counts_in_sums(backend: Backend, subspaces: int, bits: int) -> None:
    """Where one tree more decides whether sums of largest entries fit: rows with all of them come last, when thresholds are there."""
    codes = np.full((560, subspaces), 2, np.uint8)
    codes[495] = codes[530] = codes[550:] = 1
    codes[530, 3] = codes[550:, subspaces // 2] = 0
    tables = np.full((1, subspaces, 2**bits), 0.3, np.float32)
    tables[:, :, :2] = 0, 1
    check_scans(backend, tables, codes, bits, 3, (1,))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("wide", [0, 5, 8, 13, 24, 40])
def test_wide_subspaces_in_front(backend: Backend, wide: int, bits: int) -> None:
    """Ranges that fall steeply, with entries far below the others and far above: a scan may round each as it likes, but not lose a row."""
    rng = np.random.default_rng(wide)
    tables = make_tables(9, 43, bits)
    tables[:, :wide] *= 20
    tables[1] *= 0.9 ** np.arange(43, dtype=np.float32)[:, None]
    tables[2, :, 3], tables[3, :, 3] = -100, 100
    tables[4:6, rng.integers(0, 43, 6), 1] *= np.float32(1000)
    tables[6:] *= rng.choice([1, 5, 50], (3, 43, 1)).astype(np.float32)
    check_scans(backend, tables, make(3000, 43, bits), bits, 20, (1, 2, 9))


def steep(tables: Array, wide: int, ratio: float) -> Array:
    """Ranges that fall by `ratio` from subspace `wide` on to those farthest from it."""
    away = np.abs(np.arange(tables.shape[1]) - wide)
    return (tables * (ratio ** (-away / max(away.max(), 1)))[:, None]).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ratio", [10, 1000, 1e6, 1e30])
def test_any_subspace_may_be_the_widest(backend: Backend, ratio: float, bits: int) -> None:
    """One after the other, with every number of subspaces up to a tree and some of several trees, whole and not."""
    for subspaces in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 17, 41, 145):
        tables, codes = make_tables(5, subspaces, bits), make(400, subspaces, bits)
        for wide in range(0, subspaces, (subspaces + 4) // 5):
            check_scans(backend, steep(tables, wide, ratio), codes, bits, 10, (1, 5))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1, 1e28, 1e34, 1e37])
def test_steep_ranges_at_the_ends_of_the_float_range(backend: Backend, scale: float, bits: int) -> None:
    """Some of them zero, with queries of other sizes and shapes in the same call."""
    codes, tables = make(2000, 48, bits), make_tables(8, 48, bits)
    with np.errstate(all="ignore"):
        for wide, ratio in ((0, 1e3), (0, 1e9), (47, 1e3), (20, 200)):
            some = steep(tables, wide, ratio)
            some[:, ::5] = some[:, ::5, :1]
            some[1] *= np.float32(1e-6)
            some[2] = some[2, ::-1]
            some[3] = 0
            check_scans(backend, (some * np.float32(scale)).astype(np.float32), codes, bits, 20, (1, 4, 8))


# Trees (of 8 subspaces) that are wider than others, as many times.
WIDER: list[dict[int, int]] = [{}, {0: 4}, {0: 128}, {11: 16}, {4: 64, 5: 16, 6: 4}]


def rounded_at_its_worst(wider: dict[int, int], bits: int) -> tuple[Array, Array]:
    """Tables and codes: the best rows are rounded down in all subspaces, slightly worse ones before them up, for some query, wherever a
    scan rounds. Subspaces enough for that to be more than what the average of the last tree, of one subspace, exceeds it by."""
    subspaces, queries, step = 97, 40, 1 / (127 if bits == 4 else 255)
    apart = 0.05 * step
    tables = np.full((queries, subspaces, 2**bits), 0.5)
    tables[:, :, 0], tables[:, :, 1] = 0, 1
    tables[:, :-1, 2:4] = (0.5 + np.arange(queries) / queries * step)[:, None, None] + np.array([0, apart])
    for tree, times in wider.items():
        tables[:, 8 * tree : 8 * tree + 8] *= times
    tables[:, -1, 2] += 1.02 * (tables[:, :-1, 3] - tables[:, :-1, 2]).sum(axis=1)
    codes = np.zeros((1000, subspaces), np.uint8)
    codes[:300], codes[900:920] = 3, 2
    return tables.astype(np.float32), codes


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("wider", WIDER, ids=str)
def test_rounding_at_its_worst(backend: Backend, wider: dict[int, int], bits: int) -> None:
    tables, codes = rounded_at_its_worst(wider, bits)
    for sign in (1, -1):
        check_scans(backend, sign * tables, codes, bits, 20, (1, len(tables)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 4095, 4096, 4097, 9000])
def test_row_counts(backend: Backend, n: int, bits: int) -> None:
    for sizes in ((64 * 10**6,), (64, 4096, 128)):
        check_scans(backend, make_tables(9, 5, bits), make(n, 5, bits), bits, 10, (1, 9), sizes=sizes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [1, 10, 100, 5000, 5001])
def test_ties_go_to_the_smaller_id(backend: Backend, k: int, bits: int) -> None:
    rng = np.random.default_rng(k)
    codes, tables = make(7, 6, bits)[rng.integers(0, 7, 5000)], make_tables(5, 6, bits)
    tables[1], tables[2, :, ::2] = 0.1, 3
    for ids in (None, awkward.read_only(rng.permutation(5000).astype(np.int64) * 5)):
        check_scans(backend, tables, codes, bits, k, (1, 5), sizes=(1024, 2048), ids=ids)


TABLES = {
    "constant": lambda t: np.full_like(t, 0.3),
    "constant but for one": lambda t: np.where(np.arange(t.size).reshape(t.shape) == t.size // 2, np.float32(0.30000004), np.float32(0.3)),
    "zero": np.zeros_like,
    "one subspace dwarfs all": lambda t: t * np.where(np.arange(t.shape[1]) == 3, np.float32(1e8), np.float32(1))[None, :, None],
    "one entry dwarfs all": lambda t: np.where(np.arange(t.shape[2]) == 5, np.float32(1e20), t),
    "tiny": lambda t: (t * 1e-42).astype(np.float32),
    "huge": lambda t: (t * 1e36).astype(np.float32),
    "overflowing": lambda t: (np.sign(t) * 3e38).astype(np.float32),
    "nearly equal": lambda t: np.nextafter(np.float32(1), np.sign(t)).astype(np.float32),
    "steps of one subspace": lambda t: np.sort(t, axis=2),
    # Whole numbers of a small range are summed exactly.
    "whole": lambda t: whole(t, 0, 63),
    "whole, the largest only": lambda t: np.full_like(t, 63),
    "whole, some negative": lambda t: whole(t, -31, 32),
    "whole, far from zero": lambda t: whole(t, -5000, -4937) + 10_000 * (np.arange(t.shape[1]) % 2)[None, :, None].astype(np.float32),
    "whole, but of too wide a range": lambda t: whole(t, 0, 64),
    "whole, but for one": lambda t: np.where(np.arange(t.size).reshape(t.shape) == t.size // 2, np.float32(1.5), whole(t, 0, 63)),
    "whole of one query only": lambda t: np.where(np.arange(len(t))[:, None, None] % 3 == 1, whole(t, 0, 63), t),
}


def whole(tables: Array, low: int, high: int) -> Array:
    """Tables of whole numbers low..high, both of which are there."""
    steps = np.round((tables - tables.min()) / (tables.max() - tables.min()) * (high - low)) + low
    return steps.astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", TABLES)
def test_tables_of_all_shapes(backend: Backend, shape: str, bits: int) -> None:
    """A scan that rounds its tables must not let the rounding decide."""
    codes = make(3000, 9, bits)
    with np.errstate(all="ignore"):
        check_scans(backend, TABLES[shape](make_tables(18, 9, bits)), codes, bits, 25, (1, 18))


WHOLE = {
    "plain": lambda t: t,
    "constant": lambda t: np.full_like(t, 0.3),
    "one subspace dwarfs all": lambda t: t * np.where(np.arange(t.shape[1]) == 3, np.float32(1e8), np.float32(1))[None, :, None],
    "one query of zeros": lambda t: np.where(np.arange(len(t))[:, None, None] == 1, np.float32(0), t),
    "beyond what can be rounded": lambda t: np.where(np.arange(len(t))[:, None, None] % 2, np.sign(t) * np.float32(3e38), t),
    "tiny": lambda t: (t * 1e-36).astype(np.float32),
}


@pytest.mark.parametrize("shape", WHOLE)
@pytest.mark.parametrize(("subspaces", "entries"), [(1, 16), (7, 16), (96, 16), (5, 256), (4, 1), (3, 21)])
def test_whole_tables(backend: Backend, shape: str, subspaces: int, entries: int) -> None:
    """Whole numbers that stand for the entries to within half a step."""
    tables = WHOLE[shape](np.random.default_rng(2).standard_normal((6, subspaces, entries)).astype(np.float32))
    rounded, base, step = tables.copy(), np.full(6, np.nan), np.full(6, np.nan)
    backend.pq_whole(rounded, base, step)
    assert rounded.min() >= 0
    assert rounded.max() <= 63
    np.testing.assert_array_equal(rounded, np.rint(rounded))
    wide = tables.astype(np.float64)
    lows = wide.min(axis=2)
    np.testing.assert_allclose(base, lows.sum(axis=1), rtol=1e-12, atol=1e-300)
    spread = (wide.max(axis=2) - lows).max(axis=1)
    usable = (spread > 1e-30) & (spread < 1e37)
    assert oracles.same_bits(rounded, oracles.whole_tables(tables))
    np.testing.assert_allclose(step, np.where(usable, spread / 63, 1.0), rtol=1e-6)
    error = np.abs(wide - (lows[:, :, None] + step[:, None, None] * rounded))[usable]
    assert (error <= 0.5001 * step[usable, None, None] + 1e-6 * np.abs(wide[usable])).all()
    if entries == 16:
        codes = make(400, subspaces, 4)
        check_scans(backend, rounded, codes, 4, 30, (1, 6))


@pytest.mark.parametrize("bits", [4, 8])
def test_sums_of_negative_zeros(backend: Backend, bits: int) -> None:
    """Products may be negative zeros, whose sum is one."""
    codes, tables = make(300, 9, bits), np.copysign(np.float32(0), make_tables(5, 9, bits))
    tables[1] = -0.0
    prepared = backend.pq_rows(chunks(codes, bits), 9, bits)
    check(awkward.run(backend.pq_scan(prepared, tables, 20, True), prepared), tables, codes, 20, True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("k", [10, 6000])
def test_sorted_rows(backend: Backend, k: int, order: int, bits: int) -> None:
    base = 2**bits
    values = np.arange(12000)[::order] * (base**2) // 12000
    codes = np.stack([values // base, values % base, values * 0], axis=1).astype(np.uint8)
    tables = np.zeros((9, 3, base), np.float32)
    tables[:, 0], tables[:, 1] = np.arange(base) * base, np.arange(base)
    tables[4:] *= -1
    check_scans(backend, tables, codes, bits, k, (1, 9), sizes=(4992,))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", awkward.BATCHES)
def test_batches(backend: Backend, count: int, bits: int) -> None:
    check_scans(backend, make_tables(100, 13, bits), make(700, 13, bits), bits, 10, (count,), sizes=(320,))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_masks(backend: Backend, share: float, bits: int) -> None:
    rng = np.random.default_rng(7)
    for shape in ((5000,), (20, 5000)):
        allowed = rng.random(shape) < share
        for place in (awkward.before_forbidden_page, awkward.of_any_true_bytes):
            mask = place(allowed)
            check_scans(backend, make_tables(20, 5, bits), make(5000, 5, bits), bits, 10, (1, 3, 20), sizes=(4096,), allowed=mask)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("place", awkward.FLAT_PLACES)
def test_places(backend: Backend, place: str, bits: int) -> None:
    put = awkward.FLAT_PLACES[place]
    for subspaces in (1, 2, 5, 16, 33):
        codes, tables = make(135, subspaces, bits), put(make_tables(19, subspaces, bits))
        check_scans(backend, tables, codes, bits, 5, (1, 4, 19), sizes=(64,), place=put)
        prepared = backend.pq_rows(chunks(codes, bits, (64,), put), subspaces, bits)
        candidates = put(np.tile(np.array([[134, 0, 64, 65, 7]], np.int64), (19, 1)))
        allowed = np.isin(np.arange(135), candidates[0])
        check(backend.pq_rescore(prepared, tables, candidates, 5, True), tables, codes, 5, True, allowed=allowed)


@pytest.mark.parametrize("bits", [4, 8])
def test_rescore(backend: Backend, bits: int) -> None:
    rng = np.random.default_rng(4)
    codes, tables = make(3000, 11, bits), make_tables(9, 11, bits)
    codes[1000:2000] = codes[:1000]
    ids = rng.permutation(3000).astype(np.int64)
    prepared = backend.pq_rows(chunks(codes, bits, (64, 1024)), 11, bits, ids)
    for width in (0, 1, 7, 100, 4000):
        candidates = rng.integers(-1, 3000, (9, width))
        candidates[2] = -1
        candidates[3] = 17
        allowed = np.zeros((9, 3000), bool)
        for query, some in enumerate(candidates):
            allowed[query, some[some >= 0]] = True
        for k in (1, 10, 4000):
            for largest in (True, False):
                check(backend.pq_rescore(prepared, tables, candidates, k, largest), tables, codes, k, largest, ids, allowed)


@pytest.mark.parametrize("bits", [4, 8])
def test_forks(backend: Backend, bits: int) -> None:
    codes, tables = make(30000, 5, bits), make_tables(10, 5, bits)
    prepared = backend.pq_rows(chunks(codes, bits, (8960, 4096, 128)), 5, bits)
    for count in (1, 10):
        scan = backend.pq_scan(prepared, tables[:count], 300, False)
        forks = [scan.fork(), scan]
        for visit in range(prepared.visits):
            forks[visit % 2].run(visit, visit + 1)
        scan.merge(forks[0])
        check(scan.finish(), tables[:count], codes, 300, False)


# --- tables, codewords, layout -------------------------------------------------------------------------------------------
def make_codebooks(subspaces: int, bits: int, dims: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal((subspaces, 2**bits, dims)).astype(np.float32)


SHAPES = [(1, 1, 0), (1, 7, 0), (2, 3, 1), (3, 16, 5), (5, 8, 0), (7, 1, 0), (8, 33, 32), (16, 4, 0), (33, 5, 4), (48, 16, 0)]
"""Subspaces, dims of each, dims that the last one lacks."""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("squared", [False, True])
def test_tables(backend: Backend, squared: bool, bits: int) -> None:
    for subspaces, dims, lacking in SHAPES:
        codebooks = make_codebooks(subspaces, bits, dims)
        for count in (0, 1, 2, 5, 17):
            queries = np.random.default_rng(4).standard_normal((count, subspaces * dims - lacking)).astype(np.float32)
            expected = oracles.canonical_tables(queries, codebooks, squared)
            for put in (np.copy, awkward.before_forbidden_page, awkward.unaligned):
                out = awkward.Guarded((count, subspaces, 2**bits), np.float32)
                assert backend.pq_tables(put(queries), put(codebooks), squared, out.array)
                assert oracles.same_bits(out.array, expected)
                assert out.intact


@pytest.mark.parametrize("squared", [False, True])
def test_tables_of_any_number_of_codewords(backend: Backend, squared: bool) -> None:
    """And whether they are finite, which does not depend on places that hold no codeword. Numba's are multiples of sixteen."""
    for codewords in (16, 48, 256) if backend.name == "numba" else (1, 5, 15, 16, 17, 37, 256, 300):
        for count in (1, 5):
            for far, finite in ((None, True), (1, False), (codewords, False)):
                codebooks = np.random.default_rng(3).standard_normal((3, codewords, 2)).astype(np.float32) + np.float32(1e20)
                queries = np.random.default_rng(4).standard_normal((count, 6)).astype(np.float32) + np.float32(1e20 if squared else 0)
                if far is not None:
                    codebooks[1, far - 1] = 3e38
                    queries[-1, 2] = -1e30
                out = awkward.Guarded((count, 3, codewords), np.float32)
                assert backend.pq_tables(queries, codebooks, squared, out.array) is finite
                with np.errstate(over="ignore", invalid="ignore"):
                    assert oracles.same_bits(out.array, oracles.canonical_tables(queries, codebooks, squared))
                assert out.intact


def test_tables_say_what_they_mean(backend: Backend) -> None:
    """The sum of a row's entries is the product with, or the squared distance to, its decoded vector."""
    codebooks, codes = make_codebooks(6, 4, 5), make(50, 6, 4)
    queries = np.random.default_rng(4).standard_normal((7, 30)).astype(np.float32)
    decoded = codebooks[np.arange(6), codes].reshape(50, 30)
    for squared, meaning in ((False, oracles.dot), (True, oracles.squared_distance)):
        out = np.empty((7, 6, 16), np.float32)
        backend.pq_tables(queries, codebooks, squared, out)
        np.testing.assert_allclose(oracles.canonical_adc(out, codes), meaning(queries, decoded), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_assign(backend: Backend, bits: int) -> None:
    for subspaces, dims, lacking in SHAPES:
        codebooks = make_codebooks(subspaces, bits, dims)
        for n in (0, 1, 2, 63, 64, 65, 131):
            vectors = np.random.default_rng(5).standard_normal((n, subspaces * dims - lacking)).astype(np.float32)
            expected = oracles.canonical_tables(vectors, codebooks, True).argmin(axis=2)
            for put in awkward.FLAT_PLACES.values() if n == 65 else (np.copy,):
                out = awkward.Guarded((n, subspaces), np.int32)
                backend.pq_assign(put(vectors), codebooks, out.array)
                np.testing.assert_array_equal(out.array, expected)
                assert out.intact


@pytest.mark.parametrize("bits", [4, 8])
def test_assign_prefers_the_lowest_index(backend: Backend, bits: int) -> None:
    rng = np.random.default_rng(6)
    for distinct in (1, 2, 5):
        codebooks = np.take(rng.integers(-1, 2, (9, distinct, 2)).astype(np.float32), rng.integers(0, distinct, 2**bits), axis=1)
        vectors = rng.integers(-2, 3, (200, 18)).astype(np.float32)
        out = np.empty((200, 9), np.int32)
        backend.pq_assign(vectors, codebooks, out)
        np.testing.assert_array_equal(out, oracles.canonical_tables(vectors, codebooks, True).argmin(axis=2))


def test_assign_of_huge_and_tiny_vectors(backend: Backend) -> None:
    """Distances that are all infinite, or all equal after rounding, choose the first codeword."""
    codebooks = make_codebooks(4, 8, 3)
    vectors = np.random.default_rng(7).standard_normal((30, 12)).astype(np.float32)
    vectors *= np.array([1e30, 1e10, 1, 1e-30, 1e-44, 0], np.float64).repeat(5)[:, None].astype(np.float32)
    out = np.empty((30, 4), np.int32)
    backend.pq_assign(vectors, codebooks, out)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(out, oracles.canonical_tables(vectors, codebooks, True).argmin(axis=2))


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1e6])
@pytest.mark.parametrize("dims", [1, 3, 16, 40])
def test_assign_settles_near_ties(backend: Backend, dims: int, offset: float) -> None:
    """Vectors halfway between two codewords, some of them far from the origin: any rounding but the canonical one decides otherwise."""
    rng = np.random.default_rng(8)
    codebooks = make_codebooks(3, 8, dims) + np.float32(offset)
    pairs = rng.integers(0, 256, (2, 300, 3))
    numbers = np.arange(3)
    halfway = (codebooks[numbers, pairs[0]].astype(np.float64) + codebooks[numbers, pairs[1]]) / 2
    vectors = (halfway + rng.integers(-2, 3, halfway.shape) * 1e-7).reshape(300, -1).astype(np.float32)
    out = np.empty((300, 3), np.int32)
    backend.pq_assign(vectors, codebooks, out)
    np.testing.assert_array_equal(out, oracles.canonical_tables(vectors, codebooks, True).argmin(axis=2))


@pytest.mark.parametrize("codewords", [1, 2, 5, 9, 256, 257, 300, 1000])
def test_assign_to_any_number_of_codewords(backend: Backend, codewords: int) -> None:
    rng = np.random.default_rng(9)
    codebooks = rng.standard_normal((3, codewords, 5)).astype(np.float32)
    vectors = rng.standard_normal((70, 14)).astype(np.float32)
    out = np.empty((70, 3), np.int32)
    backend.pq_assign(vectors, codebooks, out)
    np.testing.assert_array_equal(out, oracles.canonical_tables(vectors, codebooks, True).argmin(axis=2))


@pytest.mark.parametrize("codewords", [257, 512, 700])
def test_assign_to_many_codewords_prefers_the_lowest_index(backend: Backend, codewords: int) -> None:
    """Equal codewords far from each other, near-ties, and vectors whose distances overflow or are none."""
    rng = np.random.default_rng(11)
    codebooks = np.take(rng.standard_normal((2, 90, 4)), rng.integers(0, 90, codewords), axis=1).astype(np.float32)
    pairs = rng.integers(0, codewords, (2, 280, 2))
    halfway = (codebooks[[0, 1], pairs[0]].astype(np.float64) + codebooks[[0, 1], pairs[1]]) / 2
    vectors = (halfway + rng.integers(-2, 3, halfway.shape) * 1e-7).reshape(280, 8).astype(np.float32)
    codebooks[0, :256] *= np.float32(1e30)
    vectors[:4], vectors[4:6, 0], vectors[6] = 3e38, np.nan, -np.inf
    out = np.empty((280, 2), np.int32)
    with np.errstate(all="ignore"):
        backend.pq_assign(vectors, codebooks, out)
        expected = oracles.canonical_tables(vectors, codebooks, True)
    np.testing.assert_array_equal(out, np.where(np.isnan(expected), np.inf, expected).argmin(axis=2))


@pytest.mark.parametrize("scale", [1e-38, 1e-22, 1e-19, 1e17, 1e18, 1e19, 3e19, 1e38])
def test_assign_at_the_ends_of_the_float_range(backend: Backend, scale: float) -> None:
    """Squares and norms that leave the range where the distances may not, and vectors that are not finite at all."""
    limit = np.finfo(np.float32).max
    codebooks = np.clip(make_codebooks(3, 8, 4).astype(np.float64) * scale, -limit, limit).astype(np.float32)
    vectors = np.clip(np.random.default_rng(10).standard_normal((90, 12)) * scale, -limit, limit).astype(np.float32)
    vectors[::3] = np.clip(codebooks[np.arange(3), 17].astype(np.float64) * 1.0001, -limit, limit).astype(np.float32).ravel()
    vectors[4, 1], vectors[40, 7], vectors[41] = np.nan, np.inf, -np.inf
    out = np.empty((90, 3), np.int32)
    with np.errstate(all="ignore"):
        backend.pq_assign(vectors, codebooks, out)
        expected = oracles.canonical_tables(vectors, codebooks, True)
    np.testing.assert_array_equal(out, np.where(np.isnan(expected), np.inf, expected).argmin(axis=2))


@oracles.once
def summed(points: Array, nearest: Array, codewords: int) -> tuple[Array, Array]:
    """One float64 addition after the other."""
    sums, counts = np.zeros((codewords, points.shape[1])), np.zeros(codewords, np.int64)
    with np.errstate(invalid="ignore"):
        for point, codeword in zip(points.astype(np.float64), nearest, strict=True):
            sums[codeword] += point
            counts[codeword] += 1
    return sums, counts


def check_sums(backend: Backend, points: Array, nearest: Array, codewords: int, kept: Array | None = None) -> None:
    sums, counts = awkward.Guarded((codewords, points.shape[1]), np.float64), awkward.Guarded((codewords,), np.int64)
    sums.array[:], counts.array[:] = np.nan, -1
    backend.centroid_sums(points if kept is None else kept, nearest, sums.array, counts.array)
    expected = summed(points, nearest, codewords)
    assert oracles.same_bits(sums.array, expected[0])
    np.testing.assert_array_equal(counts.array, expected[1])
    assert sums.intact
    assert counts.intact


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 100])
def test_centroid_sums(backend: Backend, width: int) -> None:
    """Numbers of many magnitudes, of which another order of additions makes other sums; codewords of which some have no points."""
    rng = np.random.default_rng(14)
    for n in (0, 1, 2, 65, 300):
        points = (rng.standard_normal((n, width)) * 10.0 ** rng.integers(-25, 26, (n, width))).astype(np.float32)
        for codewords in (1, 2, 40):
            nearest = rng.integers(0, codewords, n).astype(np.int32)
            nearest[nearest == 7] = 8
            check_sums(backend, points, nearest, codewords)
            for put in awkward.ROW_PLACES.values() if n == 65 else ():
                check_sums(backend, points, awkward.before_forbidden_page(nearest), codewords, put(points))
    check_sums(backend, points, np.full(n, 39, np.int32), 40)
    wide = np.zeros((n, 3 * width + 1), np.float32)
    wide[:, width : 2 * width] = points
    check_sums(backend, points, nearest, 40, wide[:, width : 2 * width])
    check_sums(backend, points[::-2], nearest[::-2].copy(), 40)


def test_centroid_sums_of_numbers_that_are_not_finite(backend: Backend) -> None:
    points = np.float32([[-0.0, np.inf], [-0.0, 3e38], [np.inf, 3e38], [1e-45, -np.inf], [1e-45, 1e38]])
    check_sums(backend, points, np.int32([0, 1, 2, 1, 1]), 3)


@pytest.mark.parametrize("name", [name for name in backends() if name != "numba"])
def test_centroid_sums_of_what_is_wrong(name: str) -> None:
    points, nearest = np.ones((4, 3), np.float32), np.int32([0, 1, 1, 0])
    sums, counts = np.full((2, 3), 5.0), np.full(2, 5)
    fixed = sums.copy()
    fixed.flags.writeable = False
    for wrong, error, text in (
        ({"points": points.astype(np.float64)}, ValueError, "points: expected a float32 matrix"),
        ({"points": points[0]}, ValueError, "points: expected a float32 matrix"),
        ({"points": np.asfortranarray(points)}, ValueError, "points: expected .* contiguous last axis"),
        ({"nearest": nearest.astype(np.int64)}, TypeError, "nearest: expected .* int32"),
        ({"nearest": nearest[:, None]}, TypeError, "nearest: expected .* 1 axes"),
        ({"nearest": nearest[:3]}, ValueError, "nearest: expected one codeword per point"),
        ({"nearest": nearest + np.int32(1)}, ValueError, "nearest: expected codewords"),
        ({"nearest": nearest - np.int32(1)}, ValueError, "nearest: expected codewords"),
        ({"sums": sums.astype(np.float32)}, TypeError, "sums: expected .* float64"),
        ({"sums": np.full((2, 4), 5.0)}, ValueError, "sums: expected the width of the points"),
        ({"sums": fixed}, ValueError, "sums: expected a writable array"),
        ({"counts": counts.astype(np.int32)}, TypeError, "counts: expected .* int64"),
        ({"counts": np.full(3, 5)}, ValueError, "counts: expected one number per codeword"),
    ):
        given: dict[str, Any] = {"points": points, "nearest": nearest, "sums": sums, "counts": counts} | wrong
        with pytest.raises(error, match=text):
            get(name).centroid_sums(**given)
        assert (given["sums"] == 5).all()
        assert (given["counts"] == 5).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_pack_and_unpack(backend: Backend, bits: int) -> None:
    for n in (0, 1, 63, 64, 65, 200):
        for subspaces in (1, 2, 3, 8, 33):
            codes = make(n, subspaces, bits)
            stored = row_major(codes, bits)
            for put in awkward.FLAT_PLACES.values() if n == 65 else (np.copy,):
                out = awkward.Guarded((-(-n // 64), stored.shape[1], 64), np.uint8)
                backend.pq_pack(put(stored), bits, out.array)
                np.testing.assert_array_equal(out.array, blocked(codes, bits))
                assert out.intact
            back = awkward.Guarded(stored.shape, np.uint8)
            backend.pq_unpack(awkward.before_forbidden_page(out.array), bits, back.array)
            np.testing.assert_array_equal(back.array, stored)
            assert back.intact


@given(st.data())
def test_any_shape(backend: Backend, data: st.DataObject) -> None:
    n, subspaces, count = data.draw(st.integers(0, 300)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    bits, levels = data.draw(st.sampled_from([4, 8])), data.draw(st.sampled_from([1, 3, 1000]))
    sizes = tuple(64 * size for size in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 2**bits, (n, subspaces)).astype(np.uint8)
    tables = (rng.integers(-levels, levels + 1, (count, subspaces, 2**bits)) / 7).astype(np.float32)
    allowed = data.draw(st.sampled_from([None, rng.random(n) < 0.5, rng.random((count, n)) < 0.3]))
    ids = data.draw(st.sampled_from([None, rng.permutation(n).astype(np.int64)]))
    check_scans(backend, tables, codes, bits, data.draw(st.integers(1, 320)), (count,), sizes=sizes, ids=ids, allowed=allowed)


@oracles.once
def descended(units: Array, lengths: Array, codebooks: Array, extra: float, sweeps: int, codes: Array) -> Array:
    """What `Backend.pq_descend` says, row by row."""
    subspaces, _, dims = codebooks.shape
    zero, extra, out = np.float32(0), np.float32(extra), codes.copy()
    padded = np.pad(units, ((0, 0), (0, subspaces * dims - units.shape[1]))).reshape(len(units), subspaces, dims)
    squares = sum((codebooks[:, :, s] * codebooks[:, :, s] for s in range(dims)), np.zeros(codebooks.shape[:2], np.float32))
    products = oracles.canonical_tables(units, codebooks, False)
    for i, length in enumerate(lengths):
        tried = codes[i].copy()
        along = [length * sum((u * u for u in part), zero) for part in padded[i]]
        left = [along[m] - products[i, m, tried[m]] for m in range(subspaces)]
        total = sum(left, zero)
        for _ in range(sweeps):
            for m, p in enumerate(products[i]):
                others = total - left[m]
                pull = (length + length) + (extra + extra) * (others + along[m])
                loss = squares[m] + p * (extra * p - pull)
                tried[m] = np.where(np.isnan(loss), np.inf, loss).argmin()
                left[m] = along[m] - p[tried[m]]
                total = others + left[m]
        if length > 0 and np.isfinite(total):
            out[i] = tried
    return out


@pytest.mark.unemulated
@pytest.mark.parametrize("bits", [4, 8])
def test_descend(backend: Backend, bits: int) -> None:
    rng = np.random.default_rng(11)
    for subspaces, dims, lacking in SHAPES:
        codebooks = make_codebooks(subspaces, bits, dims)
        for n in (0, 1, 33, 70):
            units = rng.standard_normal((n, subspaces * dims - lacking)).astype(np.float32)
            units /= np.linalg.norm(units, axis=1, keepdims=True)
            lengths = rng.lognormal(1, 1, n).astype(np.float32)
            codes = rng.integers(0, 2**bits, (n, subspaces)).astype(np.int32)
            expected = descended(units, lengths, codebooks, 2.5, 2, codes)
            for put in awkward.FLAT_PLACES.values() if n == 33 else (np.copy,):
                out = awkward.Guarded((n, subspaces), np.int32)
                out.array[:] = codes
                backend.pq_descend(put(units), put(lengths), codebooks, 2.5, 2, out.array)
                np.testing.assert_array_equal(out.array, expected)
                assert out.intact


@pytest.mark.parametrize("codewords", [300, 1, 2, 5, 9, 256, 257, 1000])
def test_descend_to_any_number_of_codewords(backend: Backend, codewords: int) -> None:
    rng = np.random.default_rng(12)
    codebooks = rng.integers(-2, 3, (3, codewords, 5)).astype(np.float32)
    units, lengths = rng.integers(-2, 3, (70, 14)).astype(np.float32) / 8, np.full(70, 2, np.float32)
    codes = np.zeros((70, 3), np.int32)
    expected = descended(units, lengths, codebooks, 3, 3, codes)
    backend.pq_descend(units, lengths, codebooks, 3, 3, codes)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("scale", [0, 1e-45, 1e-30, 1e-19, 1e19, 3e38])
def test_descend_at_the_ends_of_the_float_range(backend: Backend, scale: float) -> None:
    rng = np.random.default_rng(13)
    limit = np.finfo(np.float32).max
    codebooks = np.clip(make_codebooks(3, 4, 4).astype(np.float64) * scale, -limit, limit).astype(np.float32)
    units = rng.standard_normal((40, 12)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    lengths = np.float32([scale, 1, 0, np.inf]).repeat(10)
    codes = rng.integers(0, 16, (40, 3)).astype(np.int32)
    with np.errstate(all="ignore"):
        expected = descended(units, lengths, codebooks, 3, 2, codes)
    backend.pq_descend(units, lengths, codebooks, 3, 2, codes)
    np.testing.assert_array_equal(codes, expected)
