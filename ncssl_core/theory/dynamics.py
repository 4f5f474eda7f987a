"""Barlow Twins learning with a linear encoder f(x) = W x, step by step, from a small start.

W is `(dim, inputs)` and Gamma `(inputs, inputs)` the symmetric cross-covariance of two views, with eigenvalues gamma.
Outputs are not normalised, C = W Gamma W^T, and L = sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 falls along its
gradient, dW/dt = -grad L. So modes are learned in the order of gamma, the variance that two views share, and not of
the eigenvalue lambda of the augmentation; the two orders agree for whitened inputs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.integrate import quad, solve_ivp

from ncssl_core.base import InputError

Array = np.ndarray
Weights = Float[Array, "dim inputs"]
Covariance = Float[Array, "inputs inputs"]


def loss(w: Weights, gamma: Covariance, lambd: float = 1.0) -> float:
    """sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 with C = W Gamma W^T."""
    return float((_mask(len(w), lambd) * (w @ gamma @ w.T - np.eye(len(w))) ** 2).sum())


def gradient(w: Weights, gamma: Covariance, lambd: float = 1.0) -> Weights:
    """4 [mask * (C - I)] W Gamma, the mask being 1 on the diagonal and lambd off it."""
    return np.asarray(4 * (_mask(len(w), lambd) * (w @ gamma @ w.T - np.eye(len(w)))) @ w @ gamma)


def _mask(dim: int, lambd: float) -> Float[Array, "dim dim"]:
    return np.asarray(lambd + (1 - lambd) * np.eye(dim))


def flow(
    start: Weights, gamma: Covariance, times: npt.ArrayLike, lambd: float = 1.0, tolerance: float = 1e-11
) -> Float[Array, "times dim inputs"]:
    """W at each of the times, by integrating the gradient flow.

    Args:
        start: W at time 0.
        gamma: symmetric.
        times: ascending, from 0 on.
        lambd: off-diagonal weight.
        tolerance: relative error of a step.

    Raises:
        InputError: shapes that do not fit, or times that are negative or out of order.
    """
    start, gamma, at = np.asarray(start, float), np.asarray(gamma, float), np.atleast_1d(np.asarray(times, float))
    if start.ndim != 2 or gamma.shape != (start.shape[1],) * 2:
        raise InputError(f"wanted W (dim, inputs) and Gamma (inputs, inputs); given {start.shape} and {gamma.shape}")
    if at[0] < 0 or (np.diff(at) < 0).any():
        raise InputError(f"times ascend from 0; given {at.tolist()}")

    def rate(_: float, flat: Array) -> Array:
        return -gradient(flat.reshape(start.shape), gamma, lambd).ravel()

    found = solve_ivp(rate, (0, at[-1]), start.ravel(), "DOP853", at, rtol=tolerance, atol=tolerance * 1e-6)
    return np.asarray(found.y.T.reshape(-1, *start.shape))


def aligned(start: npt.ArrayLike, gammas: npt.ArrayLike, times: npt.ArrayLike) -> Float[Array, "times modes"]:
    """Singular values s_j(t) of W whose rows start along the eigenvectors, one mode a row.

    s_j(t) = e^(4 gamma_j t) / sqrt(s_j(0)^-2 + gamma_j (e^(8 gamma_j t) - 1)). Source: Simon et al. 2023; derived here.
    """
    s, g, t = np.asarray(start, float), np.asarray(gammas, float), np.asarray(times, float)[:, None]
    decay = np.exp(-8 * g * t)  # the formula, divided through by its growing factor
    return np.asarray(1 / np.sqrt(decay / s**2 + g * (1 - decay)))


def learning_times(start: npt.ArrayLike, gammas: npt.ArrayLike) -> Float[Array, " modes"]:
    """When each mode is half learned, gamma_j s_j^2 = 1/2, from an aligned start.

    ln(1 / (gamma_j s_j(0)^2) - 1) / (8 gamma_j), exactly.

    Raises:
        InputError: a mode that is half learned at the start.
    """
    s, g = np.asarray(start, float), np.asarray(gammas, float)
    if (g * s**2 >= 0.5).any() or (g <= 0).any():
        raise InputError("learning times want gammas above 0 and a start with gamma s^2 < 1/2")
    return np.asarray(np.log(1 / (g * s**2) - 1) / (8 * g))


def seen_by_modes(start: Weights, vectors: Float[Array, "inputs modes"]) -> Float[Array, " modes"]:
    """What a generic start gives each mode: `|R_jj|` of the QR factorisation of W(0) V, V's columns in order of gamma.

    Mode j grows from the part of its column that is orthogonal to the feature directions already taken. Put into
    `learning_times` it gives the times of a small random start, for separated gammas and j <= dim.
    """
    r = np.linalg.qr(np.asarray(start, float) @ np.asarray(vectors, float), mode="r")
    return np.asarray(np.abs(np.diag(r)))


def plateau(rank: int, dim: int, lambd: float) -> float:
    """The loss while `rank` modes are learned: lambd d (d - R) / (R + lambd (d - R)); d - R for lambd = 1.

    Raises:
        InputError: rank outside 1 to dim, or lambd outside (0, 1].
    """
    _check(rank, dim, lambd)
    return lambd * dim * (dim - rank) / (rank + lambd * (dim - rank))


def growth(gamma: float, rank: int, dim: int, lambd: float) -> float:
    """The rate at which the next mode grows on that plateau: 4 gamma lambd d / (R + lambd (d - R)).

    At first, with nothing learned, every mode grows at 4 gamma whatever lambd is.

    Raises:
        InputError: as `plateau`.
    """
    _check(rank, dim, lambd)
    return 4 * gamma * lambd * dim / (rank + lambd * (dim - rank))


def _check(rank: int, dim: int, lambd: float) -> None:
    if not 1 <= rank <= dim or not 0 < lambd <= 1:
        raise InputError(f"wanted 1 <= rank <= dim and lambd in (0, 1]; given {rank}, {dim}, {lambd}")


def slowed_times(gammas: npt.ArrayLike, dim: int, lambd: float, start: float) -> Float[Array, " modes"]:
    """Learning times of all modes at off-diagonal weight `lambd`, from a random start of size `start`; leading order.

    tau_k = s_k + (1 - lambd) / (lambd dim) sum_{r < k} (s_k - s_r), s_k = ln(1 / start) / (4 gamma_k) being the times
    at lambd = 1; infinite for k > dim. The error falls like 1 / ln(1 / start). Source: derived in this book.

    Raises:
        InputError: gammas out of order or not above 0, lambd outside (0, 1], or a start outside (0, 1).
    """
    g = np.asarray(gammas, float)
    if (g <= 0).any() or (np.diff(g) > 0).any() or not 0 < start < 1:
        raise InputError(f"wanted descending gammas above 0 and a start in (0, 1); given {g.tolist()}, {start}")
    _check(1, dim, lambd)
    s = math.log(1 / start) / (4 * g)
    k = np.arange(len(g))
    behind = k * s - np.concatenate([[0.0], s.cumsum()[:-1]])
    return np.where(k < dim, s + (1 - lambd) / (lambd * dim) * behind, np.inf)


def modes_by(time: float, gammas: npt.ArrayLike, dim: int, lambd: float, start: float) -> int:
    """How many modes are learned by a time, to leading order: those with `slowed_times` up to it."""
    return int((slowed_times(gammas, dim, lambd, start) <= time).sum())


def lottery(strong: float, weak: float, start: float) -> float:
    """Without any off-diagonal term: the chance that a feature learns the second mode and not the first.

    With lambd = 0 rows of W do not see each other; from W(0) = start times normal numbers, a row ends in the second
    mode if `|g_1| < (sqrt(2 weak) start |g_2|)^(strong / weak) / (sqrt(2 strong) start)`, both g standard normal.
    The chance falls like start^(strong / weak - 1), so the features needed until one draws the weak mode grow like
    its inverse.

    Args:
        strong, weak: gamma_1 > gamma_2 > 0.
        start: size of the start.

    Raises:
        InputError: gammas out of order or not above 0, or start not above 0.

    Source: derived in this book.
    """
    if not (strong > weak > 0 and start > 0):
        raise InputError(f"wanted strong > weak > 0 and start > 0; given {strong}, {weak}, {start}")

    def given_second(g: float) -> float:
        bound = (math.sqrt(2 * weak) * start * g) ** (strong / weak) / (math.sqrt(2 * strong) * start)
        return math.erf(bound / math.sqrt(2)) * math.sqrt(2 / math.pi) * math.exp(-(g**2) / 2)

    return float(quad(given_second, 0, 40, limit=200)[0])
