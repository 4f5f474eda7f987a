"""Several views of a sample: what they buy in estimating how a feature agrees with another across views.

The feature f_i on view a of sample x is z_i = g_i + noise: g_i = E[z_i | x], and the noise's covariance given x is S.
The target is C_ij = E[g_i g_j], the cross-correlation of two views. From N samples with m views each, `u_statistic`
pairs each view with every other and never with itself, and is unbiased; `all_views` squares the mean over views, and
is not; `each_pair` keeps the pairs apart, unbiased and noisier. Derived in the chapter *How many views?*.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ncssl_core.base import InputError
from ncssl_core.theory.kernels import Augmentation

Array = np.ndarray
Numbers = Float[Array, "..."] | float
Views = Float[Array, "views samples features"]
Matrix = Float[Array, "features features"]


def _checked(z: Views) -> Views:
    z = np.asarray(z, dtype=float)
    if z.ndim != 3 or len(z) < 2:
        raise InputError(f"wanted features (views >= 2, samples, features); given {z.shape}")
    return z


def u_statistic(z: Views) -> Matrix:
    """Mean over samples and ordered pairs of different views of z_a z_b^T: an unbiased estimate of C.

    Raises:
        InputError: fewer than two views, or not (views, samples, features).
    """
    z = _checked(z)
    m, n, _ = z.shape
    total, squares = z.sum(0), np.einsum("vni,vnj->ij", z, z)
    return np.asarray((total.T @ total - squares) / (n * m * (m - 1)))


def all_views(z: Views) -> Matrix:
    """Mean over samples of zbar zbar^T, zbar the mean over a sample's views: biased by the noise's covariance over m.

    It equals (1 - 1/m) u_statistic + (1/m) E[z z^T].

    Raises:
        InputError: as `u_statistic`.
    """
    mean = _checked(z).mean(0)
    return np.asarray(mean.T @ mean / len(mean))


def each_pair(z: Views) -> Float[Array, "pairs features features"]:
    """z_a^T z_b / samples for every pair of views a < b: each unbiased, not symmetric, and with the noise of one pair.

    `u_statistic` is the mean of all of them and their transposes.

    Raises:
        InputError: as `u_statistic`.
    """
    z = _checked(z)
    first, second = np.triu_indices(len(z), 1)
    return np.asarray(z[first].transpose(0, 2, 1) @ z[second] / z.shape[1])


class Moments(NamedTuple):
    """What the laws of this module need to know of features, all `(features, features)`.

    `target` is C = E[g g^T], `noise` the covariance within samples E[S]; `between`, `once` and `twice` are the parts of
    `variance_of_u` for every entry; `single` is N times the variance of an entry of `each_pair`.
    """

    target: Matrix
    noise: Matrix
    between: Matrix
    once: Matrix
    twice: Matrix
    single: Matrix


def moments(world: Augmentation, features: Float[Array, "views features"]) -> Moments:
    """The moments of features in a finite world, exactly.

    Args:
        world: its samples and its table p(view | sample).
        features: values on every view of the world.

    Raises:
        InputError: another number of views than the world's.
    """
    g, s, _ = _within(world, features)
    shares, own = world.samples, np.einsum("xii->xi", s)
    both = np.einsum("xp,xq->xpq", g, g)

    def mean(x: Array) -> Matrix:
        return np.asarray(np.tensordot(shares, x, 1))

    crossed = np.einsum("xp,xq->xpq", g**2, own)
    crossed, noises = crossed + crossed.transpose(0, 2, 1), np.einsum("xp,xq->xpq", own, own)
    target = mean(both)
    between = mean(both**2) - target**2
    return Moments(target, mean(s), between, mean(crossed + 2 * both * s), mean(noises + s**2),
                   between + mean(crossed) + mean(noises))  # fmt: skip


def _within(world: Augmentation, features: Array) -> tuple[Array, Array, Array]:
    """g `(samples, features)`, the noise's covariance given each sample, and the noise itself on every view."""
    f = np.asarray(features, dtype=float)
    if f.ndim != 2 or len(f) != len(world.view_shares):
        raise InputError(
            f"wanted features on each of {len(world.view_shares)} views (views, features); given {f.shape}"
        )
    g = world.mean_over_views(f)
    noise = f - g[:, None]
    return g, np.einsum("xa,xai,xaj->xij", world.given, noise, noise), noise


def variance_of_u(views: int, between: Numbers, once: Numbers, twice: Numbers) -> Numbers:
    """N Var of an entry of `u_statistic`: between + once / m + twice / (m (m - 1)), exactly, for any law of views.

    Args:
        views: m, at least 2.
        between: Var_x(g_p g_q). Numbers, or arrays of them.
        once: E[g_p^2 S_qq + g_q^2 S_pp + 2 g_p g_q S_pq]; on the diagonal 4 E[g^2 s^2].
        twice: E[S_pp S_qq + S_pq^2]; on the diagonal 2 E[s^4].

    Raises:
        InputError: fewer than two views.

    Source: Hoeffding's decomposition of a U-statistic of degree two; derived in the chapter *How many views?*.
    """
    if views < 2:
        raise InputError(f"a pair wants at least two views; given {views}")
    return between + once / views + twice / (views * (views - 1))


def variance_of_all_views(world: Augmentation, features: Float[Array, "views features"], views: int) -> Array:
    """N Var of the diagonal of `all_views` in a finite world, exactly, `(features,)`.

    Var_x(g^2 + s^2 / m) + 4 E[g^2 s^2] / m + 4 E[g k_3] / m^2 + 2 E[s^4] / m^2 + E[k_4] / m^3, with the third and
    fourth cumulants k of a view's noise given its sample.

    Raises:
        InputError: fewer than one view, or as `moments`.
    """
    if views < 1:
        raise InputError(f"a mean wants at least one view; given {views}")
    g, s, noise = _within(world, features)
    own = np.einsum("xii->xi", s)
    third, fourth = (np.einsum("xa,xai->xi", world.given, noise**power) for power in (3, 4))
    level = g**2 + own / views
    within = 4 * g**2 * own / views + (4 * g * third + 2 * own**2) / views**2 + (fourth - 3 * own**2) / views**3
    return np.asarray(world.samples @ (level**2 + within) - (world.samples @ level) ** 2)


def plug_in_bias(views: int, samples: int, parts: Moments, lambd: float) -> float:
    """By how much Barlow Twins' loss at `u_statistic` exceeds the loss at C, on average.

    sum_ij M_ij Var(U_ij), M being 1 on the diagonal and lambd off it: it falls with batch and views, not with epochs.
    For features that are not centred or normalised within the batch.

    Raises:
        InputError: fewer than two views or one sample, or a negative weight.
    """
    if samples < 1 or not lambd >= 0:
        raise InputError(f"wanted samples >= 1 and lambd >= 0; given {samples} and {lambd}")
    mask = lambd + (1 - lambd) * np.eye(len(parts.target))
    return float((mask * variance_of_u(views, parts.between, parts.once, parts.twice)).sum() / samples)


def gaussian_mode(eigenvalue: float) -> tuple[float, float, float]:
    """(between, once, twice) of `variance_of_u` for a Gaussian feature of variance 1 that agrees by `eigenvalue`.

    Raises:
        InputError: an eigenvalue outside [0, 1].
    """
    if not 0 <= eigenvalue <= 1:
        raise InputError(f"an eigenvalue lies in [0, 1]; given {eigenvalue}")
    lost = 1 - eigenvalue
    return 2 * eigenvalue**2, 4 * eigenvalue * lost, 2 * lost**2


def best_views(between: float, twice: float) -> float:
    """The m that makes the variance smallest when N m is fixed: 1 + sqrt(twice / between), not rounded.

    1 / eigenvalue for a Gaussian feature. Infinite where samples do not differ in g_p g_q.

    Raises:
        InputError: a negative argument.
    """
    if between < 0 or twice < 0:
        raise InputError(f"both parts of a variance are >= 0; given {between} and {twice}")
    return 1 + math.sqrt(twice / between) if between > 0 else math.inf


def views_for_data(factor: float) -> tuple[float, float]:
    """Thresholds on a Gaussian feature's eigenvalue for using 1 / factor of the samples instead of all with two views.

    Below the first, 2 factor views of them estimate no worse; above the second, not even infinitely many do:
    1 / (1 + sqrt(2 factor - 1)) and 1 / sqrt(2 factor - 1).

    Raises:
        InputError: a factor not above 1.
    """
    if not factor > 1:
        raise InputError(f"factor says how many times fewer samples, above 1; given {factor}")
    root = math.sqrt(2 * factor - 1)
    return 1 / (1 + root), 1 / root


def subspace_error(shared: Array, noise: Array, dim: int, samples: int, views: int) -> float:
    """E ||sin Theta||_F^2 between the first `dim` directions of C and of `u_statistic`, to first order in 1 / N.

    (1 / N) sum_{j <= dim < k} [c_j c_k + (c_j s_k + c_k s_j) / m + s_j s_k / (m (m - 1))] / (c_j - c_k)^2, for Gaussian
    latents with shared variances c and noise variances s, both in the order of c.

    Args:
        shared: variances that views share, descending, `(latents,)`.
        noise: variances of a view's own noise, `(latents,)`.
        dim: directions, from 1 to latents - 1.
        samples: N.
        views: m of each, at least 2.

    Raises:
        InputError: shapes that do not fit, no gap after the first dim, dim out of range, or fewer than two views.

    Source: first-order perturbation; derived in this book.
    """
    c, s = np.asarray(shared, float), np.asarray(noise, float)
    kept, rest = _split(c, s, dim, samples, views)
    its_noise, their_noise = s[:dim, None], s[dim:]
    once, twice = kept * their_noise + rest * its_noise, its_noise * their_noise
    parts = kept * rest + once / views + twice / (views * (views - 1))
    return float((parts / (kept - rest) ** 2).sum() / samples)


def canonical_error(eigenvalues: Array, dim: int, samples: int, views: int) -> float:
    """E ||sin Theta||_F^2 of the first `dim` canonical directions, to first order in 1 / N.

    As `subspace_error` for latents of variance 1, but with the covariance estimated on the same views, as a loss does
    that standardises and decorrelates on its batch: directions solve U v = lambda K v. The part that views cannot touch
    is multiplied by (1 - lambda_j)^2, so well-kept directions gain most.

    Args:
        eigenvalues: correlations of two views, descending, in [0, 1], `(latents,)`.
        dim, samples, views: as for `subspace_error`.

    Raises:
        InputError: eigenvalues outside [0, 1], or as `subspace_error`.

    Source: derived in the chapter *How much data?*; for independent latents of any law.
    """
    values = np.asarray(eigenvalues, float)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"eigenvalues lie in [0, 1]; given {values.tolist()}")
    kept, rest = _split(values, 1 - values, dim, samples, views)
    lost, twice = (1 - kept) ** 2, (1 - kept) * (1 - rest)
    once = lost * (kept + rest - 2 * kept * rest) + kept**2 * twice
    parts = lost * kept * rest + once / views + twice / (views * (views - 1))
    return float((parts / (kept - rest) ** 2).sum() / samples)


def _split(c: Array, s: Array, dim: int, samples: int, views: int) -> tuple[Array, Array]:
    """The first `dim` of c, as a column, and the rest."""
    if c.ndim != 1 or c.shape != s.shape or not 1 <= dim < len(c) or views < 2 or samples < 1:
        raise InputError(
            f"wanted two lists of one length, 1 <= dim < {c.size}, views >= 2 and samples >= 1; "
            f"given {c.shape} and {s.shape}, {dim}, {views}, {samples}"
        )
    if not c[dim - 1] > c[dim]:
        raise InputError(f"wanted a gap after the first {dim} variances; given {c.tolist()}")
    return c[:dim, None], c[dim:]


def davis_kahan(estimate: Matrix, truth: Matrix, dim: int) -> float:
    """The bound 2 sqrt(dim) ||estimate - truth||_op / gap on ||sin Theta||_F: valid for any error, and loose.

    Raises:
        InputError: no gap after the first dim eigenvalues of the truth.

    Source: Davis and Kahan, in the form of Yu, Wang and Samworth 2015.
    """
    values = np.linalg.eigvalsh(truth)[::-1]
    if not 1 <= dim < len(values) or not values[dim - 1] > values[dim]:
        raise InputError(f"wanted a gap after the first {dim} eigenvalues; given {values.tolist()}")
    return float(2 * math.sqrt(dim) * np.linalg.norm(np.asarray(estimate) - truth, 2) / (values[dim - 1] - values[dim]))
