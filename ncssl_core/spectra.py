"""What a representation's spectrum says: how many directions it uses, how evenly, and how near two subspaces are.

Every function takes torch tensors or numpy arrays, `(samples, features)` unless it says otherwise, and returns floats.
Say which one you report: RankMe reads singular values of the embedding matrix, the effective rank reads eigenvalues of
the covariance, and for one set of features they differ by a factor of several.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from ncssl_core.base import InputError

Matrix = Float[Tensor, "samples features"] | Float[np.ndarray, "samples features"]
Vector = Float[np.ndarray, " features"]


def rankme(features: Matrix, eps: float = 1e-7) -> float:
    """RankMe: exp of the entropy of p_k = s_k / sum(s) + eps, s the singular values of the (uncentred) matrix.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equations 1 and 2.
    """
    singular = np.linalg.svd(_matrix(features), compute_uv=False)
    p = singular / max(singular.sum(), np.finfo(float).tiny) + eps
    return float(np.exp(-(p * np.log(p)).sum()))


def covariance_spectrum(features: Matrix) -> Vector:
    """Eigenvalues of the covariance (over samples - 1), descending, none below zero."""
    x = _matrix(features)
    centred = x - x.mean(0)
    return np.linalg.eigvalsh(centred.T @ centred / (len(x) - 1))[::-1].clip(0)


def effective_rank(eigenvalues: npt.ArrayLike) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues: R for R equal ones.

    Source: Roy and Vetterli 2007, on eigenvalues instead of singular values.
    """
    values = np.asarray(eigenvalues, dtype=float)
    p = values[values > 0] / max(values.sum(), np.finfo(float).tiny)
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(eigenvalues: npt.ArrayLike) -> float:
    """(sum l)^2 / sum l^2 of the covariance's eigenvalues: R for R equal ones."""
    values = np.asarray(eigenvalues, dtype=float)
    return float(values.sum() ** 2 / max((values**2).sum(), np.finfo(float).tiny))


def alpha_exponent(eigenvalues: npt.ArrayLike, ranks: tuple[int, int] = (11, 100)) -> float:
    """The exponent a of a spectrum l_k ~ k^-a: weighted least squares of ln l_k on ln k with weights 1 / k.

    Args:
        eigenvalues: of the covariance, descending.
        ranks: first and last k of the fit, counted from 1; cut to what there is.

    Raises:
        InputError: fewer than three positive eigenvalues in the range.

    Source: alpha-ReQ (Agrawal et al. 2022), after Stringer et al. 2019. A slowly falling spectrum comes out
    low from few samples. Where features span fewer directions than `ranks` says, the fit reads rounding errors: cut the
    range to the rank.
    """
    values = np.asarray(eigenvalues, dtype=float)
    k = np.arange(1, len(values) + 1)
    use = (k >= ranks[0]) & (k <= ranks[1]) & (values > 0)
    if use.sum() < 3:
        raise InputError(f"a power law wants three positive eigenvalues in ranks {ranks}; there are {use.sum()}")
    slope, _ = np.polyfit(np.log(k[use]), np.log(values[use]), 1, w=1 / np.sqrt(k[use]))
    return -float(slope)


def whiteness_error(features: Matrix) -> float:
    """||K - I||_F^2 / features, K the covariance (over samples).

    White features still give about (features + 1) / samples: the noise of the estimate.
    """
    x = _matrix(features)
    centred = x - x.mean(0)
    difference = centred.T @ centred / len(x) - np.eye(x.shape[1])
    return float((difference**2).sum() / x.shape[1])


def subspace_overlap(features: Matrix, truth: Matrix, weights: npt.ArrayLike | None = None) -> float:
    """Mean squared cosine of the principal angles between two spans of functions on the same samples, in [0, 1].

    Both are centred and orthonormalised; directions below 1e-8 of the largest are left out, so duplicated features do
    no harm. The mean runs over the dimension of `truth`: 1 if the features span it. For random centred features of d
    columns on M samples expect d / (M - 1).

    Args:
        features: `(samples, d)`.
        truth: `(samples, k)`.
        weights: probability of each sample; equal if not given.

    Raises:
        InputError: different numbers of samples.
    """
    a, b = _matrix(features), _matrix(truth)
    if len(a) != len(b):
        raise InputError(f"two spans live on the same samples; given {a.shape} and {b.shape}")
    w = np.full(len(a), 1 / len(a)) if weights is None else np.asarray(weights, dtype=float)
    bases = []
    for x in (a, b):
        u, s, _ = np.linalg.svd(np.sqrt(w)[:, None] * (x - w @ x), full_matrices=False)
        bases.append(u[:, s > 1e-8 * s[0]])
    return float((np.linalg.norm(bases[1].T @ bases[0]) ** 2) / bases[1].shape[1])


def summary(features: Matrix) -> dict[str, float]:
    """All of the above that need no ground truth, for a record; `alpha` is NaN where no power law can be fitted."""
    eigenvalues = covariance_spectrum(features)
    try:
        alpha = alpha_exponent(eigenvalues)
    except InputError:
        alpha = float("nan")
    return {
        "rankme": rankme(features),
        "effective_rank": effective_rank(eigenvalues),
        "participation_ratio": participation_ratio(eigenvalues),
        "alpha": alpha,
        "whiteness_error": whiteness_error(features),
    }


def _matrix(features: Matrix) -> Float[np.ndarray, "samples features"]:
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise InputError(f"given features of shape {array.shape}, wanted (samples >= 2, features)")
    return array.astype(np.float64)
