"""Several views of a sample: what they buy in estimating how a feature agrees with another across views.

The feature f_i on view a of sample x is z_i = g_i + noise: g_i = E[z_i | x], and the noise's covariance given x is S.
The target is C_ij = E[g_i g_j], the cross-correlation of two views. From N samples with m views each, `u_statistic`
pairs each view with every other and never with itself, and is unbiased; `all_views` squares the mean over views, and
is not.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from ncssl_core.base import InputError

Array = np.ndarray
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


def variance_of_u(views: int, between: float, once: float, twice: float) -> float:
    """N Var of an entry of `u_statistic`: between + once / m + twice / (m (m - 1)), exactly, for any law of views.

    Args:
        views: m, at least 2.
        between: Var_x(g_p g_q).
        once: E[g_p^2 S_qq + g_q^2 S_pp + 2 g_p g_q S_pq]; on the diagonal 4 E[g^2 s^2].
        twice: E[S_pp S_qq + S_pq^2]; on the diagonal 2 E[s^4].

    Raises:
        InputError: fewer than two views.

    Source: Hoeffding's decomposition of a U-statistic of degree two; derived in this book.
    """
    if views < 2:
        raise InputError(f"a pair wants at least two views; given {views}")
    return between + once / views + twice / (views * (views - 1))


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
    if c.ndim != 1 or c.shape != s.shape or not 1 <= dim < len(c) or views < 2 or samples < 1:
        raise InputError(
            f"wanted two lists of one length, 1 <= dim < {c.size}, views >= 2 and samples >= 1; "
            f"given {c.shape} and {s.shape}, {dim}, {views}, {samples}"
        )
    if not c[dim - 1] > c[dim]:
        raise InputError(f"wanted a gap after the first {dim} variances; given {c.tolist()}")
    kept, its_noise, rest, their_noise = c[:dim, None], s[:dim, None], c[dim:], s[dim:]
    once, twice = kept * their_noise + rest * its_noise, its_noise * their_noise
    parts = kept * rest + once / views + twice / (views * (views - 1))
    return float((parts / (kept - rest) ** 2).sum() / samples)


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
