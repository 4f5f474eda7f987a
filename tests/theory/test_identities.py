"""One objective, many losses: what is equal, what is not, and that the package's losses are what the theory says."""

import math

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from ncssl_core import BarlowTwinsLoss, VICRegLoss
from ncssl_core.theory.kernels import hypercube, parities, random_world
from ncssl_core.theory.optima import barlow_twins_objective, vicreg_objective

seeds = st.integers(0, 10_000)


def spectral_contrastive(f, world):
    """-2 E_pos F.F' + E_indep (F.F')^2, by enumeration of pairs."""
    gram, shares = f @ f.T, world.view_shares
    return -2 * (world.pairs * gram).sum() + (np.outer(shares, shares) * gram**2).sum()


def sines(a, b, weights=None):
    """||sin Theta||_F between two spans of as many functions."""
    w = np.ones(len(a)) if weights is None else weights
    qa, qb = (np.linalg.qr(np.sqrt(w)[:, None] * x)[0] for x in (a, b))
    return math.sqrt(max(0.0, qa.shape[1] - np.linalg.norm(qa.T @ qb) ** 2))


# ---- 2a, 2b: kernel matching, and invariance with orthonormal features ------------------------------------------


@given(st.integers(1, 6), st.integers(2, 8), st.integers(1, 4), seeds)
def test_the_spectral_contrastive_loss_matches_the_kernel(samples, views, dim, seed):
    world = random_world(samples, views, seed)
    f = np.random.default_rng(seed).standard_normal((views, dim))
    scaled = np.sqrt(world.view_shares)[:, None] * f
    distance = ((scaled @ scaled.T - world.adjacency) ** 2).sum()
    assert spectral_contrastive(f, world) == pytest.approx(distance - (world.adjacency**2).sum(), abs=1e-10)


def test_its_minimum_is_the_first_eigenfunctions_scaled_by_the_roots_of_their_eigenvalues():
    world, dim = random_world(7, 9, 3), 3

    def value(flat):
        f = flat.reshape(9, dim)
        scaled = np.sqrt(world.view_shares)[:, None] * f
        gap = scaled @ scaled.T - world.adjacency
        return (gap**2).sum(), (4 * np.sqrt(world.view_shares)[:, None] * (gap @ scaled)).ravel()

    start = np.random.default_rng(0).standard_normal(9 * dim)
    found = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-12})
    f = found.x.reshape(9, dim)
    assert found.fun == pytest.approx((world.eigenvalues[dim:] ** 2).sum(), abs=1e-10)
    assert sines(f, world.view_functions[:, :dim], world.view_shares) < 1e-6
    k = f.T @ (world.view_shares[:, None] * f)
    np.testing.assert_allclose(np.linalg.eigvalsh(k)[::-1], world.eigenvalues[:dim], atol=1e-7)


@given(st.integers(1, 4), seeds)
def test_no_orthonormal_features_are_more_invariant_than_the_first_eigenfunctions(dim, seed):
    world = random_world(6, 8, seed)
    best = world.variance_within(world.view_functions[:, :dim]).sum()
    assert best == pytest.approx((1 - world.eigenvalues[:dim]).sum(), abs=1e-12)
    frame = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, dim)))[0]
    assert world.variance_within(frame / np.sqrt(world.view_shares)[:, None]).sum() >= best - 1e-12


# ---- 2d: the norm of Tf - f is no substitute for the variance within --------------------------------------------


def bottom(matrix, dim):
    """Span of the `dim` smallest right singular directions."""
    return np.linalg.svd(matrix)[2][-dim:].T


def top(matrix, dim):
    return np.linalg.svd(matrix)[2][:dim].T


def shift(size, steps):
    """A walk on a ring: {step: probability}."""
    return sum(p * np.roll(np.eye(size), step, 1) for step, p in steps.items())


@pytest.mark.parametrize(
    ("table", "dim"),
    [(shift(12, {0: 0.1, 1: 0.45, -1: 0.45}), 5), (shift(9, {0: 0.2, 4: 0.5, 1: 0.3}), 5)],
    ids=["symmetric, negative eigenvalues", "normal, complex eigenvalues"],
)
def test_the_norm_of_tf_minus_f_picks_other_features(table, dim):
    assert sines(bottom(table - np.eye(len(table)), dim), top(table, dim)) > 1


def test_for_a_positive_semidefinite_average_both_agree():
    table = shift(12, {0: 0.6, 1: 0.2, -1: 0.2})
    assert sines(bottom(table - np.eye(12), 5), top(table, 5)) < 1e-7


# ---- 2e: rotations ------------------------------------------------------------------------------------------------


def test_barlow_twins_prefers_mixed_features_unless_its_weight_is_one():
    one, two, weight, angle = sp.symbols("l1 l2 l theta", positive=True)
    turn = sp.Matrix([[sp.cos(angle), -sp.sin(angle)], [sp.sin(angle), sp.cos(angle)]])

    def loss(c):
        return (1 - c[0, 0]) ** 2 + (1 - c[1, 1]) ** 2 + weight * (c[0, 1] ** 2 + c[1, 0] ** 2)

    aligned = sp.diag(one, two)
    change = loss(turn * aligned * turn.T) - loss(aligned)
    expected = -2 * (1 - weight) * (one - two) ** 2 * sp.sin(angle) ** 2 * sp.cos(angle) ** 2
    assert sp.simplify(change - expected) == 0
    assert sp.simplify(change.subs(weight, 1)) == 0


@given(seeds)
def test_only_the_soft_penalty_with_its_diagonal_does_not_see_rotations(seed):
    random = np.random.default_rng(seed)
    a, turn = random.standard_normal((3, 4)), np.linalg.qr(random.standard_normal((3, 3)))[0]
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    values = np.array([0.9, 0.6, 0.3, 0.1])

    def soft(x):
        return ((x**2) @ (1 - values)).sum() + 0.3 * ((x @ x.T - np.eye(3)) ** 2).sum()

    assert soft(turn @ a) == pytest.approx(soft(a), abs=1e-10)
    for loss in (barlow_twins_objective(values, 0.1), vicreg_objective(values, 25, 25, 1)):
        assert abs(loss(turn @ a)[0] - loss(a)[0]) > 1e-7


# ---- 2f: the package's losses in operator form -------------------------------------------------------------------


def views_of_every_pair(world, f, copies):
    """A batch that holds each pair of views as often as it occurs: probabilities are multiples of 1 / copies."""
    counts = np.rint(world.pairs * copies).astype(int)
    assert np.abs(counts / copies - world.pairs).max() < 1e-12
    first, second = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    return torch.tensor(np.stack([f[first], f[second]]))


def test_the_packages_losses_in_operator_form():
    world, chi = hypercube([0.1, 0.25, 0.4]), parities(3)[:, 1:]
    random = np.random.default_rng(0)
    f = chi @ np.linalg.qr(random.standard_normal((7, 7)))[0][:, :4]  # mean zero, variance one, uncorrelated ...
    f = f + 0.5 * f[:, [1, 2, 3, 0]]
    f /= f.std(0)  # ... and now correlated
    shares = world.view_shares
    k, tf = f.T @ (shares[:, None] * f), world.mean_over_views(f)
    c = tf.T @ (world.samples[:, None] * tf)
    z = views_of_every_pair(world, f, copies=80_000)
    terms = BarlowTwinsLoss(lambd=0.1).terms(z)
    assert float(terms["on_diagonal"]) == pytest.approx(((1 - np.diag(c)) ** 2).sum(), rel=1e-4)
    assert float(terms["off_diagonal"]) == pytest.approx((c**2).sum() - (np.diag(c) ** 2).sum(), rel=1e-4)
    np.testing.assert_allclose(world.variance_within(f), 1 - np.diag(c), atol=1e-12)
    terms = VICRegLoss().terms(z)
    assert float(terms["invariance"]) == pytest.approx(2 * (np.diag(k) - np.diag(c)).mean(), rel=1e-4)
    assert float(terms["covariance"]) == pytest.approx(2 * ((k**2).sum() - (np.diag(k) ** 2).sum()) / 4, rel=1e-4)


@pytest.mark.parametrize(("batch", "dim"), [(256, 64), (512, 128)])
def test_independent_features_leave_a_floor_of_correlation(batch, dim):
    generator = torch.Generator().manual_seed(0)
    off = [BarlowTwinsLoss().terms(torch.randn(2, batch, dim, generator=generator))["off_diagonal"] for _ in range(20)]
    assert float(torch.stack(off).mean()) == pytest.approx(dim * (dim - 1) / (batch - 1), rel=0.02)


# ---- 7: duality ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 9), seeds)
def test_contrastive_and_non_contrastive_sums_differ_by_the_norms_alone(n, d, seed):
    z = np.random.default_rng(seed).standard_normal((n, d))

    def off(gram):
        return (gram**2).sum() - (np.diag(gram) ** 2).sum()

    rows, columns = ((z**2).sum(1) ** 2).sum(), ((z**2).sum(0) ** 2).sum()
    assert off(z @ z.T) + rows == pytest.approx(off(z.T @ z) + columns, rel=1e-10, abs=1e-10)


@given(st.integers(2, 12), st.integers(1, 9), st.floats(0, 2), seeds)
def test_barlow_twins_is_a_loss_over_pairs_of_samples(n, d, weight, seed):
    raw = np.random.default_rng(seed).standard_normal((2, n, d))
    z, other = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-5)
    c, grams = z.T @ other / n, ((z @ z.T) * (other @ other.T)).sum() / n**2
    assert (c**2).sum() == pytest.approx(grams, rel=1e-10, abs=1e-10)
    dual = weight * grams + (1 - weight) * (np.diag(c) ** 2).sum() - 2 * np.trace(c) + d
    assert float(BarlowTwinsLoss(lambd=weight)(torch.tensor(raw))) == pytest.approx(dual, rel=1e-10, abs=1e-10)


@given(st.integers(2, 10), st.integers(1, 6), seeds)
def test_on_a_batch_the_spectral_contrastive_loss_differs_from_barlow_twins_in_its_penalty_alone(n, d, seed):
    z, other = np.random.default_rng(seed).standard_normal((2, n, d))
    contrastive = -2 * (z * other).sum() / n + ((z @ z.T) ** 2).sum() / n**2
    assert contrastive == pytest.approx(
        -2 * np.trace(z.T @ other / n) + ((z.T @ z / n) ** 2).sum(), rel=1e-10, abs=1e-10
    )
