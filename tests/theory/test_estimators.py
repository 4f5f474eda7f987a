"""Identities to rounding; the variance law by enumerating every outcome."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncssl_core.base import InputError
from ncssl_core.theory.estimators import (
    all_views,
    best_views,
    davis_kahan,
    gaussian_mode,
    subspace_error,
    u_statistic,
    variance_of_u,
    views_for_data,
)


@given(st.integers(2, 6), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000))
def test_all_views_mix_the_unbiased_estimate_with_the_views_own_squares(views, samples, features, seed):
    z = np.random.default_rng(seed).standard_normal((views, samples, features))
    own = np.einsum("vni,vnj->ij", z, z) / (views * samples)
    np.testing.assert_allclose(all_views(z), (1 - 1 / views) * u_statistic(z) + own / views, atol=1e-12)


def test_two_views_are_the_symmetric_cross_correlation():
    a, b = np.random.default_rng(0).standard_normal((2, 50, 3))
    np.testing.assert_allclose(u_statistic(np.stack([a, b])), (a.T @ b + b.T @ a) / 100, atol=1e-12)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_the_variance_law_by_enumeration(views):
    """Two kinds of samples; a view of each takes three values of two features with unequal probabilities."""
    values = np.array([[[1.0, -0.5], [-2.0, 0.3], [0.4, 1.1]], [[0.2, 0.9], [1.5, -1.0], [-0.7, -0.2]]])
    chances, kinds = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]), np.array([0.35, 0.65])
    g = np.einsum("xa,xai->xi", chances, values)
    noise = values - g[:, None]
    s = np.einsum("xa,xai,xaj->xij", chances, noise, noise)
    outcomes = [
        (kinds[x] * np.prod(chances[x, list(drawn)]), u_statistic(values[x, list(drawn)][:, None]))
        for x in range(2) for drawn in product(range(3), repeat=views)
    ]  # fmt: skip
    weights, found = np.array([w for w, _ in outcomes]), np.array([u for _, u in outcomes])
    mean = np.einsum("o,oij->ij", weights, found)
    np.testing.assert_allclose(mean, np.einsum("x,xi,xj->ij", kinds, g, g), atol=1e-12)
    variance = np.einsum("o,oij->ij", weights, (found - mean) ** 2)
    for p, q in ((0, 0), (0, 1), (1, 1)):
        # u_statistic is symmetrised off the diagonal, as C is: the law is that of one of the two orders averaged
        product_ = g[:, p] * g[:, q]
        between = kinds @ product_**2 - (kinds @ product_) ** 2
        once = kinds @ (g[:, p] ** 2 * s[:, q, q] + g[:, q] ** 2 * s[:, p, p] + 2 * product_ * s[:, p, q])
        twice = kinds @ (s[:, p, p] * s[:, q, q] + s[:, p, q] ** 2)
        assert variance[p, q] == pytest.approx(variance_of_u(views, between, once, twice), abs=1e-10)


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


def test_the_papers_half_and_quarter():
    assert views_for_data(2)[0] == pytest.approx(0.366, abs=5e-4)
    assert views_for_data(4)[0] == pytest.approx(0.274, abs=5e-4)
    assert [round(views_for_data(k)[1], 3) for k in (2, 4, 8)] == [0.577, 0.378, 0.258]


@pytest.mark.parametrize(
    "call",
    [lambda: u_statistic(np.zeros((1, 4, 2))), lambda: all_views(np.zeros((3, 4))), lambda: variance_of_u(1, 1, 1, 1),
     lambda: gaussian_mode(1.2), lambda: best_views(-1, 0), lambda: views_for_data(1),
     lambda: subspace_error([1, 0.5], [1, 1], 2, 10, 2), lambda: subspace_error([1, 1], [1, 1], 1, 10, 2),
     lambda: davis_kahan(np.eye(2), np.eye(2), 1)],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call):
    with pytest.raises(InputError, match="given"):
        call()
