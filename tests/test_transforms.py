"""Transforms: what stays as it was, what is learned, the same bits everywhere, and errors that name the argument."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import oracles
import pytest

import adaptive_search as asx
from adaptive_search.transforms import Transform, transform_of
from adaptive_search.types import F32

DIMS = (1, 2, 7, 33, 64, 100)


def collection(rows: int, dim: int, seed: int = 0) -> F32:
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((dim, dim)) / np.sqrt(1 + np.arange(dim))[:, None]
    return (random.standard_normal((rows, dim)) @ mixed + 0.3).astype(np.float32)


def transforms(dim: int) -> list[Transform]:
    return [
        asx.PCA(),
        asx.PCA(max(1, dim // 2), center=True),
        asx.Whitening(),
        asx.RandomRotation(seed=5),
        asx.LearnedRotation(prefixes=[max(1, dim // 3)], steps=8),
        asx.RelativeProjection(3),
        asx.RelativeProjection(collection(4, dim, seed=9)),
        asx.Chain([asx.PCA(), asx.RandomRotation()]),
    ]


@pytest.mark.parametrize("dim", DIMS)
def test_orthogonal_transforms_leave_full_scores_as_they_are(dim: int) -> None:
    rows, queries = collection(300, dim), collection(9, dim, seed=1)
    exact = oracles.dot(queries, rows)
    size = np.outer(oracles.norms(queries), oracles.norms(rows))
    for transform in (asx.PCA(), asx.RandomRotation(), asx.LearnedRotation(prefixes=[max(1, dim // 2)], steps=30)):
        assert transform.orthogonal
        transform.fit(rows)
        turned = oracles.dot(transform.transform(queries), transform.transform(rows))
        assert (np.abs(turned - exact) <= 1e-5 * size).all()


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("dim", [1, 33, 100])
def test_the_same_bits_on_every_backend_and_in_every_batch(dim: int, number: int, backend: Any) -> None:
    rows, queries = collection(200, dim), collection(40, dim, seed=1)
    with asx.use_backend(asx.backends()[0]):
        transform = transforms(dim)[number].fit(rows)
        expected = transform.transform(queries)
    found = transform.transform(queries)
    assert found.shape == (40, transform.dims_out)
    assert oracles.same_bits(found, expected)
    assert oracles.same_bits(transform.transform(queries[17]), expected[17])
    wide = np.zeros((40, 2 * dim), np.float32)
    wide[:, ::2] = queries
    assert oracles.same_bits(transform.transform(wide[:, ::2]), expected)
    assert oracles.same_bits(transform.transform(queries.astype(np.float64)), expected)


def nested(dim: int) -> asx.Chain:
    return asx.Chain([asx.Chain([asx.PCA(dim // 2, center=True), asx.RelativeProjection(3)]), asx.LearnedRotation([2], 3, 4)])


def described(transform: Transform) -> dict[str, Any]:
    """Its spec, by way of a file."""
    spec: dict[str, Any] = json.loads(json.dumps(transform.spec()))
    return spec


@pytest.mark.parametrize("transform", [*transforms(33), nested(33)], ids=repr)
def test_specs_and_states_bring_transforms_back(transform: Transform) -> None:
    rows = collection(200, 33)
    empty = transform_of(described(transform), transform.state())
    assert (empty.fitted, repr(empty), empty.spec()) == (transform.fitted, repr(transform), transform.spec())
    transform.fit(rows)
    again = transform_of(described(transform), transform.state())
    assert (again.fitted, again.dim, again.dims_out) == (True, 33, transform.dims_out)
    assert (type(again), repr(again), again.orthogonal) == (type(transform), repr(transform), transform.orthogonal)
    assert oracles.same_bits(again.transform(rows), transform.transform(rows))
    # What was learned can be learned again, with the parameters that it was made with.
    other = collection(150, 33, seed=3)
    assert oracles.same_bits(again.fit(other).transform(rows), transform.fit(other).transform(rows))


STATES: list[tuple[Transform, dict[str, Any]]] = [
    (asx.PCA(), {"matrix": None}),
    (asx.PCA(), {"matrix": np.eye(4, dtype=np.float64)}),
    (asx.PCA(), {"matrix": np.eye(4, dtype=np.float32)[:3]}),
    (asx.PCA(), {"matrix": np.eye(5, dtype=np.float32)}),
    (asx.PCA(), {"matrix": np.ones((4, 4), np.float32)}),
    (asx.PCA(), {"matrix": np.full((4, 4), np.nan, np.float32)}),
    (asx.PCA(), {"mean": np.ones(4, np.float32)}),
    (asx.PCA(3), {"matrix": np.eye(4, dtype=np.float32)}),
    (asx.PCA(), {"more": np.zeros(3)}),
    (asx.Whitening(), {"mean": np.full(4, np.inf, np.float32)}),
    (asx.Whitening(), {"mean": np.zeros((4, 1), np.float32)}),
    (asx.RandomRotation(), {"dim": np.array([0])}),
    (asx.RandomRotation(), {"dim": np.array([2**62])}),
    (asx.RandomRotation(), {"dim": np.array([4, 4])}),
    (asx.RandomRotation(), {"dim": np.array([4.0])}),
    (asx.LearnedRotation([2], 1), {"matrix": np.ones((4, 4), np.float32)}),
    (asx.LearnedRotation([2], 1), {"matrix": np.eye(4, dtype=np.float32)[:3]}),
    (asx.RelativeProjection(3), {"anchors": np.ones((4, 4), np.float32)}),
    (asx.RelativeProjection(np.eye(4)), {"anchors": np.zeros((0, 4), np.float32)}),
    (asx.Chain([asx.PCA(3), asx.RandomRotation()]), {"part.1.dim": np.array([4])}),
    (asx.Chain([asx.PCA(3), asx.RandomRotation()]), {"part.2.dim": np.array([3])}),
    (asx.Chain([asx.PCA(3), asx.RandomRotation()]), {"part.x.dim": np.array([3])}),
    (asx.Chain([asx.PCA(3), asx.RandomRotation()]), {"matrix": np.eye(4, dtype=np.float32)}),
]


@pytest.mark.parametrize(("transform", "changes"), STATES, ids=lambda value: repr(value)[:60])
def test_a_state_that_cannot_be(transform: Transform, changes: dict[str, Any]) -> None:
    transform.fit(collection(50, 4))
    state = {name: array for name, array in {**transform.state(), **changes}.items() if array is not None}
    with pytest.raises(ValueError, match=r"state|transforms"):
        transform_of(transform.spec(), state)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"transform": "Transform"},
        {"transform": ["PCA"], "dims": None, "center": False},
        {"transform": "PCA", "dims": None},
        {"transform": "PCA", "dims": None, "center": False, "seed": 1},
        {"transform": "PCA", "dims": "3", "center": False},
        {"transform": "RandomRotation", "seed": -1},
        {"transform": "LearnedRotation", "prefixes": 5, "steps": 1, "seed": 0},
        {"transform": "RelativeProjection", "anchors": None},
        {"transform": "Chain", "transforms": []},
        {"transform": "Chain", "transforms": 3},
        {"transform": "Chain", "transforms": [7]},
        ["PCA"],
    ],
    ids=str,
)
def test_a_spec_that_cannot_be(spec: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        transform_of(spec, {})


def test_prefixes_of_principal_coordinates_hold_the_most() -> None:
    rows = collection(500, 40)
    turned = asx.PCA().fit(rows).transform(rows)
    for dims in (1, 5, 20):
        best = np.square(np.linalg.svd(rows.astype(np.float64), compute_uv=False))[:dims].sum()
        np.testing.assert_allclose(np.square(turned[:, :dims].astype(np.float64)).sum(), best, rtol=1e-4)
    centered = asx.PCA(center=True).fit(rows)
    np.testing.assert_allclose(centered.transform(rows).mean(axis=0), 0, atol=1e-4)


def test_whitened_dims_vary_alike_and_apart() -> None:
    rows = collection(4_000, 12)
    white = asx.Whitening(ridge=0.0).fit(rows).transform(rows)
    np.testing.assert_allclose(np.cov(white.T), np.eye(12), atol=2e-3)
    # What does not vary stays small, rather than noise.
    rows[:, 3] = 0.25
    white = asx.Whitening().fit(rows).transform(rows)
    assert np.isfinite(white).all()
    assert white.std(axis=0).max() < 1.1


def test_random_rotations_spread_what_one_dim_says() -> None:
    for dim in (64, 100, 384):
        spread = asx.RandomRotation().fit(np.zeros((1, dim))).transform(np.eye(dim, dtype=np.float32))
        np.testing.assert_allclose(spread @ spread.T, np.eye(dim), atol=1e-5)
        assert np.abs(spread).max() < 0.75
        other = asx.RandomRotation(seed=1).fit(np.zeros((1, dim))).transform(np.eye(dim, dtype=np.float32))
        assert np.abs(spread - other).max() > 0.1


def test_a_learned_rotation_finds_more_than_principal_directions() -> None:
    """Queries look along few directions, of which variance knows nothing."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((32, 32)))[0]
    rows = (random.standard_normal((2_000, 32)) @ basis).astype(np.float32)
    scale = np.where(np.arange(32) < 8, 1.0, 0.15)
    queries = ((random.standard_normal((1_200, 32)) * scale) @ basis).astype(np.float32)
    train, fresh = queries[:1_000], queries[1_000:]
    true = asx.top_k(fresh, rows, 10, metric="cosine").ids
    shares = []
    for transform in (asx.PCA().fit(rows), asx.LearnedRotation(prefixes=[8], steps=400).fit(rows, train)):
        found = asx.top_k(transform.transform(fresh), transform.transform(rows), 50, metric="cosine", dims=8).ids
        shares.append((found[:, :, None] == true[:, None, :]).any(axis=1).mean())
    assert shares[1] > shares[0] + 0.08


def test_learning_repeats_itself() -> None:
    rows = collection(400, 24)
    one, other = (asx.LearnedRotation(prefixes=[6], steps=20, seed=3).fit(rows).transform(rows) for _ in range(2))
    assert oracles.same_bits(one, other)


def test_anchors_stand_apart() -> None:
    rows = np.concatenate([np.eye(5, dtype=np.float32) + np.float32(0.01) * collection(5, 5, seed=n) for n in range(20)])
    projection = asx.RelativeProjection(5).fit(rows)
    assert (np.abs(projection.anchors).argmax(axis=1)[:, None] == np.arange(5)).any(axis=0).all()
    assert np.abs(projection.transform(rows * 100) - projection.transform(rows)).max() < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: asx.PCA(0), ValueError, "dims"),
        (lambda: asx.PCA(center="yes"), TypeError, "center"),  # type: ignore[arg-type]
        (lambda: asx.Whitening(ridge=-1.0), ValueError, "ridge"),
        (lambda: asx.Whitening(ridge="x"), TypeError, "ridge"),  # type: ignore[arg-type]
        (lambda: asx.Whitening(ridge=10**400), ValueError, "ridge"),
        (lambda: asx.RandomRotation(-1), ValueError, "seed"),
        (lambda: asx.LearnedRotation([]), ValueError, "prefixes"),
        (lambda: asx.LearnedRotation([2.5]), TypeError, "prefixes"),  # type: ignore[list-item]
        (lambda: asx.LearnedRotation(64), TypeError, "prefixes: expected a sequence of lengths, got 64"),  # type: ignore[arg-type]
        (lambda: asx.RelativeProjection(0), ValueError, "anchors"),
        (lambda: asx.RelativeProjection([[np.nan, 1.0]]), ValueError, "anchors"),
        (lambda: asx.Chain([]), ValueError, "transforms"),
        (lambda: asx.Chain([asx.Full()]), TypeError, "transforms"),  # type: ignore[list-item]
        (lambda: asx.Chain(asx.PCA()), TypeError, r"transforms: expected a sequence of transforms, got PCA\("),  # type: ignore[arg-type]
        (lambda: asx.PCA(9).fit(np.ones((3, 8))), ValueError, "X"),
        (lambda: asx.PCA().fit(np.empty((0, 8))), ValueError, "X"),
        (lambda: asx.PCA().fit([[1.0, np.inf]]), ValueError, "row 0"),
        (lambda: asx.PCA().fit(["a"]), TypeError, "X"),
        (lambda: asx.RelativeProjection(4).fit(np.ones((3, 8))), ValueError, "X"),
        (lambda: asx.RelativeProjection(np.ones((2, 7))).fit(np.ones((3, 8))), ValueError, "X"),
        (lambda: asx.LearnedRotation().fit(np.ones((3, 8)), np.ones((3, 7))), ValueError, "queries"),
        (lambda: asx.PCA().transform(np.ones((3, 8))), ValueError, "not fitted"),
        (lambda: asx.PCA().fit(np.ones((3, 8))).transform(np.ones((3, 7))), ValueError, "X"),
    ],
)
def test_errors_name_the_argument(make: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        make()


@pytest.mark.parametrize("transform", [asx.PCA(center=True), asx.Whitening()], ids=repr)
def test_rows_too_far_from_their_mean_are_named(transform: Transform) -> None:
    rows = np.full((50, 2), 2.3e38, np.float32)
    rows[7] *= -1
    with pytest.raises(ValueError, match=r"^X: row 7 is farther from the mean of all than float32 can tell"):
        transform.fit(rows)
    assert not transform.fitted


def test_a_fit_that_fails_changes_nothing() -> None:
    rows = collection(50, 8)
    transform = asx.PCA(4).fit(rows)
    before = transform.transform(rows)
    with pytest.raises(ValueError, match="X"):
        transform.fit(rows[:, :3])
    assert oracles.same_bits(transform.transform(rows), before)


def test_a_chain_whose_fit_fails_changes_nothing() -> None:
    rows = collection(50, 8)
    chain = asx.Chain([asx.PCA(), asx.PCA(4)]).fit(rows)
    before = chain.transform(rows)
    with pytest.raises(ValueError, match="X"):
        chain.fit(rows[:, :3] * 2)
    assert oracles.same_bits(chain.transform(rows), before)


def test_what_keeps_inner_products() -> None:
    assert asx.Chain([asx.PCA(), asx.RandomRotation()]).orthogonal
    assert not asx.PCA(center=True).orthogonal
    assert not asx.Chain([asx.PCA(), asx.Whitening()]).orthogonal


@pytest.mark.parametrize(
    "transform",
    [
        asx.PCA(center=True),
        asx.Whitening(),
        asx.RandomRotation(),
        asx.LearnedRotation([3], 2),
        asx.Chain([asx.PCA(), asx.RandomRotation()]),
        asx.Chain([asx.Whitening(), asx.RelativeProjection(2)]),
    ],
    ids=repr,
)
def test_what_goes_beyond_float32_is_an_error(transform: Transform, backend: Any) -> None:
    rows = collection(50, 33)
    transform.fit(rows)
    first = transform.transforms[0] if isinstance(transform, asx.Chain) else transform
    # As far as can be in the direction that the first number is taken from.
    direction = first.transform(np.eye(33))[:, 0] - first.transform(np.zeros(33))[0]
    rows[7] = np.where(direction < 0, -3e38, 3e38)
    with pytest.raises(ValueError, match="X: row 7 holds a number too large for float32 once transformed"):
        transform.transform(rows)
    assert np.isfinite(transform.transform(rows[:7])).all()


def test_chains_go_from_the_first_to_the_last() -> None:
    rows = collection(100, 20)
    whitening, rotation = asx.Whitening(12).fit(rows), asx.RandomRotation(3)
    chain = asx.Chain([whitening, rotation]).fit(rows)
    expected = rotation.fit(whitening.transform(rows)).transform(whitening.transform(rows))
    assert oracles.same_bits(chain.transform(rows), expected)
    assert (chain.dim, chain.dims_out, chain.width(20)) == (20, 12, 12)
    backwards = asx.Chain([asx.RandomRotation(3), asx.Whitening(12)]).fit(rows)
    assert np.abs(backwards.transform(rows) - expected).max() > 0.1


def test_a_chain_of_fitted_transforms_is_fitted_and_their_own_later_is_not_its() -> None:
    rows, other = collection(100, 20), collection(100, 20, seed=8)
    parts = [asx.LearnedRotation([5], 9).fit(rows, other), asx.PCA(7).fit(rows)]
    chain = asx.Chain(parts)
    expected = parts[1].transform(parts[0].transform(rows))
    assert oracles.same_bits(chain.transform(rows), expected)
    parts[1].fit(other)
    assert oracles.same_bits(chain.transform(rows), expected)
    assert not asx.Chain([*parts, asx.PCA()]).fitted
    with pytest.raises(ValueError, match=r"transforms: .* returns 7 dims, .* was fitted to 20"):
        asx.Chain([parts[1], parts[0]])


@pytest.mark.parametrize("transform", [*transforms(33), nested(33)], ids=repr)
def test_widths_are_known_before_the_fit(transform: Transform) -> None:
    width = transform.width(33)
    assert transform.fit(collection(60, 33)).dims_out == width


def test_widths_that_cannot_be() -> None:
    for dims, dim in ((20, 19), (21, 33)):
        with pytest.raises(ValueError, match="needs at least"):
            asx.Chain([asx.Whitening(20), asx.PCA(dims)]).width(dim)


def test_transformed_vectors_are_searched_like_others() -> None:
    rows, queries = collection(600, 33), collection(20, 33, seed=4)
    rotation = asx.RandomRotation().fit(rows)
    exact = asx.top_k(queries, rows, 5).ids
    np.testing.assert_array_equal(asx.top_k(rotation.transform(queries), rotation.transform(rows), 5).ids, exact)
