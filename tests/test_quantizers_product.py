"""Product quantization: codebooks, codes, tables, and the exact order of the tables."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import adaptive_search as asx
from adaptive_search import arrays
from adaptive_search.backends import current
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


@pytest.mark.parametrize(("far", "rounds", "asked"), [(0.0, 8, True), (1e4, 8, False), (1e25, 8, False), (0.0, 2, False)])
def test_training_leaves_comparisons_out_where_bounds_can_tell(
    monkeypatch: pytest.MonkeyPatch, far: float, rounds: int, asked: bool
) -> None:
    """Not with a point so far away that rounding errors hide all other differences, nor in a few rounds; the codebooks are the same."""
    backend, rows = current(), rows_of(2000, 8)
    rows[7] += np.float32(far)
    seen: list[Any] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            if name == "pq_assigner":
                seen.append(name)
            return getattr(backend, name)

    with monkeypatch.context() as patch:
        patch.setattr(kmeans, "current", Noting)
        found = kmeans.train(rows, 2, 16, rounds, 0)
    assert bool(seen) == asked
    with monkeypatch.context() as patch:
        patch.setattr(kmeans, "LEAST_ROUNDS", rounds + 1)
        np.testing.assert_array_equal(found, kmeans.train(rows, 2, 16, rounds, 0))


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


# --- rotations ------------------------------------------------------------------------------------------------------------


def mixed(n: int, dim: int, seed: int = 0) -> Any:
    """Rows whose variance decays along directions that no single dim has."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return (rng.standard_normal((n, dim)) * 0.8 ** np.arange(dim) @ directions).astype(np.float32)


def error_of(quantizer: asx.ProductQuantizer, rows: Any) -> float:
    return float(np.square(quantizer.decode(quantizer.encode(rows)) - rows, dtype=np.float64).sum())


@pytest.mark.parametrize(("dim", "subspaces", "bits"), [(16, 4, 4), (10, 4, 4), (10, 8, 4), (7, 1, 4), (12, 6, 8)])
def test_a_learned_rotation_keeps_more_of_the_rows(backend: Backend, dim: int, subspaces: int, bits: int) -> None:
    rows = mixed(1500, dim)
    plain = asx.ProductQuantizer(subspaces, bits=bits).fit(rows)
    turned = asx.ProductQuantizer(subspaces, bits=bits, rotation="opq").fit(rows)
    assert turned.rotation_matrix is not None
    np.testing.assert_allclose(turned.rotation_matrix @ turned.rotation_matrix.T, np.eye(dim), atol=1e-5)
    assert error_of(turned, rows) <= error_of(plain, rows) * (1 + 1e-5)
    if 1 < subspaces < dim:
        assert error_of(turned, rows) < 0.9 * error_of(plain, rows)


def test_a_rotation_that_does_not_help_is_none_at_all(backend: Backend) -> None:
    # Sixteen points in each of three planes: without rotation nothing is lost.
    rng = np.random.default_rng(5)
    planes = rng.integers(-50, 50, (3, 16, 2)).astype(np.float32)
    rows = np.concatenate([plane[rng.integers(16, size=800)] for plane in planes], axis=1)
    quantizer = asx.ProductQuantizer(3, bits=4, rotation="opq").fit(rows)
    np.testing.assert_array_equal(quantizer.rotation_matrix, np.eye(6))
    np.testing.assert_array_equal(quantizer.decode(quantizer.encode(rows)), rows)


@pytest.mark.parametrize(
    "rows", [np.zeros((5, 6)), np.ones((1, 6)), np.full((40, 6), 1e30), rows_of(40, 6) * 1e-30, rows_of(300, 6) * 1e18]
)
def test_awkward_rows_make_a_rotation_all_the_same(backend: Backend, rows: Any) -> None:
    quantizer = asx.ProductQuantizer(3, bits=4, rotation="opq").fit(rows.astype(np.float32))
    assert quantizer.rotation_matrix is not None
    np.testing.assert_allclose(quantizer.rotation_matrix @ quantizer.rotation_matrix.T, np.eye(6), atol=1e-5)
    assert np.isfinite(quantizer.decode(quantizer.encode(rows))).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", [4, 8])
def test_scores_are_those_of_rows_that_are_turned_back(backend: Backend, metric: Any, bits: int) -> None:
    rows, batch = mixed(600, 19), mixed(4, 19, 1)
    quantizer = asx.ProductQuantizer(6, bits=bits, metric=metric, rotation="opq", iterations=3).fit(rows)
    codes = quantizer.encode(rows)
    found = quantizer.top_k(batch, quantizer.pack(codes), 600)
    target = oracles.canonical_unit(batch) if metric == "cosine" else batch
    exact = oracles.score("l2" if metric == "l2" else "ip", target, quantizer.decode(codes))
    np.testing.assert_allclose(found.scores, np.take_along_axis(exact, found.ids, axis=1), atol=1e-4)
    assert oracles.same_bits(quantizer.tables(batch)[2], quantizer.tables(batch[2]))
    again = asx.ProductQuantizer.from_state(quantizer.state(), metric)
    assert repr(again) == repr(quantizer)
    np.testing.assert_array_equal(again.encode(rows), codes)
    assert oracles.same_bits(again.top_k(batch, codes, 600).scores, found.scores)


def test_the_seed_decides_on_rotations_too() -> None:
    rows = mixed(1000, 10)
    trained = []
    for name in asx.backends():
        with asx.use_backend(name):
            for threads in (1, 2):
                quantizer = asx.ProductQuantizer(3, bits=4, seed=5, rotation="opq").fit(rows, threads=threads)
                trained.append((quantizer.codebooks.tobytes(), quantizer.state()["rotation"].tobytes()))
    assert len(set(trained)) == 1


def test_a_fit_that_fails_leaves_the_rotation_as_it_was() -> None:
    quantizer = asx.ProductQuantizer(3, bits=4, rotation="opq", iterations=2).fit(mixed(100, 6))
    before = quantizer.rotation_matrix
    with pytest.raises(ValueError, match=r"^X: "):
        quantizer.fit(np.full((3, 6), np.nan))
    assert quantizer.rotation_matrix is before


# --- codebooks and codes from elsewhere -----------------------------------------------------------------------------------


def test_codebooks_with_a_rotation_come_in(backend: Backend) -> None:
    made = asx.ProductQuantizer(5, bits=4, metric="l2", rotation="opq", iterations=3).fit(mixed(400, 13))
    taken = asx.ProductQuantizer.from_codebooks(made.codebooks.astype(np.float64), 13, made.rotation_matrix, "l2")
    rows = mixed(50, 13, 3)
    np.testing.assert_array_equal(taken.encode(rows), made.encode(rows))
    assert oracles.same_bits(taken.decode(taken.encode(rows)), made.decode(made.encode(rows)))
    assert asx.ProductQuantizer.from_codebooks(np.zeros((3, 256, 2))).dim == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 17, 2)),), r"codebooks: expected shape \(M, 16 or 256, ceil\(D / M\)\), got \(3, 17, 2\)"),
        ((np.zeros((3, 16)),), r"codebooks: expected shape \(M, 16 or 256, ceil\(D / M\)\), got \(3, 16\)"),
        ((np.zeros((3, 16, 2)), 7), r"codebooks: expected shape .* for D = 7, got \(3, 16, 2\)"),
        ((np.zeros((3, 16, 0)),), r"codebooks: expected shape .* for D = 0"),
        ((np.ones((3, 16, 2)), 5), "codebooks: expected 0 beyond dim 5"),
        ((np.full((3, 16, 2), np.nan),), "codebooks: row 0 holds NaN or infinity"),
        ((np.zeros((3, 16, 2)), None, np.eye(5)), r"rotation: expected shape \(6, 6\), got \(5, 5\)"),
        ((np.zeros((3, 16, 2)), None, 2 * np.eye(6)), "rotation: expected an orthogonal matrix"),
        ((np.zeros((3, 16, 2)), None, np.full((6, 6), 1e30)), "rotation: expected an orthogonal matrix"),
    ],
)
def test_codebooks_that_cannot_be_are_explained(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        asx.ProductQuantizer.from_codebooks(*arguments)


@pytest.mark.parametrize("dtype", [complex, object, str, int, bool])
def test_codebooks_and_rotations_are_floats(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"^codebooks: expected floats"):
        asx.ProductQuantizer.from_codebooks(np.zeros((2, 16, 1)).astype(dtype))
    with pytest.raises(TypeError, match=r"^rotation: expected floats"):
        asx.ProductQuantizer.from_codebooks(np.zeros((2, 16, 1)), rotation=np.eye(2).astype(dtype))
    if dtype is complex:
        with pytest.raises(TypeError, match=r"^anisotropy: expected a number"):
            asx.ProductQuantizer(2, anisotropy=np.complex64(4))  # type: ignore[arg-type]


@pytest.mark.skipif("ADAPTIVE_SEARCH_EMULATED" in os.environ, reason="whether faiss runs on the emulated CPU is not the question")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("subspaces", "bits"), [(8, 8), (8, 4)])
def test_faiss_codebooks_and_codes_mean_the_same_here(backend: Backend, subspaces: int, bits: int, turned: bool) -> None:
    faiss = pytest.importorskip("faiss")
    rows, batch = mixed(2000, 32), mixed(5, 32, 1)
    index = faiss.IndexPQ(32, subspaces, bits, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.niter = 3
    rotation = None
    whole = index
    if turned:
        matrix = faiss.OPQMatrix(32, subspaces)
        matrix.niter = 3
        whole = faiss.IndexPreTransform(matrix, index)
    whole.train(rows)
    whole.add(rows)
    if turned:
        rotation = faiss.vector_to_array(matrix.A).reshape(32, 32)
    codebooks = faiss.vector_to_array(index.pq.centroids).reshape(index.pq.M, index.pq.ksub, index.pq.dsub)
    codes = faiss.vector_to_array(index.codes).reshape(len(rows), -1)
    quantizer = asx.ProductQuantizer.from_codebooks(codebooks, rotation=rotation)
    np.testing.assert_allclose(quantizer.decode(codes), whole.reconstruct_n(0, len(rows)), atol=1e-5)
    # A few codewords are equally near up to rounding.
    assert (quantizer.encode(rows) == codes).mean() > 0.999
    scores, ids = whole.search(batch, 10)
    found = quantizer.top_k(batch, codes, 10)
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    assert (found.ids == ids).mean() > 0.9


# --- use of codewords -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subspaces", "bits"), [(3, 8), (5, 4)])
def test_use_of_codewords_is_counted(backend: Backend, subspaces: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = with_codebooks(subspaces, bits, subspaces, "ip", 1)
    codes = quantizer.encode(rows_of(700, subspaces) * 2)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 300)
    for given_codes in (codes, quantizer.pack(codes)):
        use = quantizer.codeword_use(given_codes)
        expected = [np.bincount(column, minlength=1 << bits) for column in numbers(codes, quantizer).T]
        assert use.dtype == np.int64
        np.testing.assert_array_equal(use, expected)
    assert not quantizer.codeword_use(codes[:0]).any()


# --- errors along rows count more -----------------------------------------------------------------------------------------


def losses(quantizer: asx.ProductQuantizer, rows: Any, weight: float) -> Any:
    """Of every row, by the definition."""
    left = rows - quantizer.decode(quantizer.encode(rows)).astype(np.float64)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    along = np.divide((left * rows).sum(axis=1), lengths, out=np.zeros(len(rows)), where=lengths > 0)
    return (left**2).sum(axis=1) + (weight - 1) * along**2


@pytest.mark.parametrize("rotation", [None, "opq"])
@pytest.mark.parametrize(("dim", "subspaces", "bits"), [(16, 4, 4), (11, 5, 4), (10, 8, 4), (12, 6, 8)])
def test_anisotropic_codes_lower_their_loss(backend: Backend, dim: int, subspaces: int, bits: int, rotation: Any) -> None:
    rows = mixed(1500, dim)
    plain = asx.ProductQuantizer(subspaces, bits=bits, rotation=rotation).fit(rows)
    encoded = asx.ProductQuantizer.from_codebooks(plain.codebooks, dim, plain.rotation_matrix, anisotropy=4)
    trained = asx.ProductQuantizer(subspaces, bits=bits, rotation=rotation, anisotropy=4).fit(rows)
    # Other codes with the same codebooks lose less in every row, other codebooks on the whole.
    assert (losses(encoded, rows, 4) <= losses(plain, rows, 4) * (1 + 1e-4) + 1e-6).all()
    assert losses(trained, rows, 4).sum() < losses(encoded, rows, 4).sum() < 0.95 * losses(plain, rows, 4).sum()
    # Nothing is for nothing.
    assert error_of(trained, rows) > error_of(plain, rows)


def test_anisotropic_codes_find_more(backend: Backend) -> None:
    rng = np.random.default_rng(3)
    rows = mixed(3000, 24)
    queries = rows[:200] + 0.3 * rng.standard_normal((200, 24)).astype(np.float32) * rows[:200].std(axis=0)
    true = asx.top_k(queries, rows, 10, metric="cosine").ids
    found = []
    for anisotropy in (1, 4):
        quantizer = asx.ProductQuantizer(6, bits=4, metric="cosine", rotation="opq", anisotropy=anisotropy).fit(rows)
        ids = quantizer.top_k(queries, quantizer.encode(rows), 20).ids
        found.append((ids[:, :, None] == true[:, None, :]).any(axis=1).mean())
    assert found[1] > found[0] + 0.01


@pytest.mark.parametrize(("bits", "n"), [(4, 17), (4, 400), (8, 600), (8, 3000)])
@pytest.mark.parametrize("rotation", [None, "opq"])
def test_anisotropic_codes_use_every_codeword(backend: Backend, bits: int, n: int, rotation: Any) -> None:
    rng = np.random.default_rng(6)
    clusters = rng.standard_normal((5, 12)) * 100
    rows = (clusters[rng.integers(5, size=n)] + rng.standard_normal((n, 12))).astype(np.float32)
    rows = np.concatenate([rows, np.repeat(rows[:1], 500, axis=0)])
    quantizer = asx.ProductQuantizer(3, bits=bits, rotation=rotation, anisotropy=4).fit(rows)
    assert quantizer.codeword_use(quantizer.encode(rows)).all()


def test_anisotropic_codes_are_the_same_on_every_backend_in_every_batch_and_after_storage() -> None:
    rows = mixed(700, 13)
    rows[5], rows[6] = 0, 1e25
    quantizer = asx.ProductQuantizer(5, bits=4, metric="cosine", anisotropy=3.5, iterations=3).fit(rows)
    again = asx.ProductQuantizer.from_state(quantizer.state(), "cosine")
    assert repr(again) == repr(quantizer) == "ProductQuantizer(5, bits=4, metric='cosine', anisotropy=3.5)"
    codes = quantizer.encode(rows)
    for name in asx.backends():
        with asx.use_backend(name):
            np.testing.assert_array_equal(again.encode(rows, threads=2), codes)
            np.testing.assert_array_equal(np.concatenate([again.encode(rows[:1]), again.encode(rows[1:])]), codes)
            trained = asx.ProductQuantizer(5, bits=4, metric="cosine", anisotropy=3.5, iterations=3).fit(rows, threads=2)
            assert trained.codebooks.tobytes() == quantizer.codebooks.tobytes()


@pytest.mark.parametrize("rows", [np.zeros((5, 6)), np.full((40, 6), 1e30), rows_of(40, 6) * 1e-30, rows_of(300, 6) * 1e18])
def test_awkward_rows_have_anisotropic_codes_all_the_same(backend: Backend, rows: Any) -> None:
    quantizer = asx.ProductQuantizer(3, bits=4, anisotropy=4.0).fit(rows.astype(np.float32))
    decoded = quantizer.decode(quantizer.encode(rows))
    assert np.isfinite(decoded).all()
    assert (np.linalg.norm(decoded - rows, axis=1) <= np.linalg.norm(rows, axis=1)).all()


@pytest.mark.parametrize("weight", [4.0, 1e6])
def test_anisotropic_codes_of_rows_one_by_one(weight: float, backend: Backend) -> None:
    """Sums over many subspaces, to the bit: choices that are nearly equal go the same way alone as among others."""
    rows = np.outer(rows_of(40, 1)[:, 0], rows_of(1, 33)[0]).astype(np.float32)
    quantizer = asx.ProductQuantizer(33, bits=4, metric="cosine", anisotropy=weight).fit(rows)
    np.testing.assert_array_equal(np.concatenate([quantizer.encode(row[np.newaxis]) for row in rows]), quantizer.encode(rows))


@pytest.mark.parametrize("rotation", [None, "opq"])
def test_anisotropic_codebooks_of_the_largest_numbers(rotation: Any, backend: Backend) -> None:
    rows = (np.clip(rows_of(40, 8), -1, 1) * np.float64(3.4e38)).astype(np.float32)
    quantizer = asx.ProductQuantizer(4, bits=4, rotation=rotation, anisotropy=4).fit(rows)
    assert np.isfinite(quantizer.codebooks).all()


def test_anisotropy_is_checked() -> None:
    for value, error in ((0.5, ValueError), (np.nan, ValueError), ("4", TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^anisotropy: expected a number"):
            asx.ProductQuantizer(3, anisotropy=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^anisotropy: expected 1 for l2"):
        asx.ProductQuantizer(3, metric="l2", anisotropy=4)
    with pytest.raises(ValueError, match="is for inner products and cosines, not for l2"):
        asx.Index(6, "l2", cascade=asx.Cascade([asx.PQ(3, anisotropy=4, keep=10), asx.Full()]))
    state = asx.ProductQuantizer(2, bits=4, anisotropy=4).fit(rows_of(50, 4)).state()
    with pytest.raises(ValueError, match=r"^state: anisotropy: expected a number from 1 up"):
        asx.ProductQuantizer.from_state(state | {"anisotropy": np.array([np.nan])}, "ip")
    with pytest.raises(ValueError, match=r"^state: anisotropy: expected 1 for l2"):
        asx.ProductQuantizer.from_state(state, "l2")


def test_a_rotation_from_some_of_the_rows() -> None:
    """Codebooks are learned from all of them still; with as many as there are it is the same."""
    rows = np.random.default_rng(0).standard_normal((3_000, 12)).astype(np.float32) @ np.random.default_rng(1).standard_normal(
        (12, 12), np.float32
    )
    all_rows, as_many, some = (asx.ProductQuantizer(3, 4, rotation="opq").fit(rows, rotation_rows=most) for most in (None, 3_000, 300))
    np.testing.assert_array_equal(all_rows.codebooks, as_many.codebooks)
    assert not np.array_equal(all_rows.rotation_matrix, some.rotation_matrix)
    plain = asx.ProductQuantizer(3, 4).fit(rows)
    errors = [float(np.square(rows - quantizer.decode(quantizer.encode(rows))).sum()) for quantizer in (all_rows, some, plain)]
    assert errors[0] <= errors[1] <= 1.2 * errors[0]
    assert errors[1] < errors[2]
    with pytest.raises(ValueError, match="rotation_rows"):
        asx.ProductQuantizer(3, 4, rotation="opq").fit(rows, rotation_rows=0)


def unevenly_spread(count: int, dim: int) -> Any:
    """Few places hold most rows."""
    random = np.random.default_rng(3)
    places = random.standard_normal((60, dim))
    shares = 1.0 / np.arange(1, 61) ** 1.5
    chosen = random.choice(60, count, p=shares / shares.sum())
    return (places[chosen] + 0.2 * random.standard_normal((count, dim))).astype(np.float32)


def perplexity(counts: Any) -> Any:
    """How many codewords of each subspace are used, all alike, would be as many."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-30)), axis=1))


@pytest.mark.parametrize("rotation", [None, "opq"])
def test_balanced_codewords_are_used_more_alike(rotation: Any) -> None:
    rows = unevenly_spread(6_000, 12)
    plain, even = (asx.ProductQuantizer(3, 4, rotation=rotation, balanced=balanced).fit(rows) for balanced in (False, True))
    before, after = (perplexity(one.codeword_use(one.encode(rows))) for one in (plain, even))
    assert after.mean() > before.mean() + 0.5
    errors = [np.square(one.decode(one.encode(rows)) - rows).sum() for one in (plain, even)]
    assert errors[1] < 1.3 * errors[0]
    assert even.codeword_use(even.encode(rows)).all()
    again = asx.ProductQuantizer(3, 4, rotation=rotation, balanced=True).fit(rows)
    np.testing.assert_array_equal(again.codebooks, even.codebooks)
    # How it was trained is not part of it: rows are encoded by their nearest codewords.
    same = asx.ProductQuantizer.from_state(even.state(), "ip")
    np.testing.assert_array_equal(same.encode(rows), even.encode(rows))
    assert "balanced=True" in repr(even)


DEGENERATE = [np.zeros((40, 3)), np.eye(3), np.full((30, 3), 1e25), np.arange(600).reshape(200, 3)]


@pytest.mark.parametrize("rows", DEGENERATE, ids=["zeros", "few", "far", "line"])
def test_balancing_degenerate_rows(rows: Any) -> None:
    found = asx.ProductQuantizer(2, 4, "l2", balanced=True).fit(np.float32(rows))
    assert np.isfinite(found.codebooks).all()
    assert len(np.unique(found.encode(np.float32(rows)), axis=0)) <= len(np.unique(rows, axis=0))


def test_what_balancing_does_not_take() -> None:
    with pytest.raises(TypeError, match="balanced: expected True or False, got 1"):
        asx.ProductQuantizer(2, balanced=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="balanced: expected False with anisotropy"):
        asx.ProductQuantizer(2, anisotropy=2.0, balanced=True)
