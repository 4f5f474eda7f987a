"""Section by section: what the chapter on views and kernels states holds to rounding, for worlds it does not show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncssl_core.base import InputError
from ncssl_core.theory.kernels import Augmentation, Gaussian, cycle, hypercube, parities, random_world, two_points

EXACT = 1e-12


@st.composite
def worlds(draw):
    samples, views = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Augmentation(random.dirichlet(np.full(views, 0.7), samples) * 0.99 + 0.01 / views,
                        random.dirichlet(np.full(samples, 5.0)) * 0.99 + 0.01 / samples)  # fmt: skip


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=EXACT * max(1.0, np.abs(b).max(initial=0)))


@given(worlds(), st.integers(0, 100))
def test_the_two_averages_are_adjoint(world, seed):
    random = np.random.default_rng(seed)
    f, g = random.standard_normal(len(world.view_shares)), random.standard_normal(len(world.samples))
    assert_close(world.samples @ (world.mean_over_views(f) * g), world.view_shares @ (f * world.mean_over_samples(g)))


@given(worlds())
def test_singular_functions_are_orthonormal_and_map_onto_each_other(world):
    phi, psi, sigma = world.view_functions, world.sample_functions, np.sqrt(world.eigenvalues)
    assert_close(phi.T @ (world.view_shares[:, None] * phi), np.eye(len(sigma)))
    assert_close(psi.T @ (world.samples[:, None] * psi), np.eye(len(sigma)))
    assert_close(world.mean_over_views(phi), psi * sigma)
    assert_close(world.mean_over_samples(psi), phi * sigma)


@given(worlds())
def test_the_first_mode_is_constant_and_no_eigenvalue_leaves_the_unit_interval(world):
    assert abs(world.eigenvalues[0] - 1) < EXACT
    assert world.eigenvalues.min() >= 0
    assert (np.diff(world.eigenvalues) <= 0).all()
    assert_close(world.mean_over_views(np.ones(len(world.view_shares))), np.ones(len(world.samples)))


@given(worlds())
def test_mercer_both_kernels_are_sums_over_modes(world):
    phi, psi, lam = world.view_functions, world.sample_functions, world.eigenvalues
    assert_close(world.forward_kernel, psi * lam @ psi.T)
    assert_close(world.backward_kernel, phi * lam @ phi.T)


@given(worlds())
def test_the_graph_has_the_same_spectrum(world):
    graph = np.linalg.eigvalsh(world.adjacency)[::-1]
    modes = min(len(graph), len(world.eigenvalues))
    assert_close(graph[:modes], world.eigenvalues[:modes])
    assert_close(graph[modes:], np.zeros(len(graph) - modes))
    assert_close(world.pairs.sum(1), world.view_shares)


@given(worlds(), st.integers(0, 100))
def test_a_pairs_disagreement_is_twice_the_variance_within(world, seed):
    f = np.random.default_rng(seed).standard_normal(len(world.view_shares))
    disagreement = (world.pairs * (f[:, None] - f) ** 2).sum()
    assert_close(disagreement, 2 * world.variance_within(f))
    assert_close(disagreement, 2 * (world.view_shares @ f**2 - world.samples @ world.mean_over_views(f) ** 2))


@given(worlds())
def test_an_eigenvalue_is_one_minus_the_share_of_variance_within(world):
    assert_close(world.variance_within(world.view_functions), 1 - world.eigenvalues)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_parities_are_eigenfunctions_of_the_hypercube(flips):
    world, chi = hypercube(flips), parities(len(flips))
    sigma = np.array([np.prod([1 - 2 * q for i, q in enumerate(flips) if s >> i & 1]) for s in range(2 ** len(flips))])
    assert_close(world.mean_over_views(chi), chi * sigma)
    assert_close(np.sort(sigma**2)[::-1], world.eigenvalues)


def test_bit_i_of_a_word_is_flipped_with_its_own_probability():
    assert hypercube([0.1, 0.4]).given[0].tolist() == pytest.approx([0.9 * 0.6, 0.1 * 0.6, 0.9 * 0.4, 0.1 * 0.4])


@given(st.integers(3, 12), st.floats(0, 0.5))
def test_fourier_modes_are_eigenfunctions_of_the_cycle(length, step):
    k = np.arange(length)
    expected = (1 - 2 * step + 2 * step * np.cos(2 * np.pi * k / length)) ** 2
    assert_close(cycle(length, step).eigenvalues, np.sort(expected)[::-1])


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_two_points_have_one_eigenvalue_in_closed_form(p, q, r):
    b = p * r + q * (1 - r)
    world = two_points(p, q, r)
    assert_close(world.eigenvalues, [1, r * (1 - r) * (p - q) ** 2 / (b * (1 - b))])


@given(st.lists(st.floats(0, 0.95), min_size=1, max_size=2), st.integers(0, 100))
def test_hermite_products_are_eigenfunctions_of_the_gaussian_world(correlations, seed):
    world = Gaussian(correlations)
    degrees, values = world.modes(8)
    x = np.random.default_rng(seed).standard_normal((5, len(correlations)))
    averaged = world.mean_over_views(lambda a: world.functions(a, degrees), x, nodes=12)
    scale = np.array([np.prod(np.array(correlations) ** k) for k in degrees])
    np.testing.assert_allclose(averaged, world.functions(x, degrees) * scale, atol=1e-9)
    np.testing.assert_allclose(values, scale**2, atol=1e-12)


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=3))
def test_the_first_modes_of_the_gaussian_world_are_the_first(correlations):
    degrees, values = Gaussian(correlations).modes(10)
    assert values[0] == 1
    assert (np.diff(values) <= 1e-15).all()
    assert len(np.unique(degrees, axis=0)) == 10
    others = np.stack(np.meshgrid(*[np.arange(11)] * len(correlations)), -1).reshape(-1, len(correlations))
    best = np.sort(np.prod(np.array(correlations) ** (2 * others), axis=1))[::-1]
    np.testing.assert_allclose(values, best[:10], rtol=1e-12)


def test_gaussian_views_have_the_moments_of_their_modes():
    world = Gaussian([0.9, 0.6])
    a, b = world.draw(200_000, 2, seed=1)
    degrees, values = world.modes(3)  # those of higher degree have heavy tails
    fa, fb = world.functions(a, degrees), world.functions(b, degrees)
    np.testing.assert_allclose(fa.T @ fa / len(a), np.eye(3), atol=0.03)
    np.testing.assert_allclose(fa.T @ fb / len(a), np.diag(values), atol=0.03)


def test_a_world_without_structure_is_drawn_from_its_seed():
    assert (random_world(4, 6, 1).given == random_world(4, 6, 1).given).all()
    assert (random_world(4, 6, 1).given != random_world(4, 6, 2).given).any()


def test_drawn_views_follow_the_table():
    world = Augmentation([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], [0.25, 0.75])
    first, second = world.draw(200_000, 2, seed=1)
    counts = np.zeros((3, 3))
    np.add.at(counts, (first, second), 1 / len(first))
    np.testing.assert_allclose(counts, world.pairs, atol=5e-3)
    assert (world.draw(50, 2, seed=1) == world.draw(50, 2, seed=1)).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Augmentation([0.5, 0.5]), "wanted a table"),
        (lambda: Augmentation([[0.5, 0.6]]), "sum to 1"),
        (lambda: Augmentation([[1.5, -0.5]]), "sum to 1"),
        (lambda: Augmentation([[np.nan, 1.0]]), "sum to 1"),
        (lambda: Augmentation([[0.5, 0.5]], [0.5, 0.5]), "wanted 1 probabilities"),
        (lambda: Augmentation([[1.0, 0.0]]), "above 0"),
        (lambda: Augmentation([[1.0], [1.0]], [1.0, 0.0]), "above 0"),
        (lambda: hypercube([]), "1 to 12"),
        (lambda: hypercube([1.2]), "in \\[0, 1\\]"),
        (lambda: cycle(2, 0.1), "length >= 3"),
        (lambda: cycle(5, 0.6), "1/2"),
        (lambda: cycle(5, 0.1).draw(0, 2), "count >= 1"),
        (lambda: two_points(1.2, 0.5), "sum to 1"),
        (lambda: random_world(0, 3), "samples >= 1"),
        (lambda: Gaussian([1.0]), "in \\[0, 1\\)"),
        (lambda: Gaussian([]), "in \\[0, 1\\)"),
        (lambda: Gaussian([0.5]).modes(0), "count >= 1"),
        (lambda: Gaussian([0.5]).draw(1, 0), "views >= 1"),
    ],
)
def test_bad_worlds_get_one_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
