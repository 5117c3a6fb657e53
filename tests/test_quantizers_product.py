"""Product quantization: codebooks, codes, tables, and the exact order of the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends.protocol import Backend
from adaptive_search.quantizers import kmeans

METRICS = ("ip", "cosine", "l2")
on_every_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(n: int, dim: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def with_codebooks(subspaces: int, bits: int, dim: int, metric: Any, seed: int) -> asx.ProductQuantizer:
    """Random codebooks: what is tested below does not depend on good ones."""
    codebooks = np.zeros((subspaces, 1 << bits, -(-dim // subspaces)), np.float32)
    flat_dims = np.random.default_rng(seed).integers(-4, 5, (1 << bits, dim)) / np.float32(3)
    for m in range(subspaces):
        part = flat_dims[:, m * codebooks.shape[2] : (m + 1) * codebooks.shape[2]]
        codebooks[m, :, : part.shape[1]] = part
    return asx.ProductQuantizer.from_state({"codebooks": codebooks, "dim": np.array([dim])}, metric)


def numbers(codes: Any, quantizer: asx.ProductQuantizer) -> Any:
    """Row-major codes as codeword numbers (N, M)."""
    if quantizer.bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), 2 * codes.shape[1])[:, : quantizer.subspaces]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", [4, 8])
@on_every_backend
@given(
    n=st.integers(0, 300),
    queries=st.integers(1, 40),
    subspaces=st.integers(1, 20),
    extra=st.integers(0, 30),
    k=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_top_k_is_the_exact_order_of_the_tables(
    backend: Backend, metric: Any, bits: int, n: int, queries: int, subspaces: int, extra: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    quantizer = with_codebooks(subspaces, bits, subspaces + extra, metric, seed)
    batch = rows_of(queries, quantizer.dim, seed)
    codes = rng.integers(0, 256, (n, quantizer.code_bytes)).astype(np.uint8)
    if bits == 4 and subspaces % 2:
        codes[:, -1] &= 15
    unit = oracles.canonical_unit(batch) if metric == "cosine" else batch
    tables = oracles.canonical_tables(unit, quantizer.codebooks, metric == "l2")
    assert oracles.same_bits(quantizer.tables(batch), tables)
    scores, ids = oracles.best(oracles.canonical_adc(tables, numbers(codes, quantizer)), min(k, n), largest=metric != "l2")
    for given_codes in (codes, quantizer.pack(codes)):
        found = quantizer.top_k(batch, given_codes, k)
        np.testing.assert_array_equal(found.ids, ids)
        assert oracles.same_bits(found.scores, scores)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_and_row_major_codes_agree_under_masks_and_in_blocks(backend: Backend, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    quantizer = with_codebooks(7, bits, 20, "ip", 1)
    codes = rng.integers(0, 16, (9000, quantizer.code_bytes)).astype(np.uint8)
    batch = rows_of(5, 20)
    packed = quantizer.pack(codes)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 30_000)
    for mask in (None, rng.random(9000) < 0.3, rng.random((5, 9000)) < 0.001):
        one, other = (quantizer.top_k(batch, form, 25, mask=mask, threads=2) for form in (codes, packed))
        np.testing.assert_array_equal(one.ids, other.ids)
        assert oracles.same_bits(one.scores, other.scores)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_decoded_rows(backend: Backend, metric: Any) -> None:
    rows, batch = rows_of(500, 19), rows_of(4, 19, 1)
    quantizer = asx.ProductQuantizer(6, bits=4, metric=metric).fit(rows)
    codes = quantizer.encode(rows)
    found = quantizer.top_k(batch, codes, 500)
    target = oracles.canonical_unit(batch) if metric == "cosine" else batch
    exact = oracles.score("l2" if metric == "l2" else "ip", target, quantizer.decode(codes))
    np.testing.assert_allclose(found.scores, np.take_along_axis(exact, found.ids, axis=1), atol=1e-4)


@pytest.mark.parametrize(("dim", "subspaces"), [(1, 1), (7, 7), (10, 8), (9, 2), (33, 5)])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_name_the_nearest_codewords(backend: Backend, bits: int, dim: int, subspaces: int) -> None:
    quantizer = with_codebooks(subspaces, bits, dim, "ip", 2)
    rows = np.random.default_rng(3).integers(-4, 5, (200, dim)) / np.float32(3)
    codes = numbers(quantizer.encode(rows), quantizer)
    padded = np.pad(rows, ((0, 0), (0, subspaces * quantizer.codebooks.shape[2] - dim))).reshape(200, subspaces, -1)
    for m in range(subspaces):
        distances = oracles.squared_distance(padded[:, m], quantizer.codebooks[m])
        chosen = np.take_along_axis(distances, codes[:, m : m + 1].astype(int), axis=1)[:, 0]
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
        # Codewords that occur twice are equally near: the first one is named.
        _, first, same = np.unique(quantizer.codebooks[m], axis=0, return_index=True, return_inverse=True)
        assert (first[same.ravel()[codes[:, m]]] == codes[:, m]).all()


def test_four_bit_codes_share_bytes_low_nibble_first(backend: Backend) -> None:
    quantizer = with_codebooks(3, 4, 3, "ip", 4)
    codebooks = np.arange(16, dtype=np.float32)[None, :, None].repeat(3, axis=0)
    quantizer = asx.ProductQuantizer.from_state({"codebooks": codebooks, "dim": np.array([3])}, "ip")
    codes = quantizer.encode(np.float32([[1, 2, 3], [15, 0, 9]]))
    assert codes.tolist() == [[0x21, 0x03], [0x0F, 0x09]]
    assert quantizer.decode(codes).tolist() == [[1, 2, 3], [15, 0, 9]]
    packed = quantizer.pack(codes)
    assert packed.data.shape == (1, 2, 64)
    assert packed.data[0, :, :3].tolist() == [[0x21, 0x0F, 0], [0x03, 0x09, 0]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n", [0, 1, 64, 200])
def test_packing_loses_nothing(backend: Backend, bits: int, n: int) -> None:
    quantizer = with_codebooks(5, bits, 5, "ip", 5)
    codes = quantizer.encode(rows_of(n, 5))
    packed = quantizer.pack(codes)
    assert len(packed) == packed.rows == n
    assert packed.data.shape == (-(-n // 64), quantizer.code_bytes, 64)
    np.testing.assert_array_equal(packed.unpack(), codes)
    np.testing.assert_array_equal(quantizer.decode(packed), quantizer.decode(codes))
    np.testing.assert_array_equal(quantizer.pack(np.repeat(codes, 2, axis=1)[:, ::2]).data, packed.data)
    assert repr(packed) == f"PackedCodes({n} rows, subspaces=5, bits={bits})"


# --- training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "n"), [(4, 17), (4, 400), (8, 257), (8, 3000)])
def test_every_codeword_is_used_where_there_are_points_enough(backend: Backend, bits: int, n: int) -> None:
    rng = np.random.default_rng(6)
    clusters = rng.standard_normal((5, 12)) * 100
    # Few clusters and many repeats of one row leave most random codewords without points at first.
    rows = (clusters[rng.integers(5, size=n)] + rng.standard_normal((n, 12))).astype(np.float32)
    rows = np.concatenate([rows, np.repeat(rows[:1], 500, axis=0)])
    quantizer = asx.ProductQuantizer(3, bits=bits).fit(rows)
    codes = numbers(quantizer.encode(rows), quantizer)
    for m in range(3):
        assert len(np.unique(codes[:, m])) == 1 << bits


@pytest.mark.parametrize("n", [1, 3, 16, 255, 256])
def test_few_distinct_points_are_kept_exactly(backend: Backend, n: int) -> None:
    rows = np.repeat(rows_of(n, 10), 3, axis=0)
    quantizer = asx.ProductQuantizer(4).fit(rows)
    np.testing.assert_array_equal(quantizer.decode(quantizer.encode(rows)), rows)
    assert np.isfinite(quantizer.codebooks).all()


def test_constant_and_zero_columns_are_no_trouble(backend: Backend) -> None:
    rows = rows_of(600, 8)
    rows[:, 0:2] = 0
    rows[:, 2:4] = 7
    rows[::2, 0] = -0.0
    quantizer = asx.ProductQuantizer(4, bits=4).fit(rows)
    decoded = quantizer.decode(quantizer.encode(rows))
    assert (decoded[:, :2] == 0).all()
    assert (decoded[:, 2:4] == 7).all()


@pytest.mark.parametrize(("dim", "subspaces", "width"), [(8, 4, 2), (9, 4, 3), (10, 8, 2), (5, 5, 1)])
def test_codebooks_end_in_zeros_where_subspaces_end_beyond_the_dims(backend: Backend, dim: int, subspaces: int, width: int) -> None:
    rows = rows_of(300, dim)
    quantizer = asx.ProductQuantizer(subspaces, bits=4).fit(rows)
    assert quantizer.codebooks.shape == (subspaces, 16, width)
    flat = quantizer.codebooks.transpose(1, 0, 2).reshape(16, -1)
    assert (flat[:, dim:] == 0).all()
    assert quantizer.decode(quantizer.encode(rows)).shape == (300, dim)


def test_the_seed_decides_whatever_the_backend_and_the_threads() -> None:
    rows = rows_of(2000, 10)
    trained = []
    for name in asx.backends():
        with asx.use_backend(name):
            for threads in (1, 2):
                trained.append(asx.ProductQuantizer(3, bits=4, seed=5).fit(rows, threads=threads).codebooks.tobytes())  # noqa: PERF401
    assert len(set(trained)) == 1
    assert asx.ProductQuantizer(3, bits=4, seed=6).fit(rows).codebooks.tobytes() != trained[0]


def test_more_rounds_lower_the_error(backend: Backend) -> None:
    rows = rows_of(2000, 6)
    errors = []
    for iterations in (1, 4, 16):
        quantizer = asx.ProductQuantizer(2, bits=4, iterations=iterations).fit(rows)
        errors.append(np.square(quantizer.decode(quantizer.encode(rows)) - rows).sum())
    assert errors == sorted(errors, reverse=True)
    # Sixteen codewords for three dims of a Gaussian explain more than half of its variance.
    assert errors[-1] < 0.5 * np.square(rows).sum()


def test_large_inputs_are_sampled_the_same_way_every_time(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    train = kmeans.train
    monkeypatch.setattr(kmeans, "train", lambda points, *rest: seen.append(points) or train(points, *rest))
    rows = rows_of(10_000, 2)
    one, other = (asx.ProductQuantizer(1, bits=4, iterations=2).fit(rows) for _ in range(2))
    np.testing.assert_array_equal(one.codebooks, other.codebooks)
    assert len(seen[0]) == 16 * 256
    assert len(np.unique(seen[0], axis=0)) == 16 * 256


def test_codebooks_trained_elsewhere_are_taken(backend: Backend) -> None:
    rng = np.random.default_rng(7)
    codebooks = rng.standard_normal((4, 256, 3)).astype(np.float32)
    quantizer = asx.ProductQuantizer.from_state({"codebooks": codebooks, "dim": np.array([12])}, "ip")
    codes = rng.integers(0, 256, (100, 4)).astype(np.uint8)
    query = rows_of(1, 12)[0]
    found = quantizer.top_k(query, codes, 100)
    np.testing.assert_allclose(found.scores, (quantizer.decode(codes) @ query)[found.ids], atol=1e-5)


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, r"^subspaces: expected 1 to 32768, got 0"),
        ((2.0,), TypeError, r"^subspaces: expected an integer"),
        ((2, 5), ValueError, r"^bits: expected 4 or 8, got 5"),
        ((2, True), TypeError, r"^bits: expected an integer"),
    ],
)
def test_bad_parameters_are_explained(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asx.ProductQuantizer(*arguments)


def test_more_subspaces_than_dims_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^X: expected at least one dim for each of 5 subspaces, got shape \(9, 4\)"):
        asx.ProductQuantizer(5).fit(rows_of(9, 4))


def test_scores_beyond_float32_are_refused(backend: Backend) -> None:
    quantizer = with_codebooks(2, 4, 4, "l2", 8)
    with pytest.raises(ValueError, match=r"^queries: scores of row 1 are too large for float32"):
        quantizer.top_k([[1.0] * 4, [1e30] * 4], np.zeros((3, 1), np.uint8), 1)


def test_packed_codes_of_another_shape_are_refused() -> None:
    quantizer = with_codebooks(2, 8, 4, "ip", 9)
    other = with_codebooks(4, 4, 4, "ip", 9)
    packed = other.pack(np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match=r"^codes: expected 2 subspaces of 8 bits, got PackedCodes\(3 rows, subspaces=4, bits=4\)"):
        quantizer.top_k(np.ones(4), packed, 1)
    with pytest.raises(ValueError, match=r"^data: expected contiguous uint8 of shape \(1, 2, 64\), got uint8 \(1, 1, 64\)"):
        asx.PackedCodes(packed.data[:, :1], 3, 2, 8)
    with pytest.raises(ValueError, match=r"^data: expected contiguous uint8 of shape \(2, 2, 64\)"):
        asx.PackedCodes(packed.data, 65, 2, 8)
