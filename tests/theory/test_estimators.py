"""Identities to rounding; the variance law by enumerating every outcome."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import eigh

from ncssl_core.base import InputError
from ncssl_core.theory.estimators import (
    all_views,
    best_views,
    canonical_error,
    davis_kahan,
    each_pair,
    gaussian_mode,
    moments,
    plug_in_bias,
    subspace_error,
    u_statistic,
    variance_of_all_views,
    variance_of_u,
    views_for_data,
)
from ncssl_core.theory.kernels import Augmentation, hypercube, parities


@given(st.integers(2, 6), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000))
def test_all_views_mix_the_unbiased_estimate_with_the_views_own_squares(views, samples, features, seed):
    z = np.random.default_rng(seed).standard_normal((views, samples, features))
    own = np.einsum("vni,vnj->ij", z, z) / (views * samples)
    np.testing.assert_allclose(all_views(z), (1 - 1 / views) * u_statistic(z) + own / views, atol=1e-12)


def test_two_views_are_the_symmetric_cross_correlation():
    a, b = np.random.default_rng(0).standard_normal((2, 50, 3))
    np.testing.assert_allclose(u_statistic(np.stack([a, b])), (a.T @ b + b.T @ a) / 100, atol=1e-12)


def world_and_features():
    """Two kinds of samples; a view of each takes one of three values of two features, with unequal probabilities."""
    values = np.array([[1.0, -0.5], [-2.0, 0.3], [0.4, 1.1], [0.2, 0.9], [1.5, -1.0], [-0.7, -0.2]])
    given = [[0.5, 0.2, 0.3, 0, 0, 0], [0, 0, 0.1, 0.6, 0.1, 0.2]]
    return Augmentation(given, [0.35, 0.65]), values


def all_outcomes(world, values, views, estimate):
    """Every draw of one sample with its views: (probability, what is estimated from it)."""
    for x, share in enumerate(world.samples):
        for drawn in product(range(len(values)), repeat=views):
            chance = share * np.prod(world.given[x, list(drawn)])
            if chance:
                yield chance, estimate(values[list(drawn)][:, None])


def mean_and_variance(outcomes):
    weights, found = map(np.array, zip(*outcomes, strict=True))
    mean = np.tensordot(weights, found, 1)
    return mean, np.tensordot(weights, (found - mean) ** 2, 1)


@pytest.mark.parametrize("views", [2, 3, 4, 5])
def test_the_variance_laws_by_enumeration(views):
    world, values = world_and_features()
    parts = moments(world, values)
    mean, variance = mean_and_variance(all_outcomes(world, values, views, u_statistic))
    np.testing.assert_allclose(mean, parts.target, atol=1e-12)
    np.testing.assert_allclose(variance, variance_of_u(views, parts.between, parts.once, parts.twice), atol=1e-10)
    mean, variance = mean_and_variance(all_outcomes(world, values, views, all_views))
    np.testing.assert_allclose(mean, parts.target + parts.noise / views, atol=1e-12)
    np.testing.assert_allclose(np.diag(variance), variance_of_all_views(world, values, views), atol=1e-10)


def test_one_pair_by_enumeration():
    world, values = world_and_features()
    mean, variance = mean_and_variance(all_outcomes(world, values, 2, lambda z: each_pair(z)[0]))
    parts = moments(world, values)
    np.testing.assert_allclose(mean, parts.target, atol=1e-12)
    np.testing.assert_allclose(variance, parts.single, atol=1e-10)


@given(st.integers(2, 5), st.integers(0, 99))
def test_the_unbiased_estimate_is_the_mean_of_all_pairs_both_ways(views, seed):
    z = np.random.default_rng(seed).standard_normal((views, 7, 3))
    pairs = each_pair(z)
    assert len(pairs) == views * (views - 1) / 2
    np.testing.assert_allclose((pairs + pairs.transpose(0, 2, 1)).mean(0) / 2, u_statistic(z), atol=1e-12)


@pytest.mark.parametrize("views", [2, 3])
def test_the_plug_in_bias_by_enumeration(views):
    """Two samples: every pair of outcomes, the loss at each."""
    world, values = world_and_features()
    parts, lambd = moments(world, values), 0.3
    mask = lambd + (1 - lambd) * np.eye(2)
    single = list(all_outcomes(world, values, views, u_statistic))
    losses = sum(p * q * (mask * ((a + b) / 2 - np.eye(2)) ** 2).sum() for (p, a), (q, b) in product(single, repeat=2))
    at_truth = (mask * (parts.target - np.eye(2)) ** 2).sum()
    assert losses - at_truth == pytest.approx(plug_in_bias(views, 2, parts, lambd), abs=1e-10)


@given(st.floats(0, 0.97), st.integers(2, 5))
def test_a_gaussian_mode_obeys_the_law(eigenvalue, views):
    """The moments of a Gaussian feature, by sums over quadrature nodes of g and the noise."""
    points, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    g, noise = np.sqrt(eigenvalue) * points, 1 - eigenvalue
    between = weights @ g**4 - (weights @ g**2) ** 2
    expected = variance_of_u(views, between, 4 * (weights @ g**2) * noise, 2 * noise**2)
    assert variance_of_u(views, *gaussian_mode(eigenvalue)) == pytest.approx(expected, abs=1e-10)


def test_parities_have_no_between_part_so_that_views_replace_samples():
    world, chi = hypercube([0.1, 0.3]), parities(2)[:, 1:]
    assert np.abs(np.diag(moments(world, chi).between)).max() < 1e-12


@pytest.mark.parametrize("lam", [0.8, 0.3, 0.1])
@pytest.mark.parametrize("views", [2, 4, 8])
def test_the_variance_law_by_simulation(lam, views):
    random = np.random.default_rng(0)
    g = np.sqrt(lam) * random.standard_normal((1, 10_000, 50))
    z = g + np.sqrt(1 - lam) * random.standard_normal((views, 10_000, 50))
    total, squares = z.sum(0), (z**2).sum(0)
    estimates = ((total**2 - squares) / (views * (views - 1))).mean(1)  # of 10,000 replicates with 50 samples
    assert 50 * estimates.var() == pytest.approx(variance_of_u(views, *gaussian_mode(lam)), rel=0.05)


@pytest.mark.parametrize(("eigenvalue", "best"), [(0.8, 2), (0.3, 3), (0.2, 5), (0.1, 10)])
def test_the_best_number_of_views_at_a_fixed_budget(eigenvalue, best):
    between, once, twice = gaussian_mode(eigenvalue)
    cost = {m: m * variance_of_u(m, between, once, twice) for m in range(2, 40)}
    assert min(cost, key=cost.get) == best
    assert best_views(between, twice) == pytest.approx(1 / eigenvalue)


@pytest.mark.parametrize(
    ("eigenvalue", "ratios"), [(0.9, (0.946, 0.920)), (0.5, (0.633, 0.507)), (0.1, (0.243, 0.093))]
)
def test_what_more_views_of_the_same_samples_give(eigenvalue, ratios):
    two, four, eight = (variance_of_u(m, *gaussian_mode(eigenvalue)) for m in (2, 4, 8))
    assert (four / two, eight / two) == pytest.approx(ratios, abs=6e-4)


@given(st.floats(1.1, 10))
def test_thresholds_of_views_for_data_are_where_the_variances_cross(factor):
    finite, infinite = views_for_data(factor)
    assert 0 < finite < infinite
    for eigenvalue, limit in ((finite, 2 * factor), (infinite, 1e9)):
        if eigenvalue < 1:
            between, once, twice = gaussian_mode(eigenvalue)
            fewer = factor * (between + once / limit + twice / (limit * (limit - 1)))
            assert fewer == pytest.approx(variance_of_u(2, between, once, twice), rel=1e-6)


@pytest.mark.parametrize("views", [2, 4])
def test_the_subspace_error_is_right_to_first_order_and_davis_kahan_holds_but_is_loose(views):
    shared = np.array([1.0, 0.8, 0.65, 0.5, 0.2, 0.15, 0.1, 0.08, 0.05, 0.03, 0.02, 0.01])
    noise, truth, errors, bounds = np.full(12, 0.5), np.diag(shared), [], []
    random = np.random.default_rng(views)
    for _ in range(150):
        latents = random.standard_normal((1600, 12)) * np.sqrt(shared)
        z = latents + random.standard_normal((views, 1600, 12)) * np.sqrt(noise)
        estimate = u_statistic(z)
        top = np.linalg.eigh(estimate)[1][:, -4:]
        errors.append(4 - (top[:4] ** 2).sum())
        bounds.append(davis_kahan(estimate, truth, 4) ** 2)
    assert np.mean(errors) == pytest.approx(subspace_error(shared, noise, 4, 1600, views), rel=0.1)
    assert (np.array(bounds) > errors).all()
    assert np.mean(bounds) > 10 * np.mean(errors)


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("draw", ["standard_normal", "laplace"])
def test_the_error_of_canonical_directions_is_right_to_first_order(views, draw):
    """Independent latents of any law; the covariance is estimated on the same views."""
    values, random, errors = np.array([0.9, 0.7, 0.4, 0.3, 0.1]), np.random.default_rng(views), []
    scale = np.sqrt(2) if draw == "laplace" else 1.0
    for _ in range(200):
        z = np.sqrt(values) * getattr(random, draw)(size=(1500, 5)) / scale
        z = z + np.sqrt(1 - values) * getattr(random, draw)(size=(views, 1500, 5)) / scale
        own = np.einsum("vni,vnj->ij", z, z) / (views * 1500)
        basis = np.linalg.qr(eigh(u_statistic(z), own)[1][:, -2:])[0]
        errors.append((basis[2:] ** 2).sum())
    assert np.mean(errors) == pytest.approx(canonical_error(values, 2, 1500, views), rel=0.12)
    assert canonical_error(values, 2, 1500, views) < subspace_error(values, 1 - values, 2, 1500, views)


def test_the_papers_half_and_quarter():
    assert views_for_data(2)[0] == pytest.approx(0.366, abs=5e-4)
    assert views_for_data(4)[0] == pytest.approx(0.274, abs=5e-4)
    assert [round(views_for_data(k)[1], 3) for k in (2, 4, 8)] == [0.577, 0.378, 0.258]


@pytest.mark.parametrize(
    "call",
    [lambda: u_statistic(np.zeros((1, 4, 2))), lambda: all_views(np.zeros((3, 4))), lambda: variance_of_u(1, 1, 1, 1),
     lambda: gaussian_mode(1.2), lambda: best_views(-1, 0), lambda: views_for_data(1),
     lambda: subspace_error([1, 0.5], [1, 1], 2, 10, 2), lambda: subspace_error([1, 1], [1, 1], 1, 10, 2),
     lambda: davis_kahan(np.eye(2), np.eye(2), 1), lambda: canonical_error([1.2, 0.5], 1, 9, 2),
     lambda: canonical_error([0.5, 0.5], 1, 9, 2), lambda: each_pair(np.zeros((1, 4, 2))),
     lambda: moments(hypercube([0.1]), np.zeros((3, 2))),
     lambda: variance_of_all_views(hypercube([0.1]), np.zeros((2, 2)), 0),
     lambda: plug_in_bias(2, 0, moments(hypercube([0.1]), parities(1)), 0.1)],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call):
    with pytest.raises(InputError, match="given"):
        call()
