"""Global minima of the losses over all features, in closed form: how much of each eigenfunction they hold.

    found = barlow_twins(eigenvalues, dim=8, lambd=0.03)
    found.rank, found.shares          # how many modes the features span, and how the variance divides among them

Features are functions of views with mean zero; in the coordinates of the eigenfunctions phi_k (the constant left out)
`dim` of them are a matrix A, `(dim, modes)`, and all that these losses see is its second moment M = A^T A / dim. At a
minimum M is diagonal, with `shares` on the diagonal: water fills the modes from the best preserved one down. Single
features at a minimum may be any mixture with that moment, so compare spans, never one feature with one eigenfunction.

`minimise` descends on A itself from many random starts, to check the formulas against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.optimize import brentq, minimize

from ncssl_core.base import InputError

Array = np.ndarray
Modes = Float[Array, " modes"]
Features = Float[Array, "dim modes"]
Objective = Callable[[Features], tuple[float, Features]]  # value per feature, and gradient


@dataclass(frozen=True, eq=False)
class Optimum:
    """A global minimum over features.

    `shares` are the second moments m_k of the modes, per feature: for unit-variance features they sum to 1. `rank` is
    how many are above zero, `loss` the loss per feature, `variance` the variance of a feature. `thresholds[k - 1]` is
    the value of the control parameter (which one, the function says) above which mode k is held; infinite where the
    projector is too narrow for it.
    """

    rank: int
    shares: Modes
    loss: float
    thresholds: Modes
    variance: float = 1.0


def _modes(eigenvalues: npt.ArrayLike, dim: int, **weights: float) -> Modes:
    values = np.array(eigenvalues, dtype=float)
    if values.ndim != 1 or not len(values) or not (values >= 0).all() or not (values < 1).all():
        raise InputError(f"eigenvalues: wanted numbers in [0, 1), without the constant's 1; given {values.tolist()}")
    if (np.diff(values) > 0).any():
        raise InputError(f"eigenvalues: wanted in descending order; given {values.tolist()}")
    if dim < 1:
        raise InputError(f"dim is at least 1; given {dim}")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"{name} is a finite weight above 0; given {weight}")
    return values


def _fill(costs: Modes, total: float, slope: float, most: int) -> tuple[Modes, float]:
    """Minimise sum costs_k m_k + slope / 2 sum m_k^2 over m >= 0 with sum `total`: (m, the level theta).

    m_k = (theta - costs_k)_+ / slope on the `most` cheapest; costs ascending.
    """
    for rank in range(min(most, len(costs)), 0, -1):
        level = (slope * total + costs[:rank].sum()) / rank
        if level > costs[rank - 1]:
            break
    filled = np.zeros(len(costs))
    filled[:rank] = (level - costs[:rank]) / slope
    return filled, float(level)


def _rank(shares: Modes) -> int:
    return int((shares > 0).sum())


def _ahead(values: Modes) -> Modes:
    """kappa_k = 1/2 sum_{j < k} (lambda_j - lambda_k)."""
    k = np.arange(len(values))
    return np.asarray((np.concatenate([[0.0], values.cumsum()[:-1]]) - k * values) / 2)


def invariance(eigenvalues: npt.ArrayLike, dim: int, beta: float) -> Optimum:
    """Unit-variance features; invariance plus correlation: sum_i E Var(f_i | x) + beta sum_{i != j} <f_i, f_j>^2.

    m_k = (theta - (1 - lambda_k))_+ / (2 beta dim), sum 1. `thresholds` are those of beta dim:
    kappa_k = 1/2 sum_{j < k} (lambda_j - lambda_k). Exact for every dim.

    Args:
        eigenvalues: of T*T without the constant's, descending, `(modes,)`.
        dim: features.
        beta: weight of the correlations.

    Raises:
        InputError: eigenvalues outside [0, 1) or out of order, dim below 1, beta not above 0.

    Source: derived in this book.
    """
    values = _modes(eigenvalues, dim, beta=beta)
    shares, _ = _fill(1 - values, 1.0, 2 * beta * dim, dim)
    loss = (1 - values) @ shares + beta * (dim * (shares**2).sum() - 1)
    thresholds = np.where(np.arange(len(values)) < dim, _ahead(values), np.inf)
    return Optimum(_rank(shares), shares, float(loss), thresholds)


def rotation_invariant(eigenvalues: npt.ArrayLike, dim: int, beta: float) -> Optimum:
    """Free features; invariance plus ||K - I||_F^2, diagonal included: sum_i E Var(f_i | x) + beta ||K - I||_F^2.

    K has the eigenvalues (1 - (1 - lambda_k) / (2 beta))_+ on the first dim modes; `shares` are those over dim.
    `thresholds` are those of beta itself, (1 - lambda_k) / 2: with this penalty a wider projector holds no more.

    Args and errors as for `invariance`. Source: derived in this book.
    """
    values = _modes(eigenvalues, dim, beta=beta)
    held = np.where(np.arange(len(values)) < dim, np.clip(1 - (1 - values) / (2 * beta), 0, None), 0.0)
    loss = ((1 - values) @ held + beta * (((held - 1) ** 2)[:dim].sum() + max(0, dim - len(values)))) / dim
    thresholds = np.where(np.arange(len(values)) < dim, (1 - values) / 2, np.inf)
    return Optimum(_rank(held), held / dim, float(loss), thresholds, float(held.sum() / dim))


def barlow_twins(eigenvalues: npt.ArrayLike, dim: int, lambd: float) -> Optimum:
    """Barlow Twins on unit-variance features: sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2, C_ij = <T f_i, T f_j>.

    A lower bound for every dim, attained where all C_ii can be equal, as for dim a power of two, and for lambd = 1.
    With s = sum lambda_k m_k and r = 1 - (1 - lambd) s: m_k = (r lambda_k - eta) / (lambd dim lambda_k^2) on the first
    modes, as many as are positive. `thresholds` are those of kappa = lambd dim at this dim; for large dim
    kappa_k = sum_{j < k} (1 - lambda_j) (lambda_j - lambda_k) / lambda_j^2.

    Args:
        eigenvalues: of T*T without the constant's, descending, above 0, `(modes,)`.
        dim: features.
        lambd: the off-diagonal weight, in (0, 1].

    Raises:
        InputError: as for `invariance`, an eigenvalue of 0, or lambd outside (0, 1].

    Source: derived in this book. The landscape has other local minima; this is the global one.
    """
    values = _modes(eigenvalues, dim, lambd=lambd)
    if lambd > 1 or values.min() <= 0:
        raise InputError(f"barlow_twins wants lambd <= 1 and eigenvalues above 0; given {lambd}, {values.tolist()}")
    thresholds = np.array([_entry(values, k, dim) for k in range(1, len(values) + 1)])
    rank = int((np.minimum.accumulate(lambd * dim > thresholds)).sum())
    head = values[:rank]
    one, two = (1 / head).sum(), (1 / head**2).sum()
    spread = (1 - lambd) * (rank - one**2 / two) / (lambd * dim)
    r = (1 - (1 - lambd) * one / two) / (1 + spread)
    eta = (r * one - lambd * dim) / two
    shares = np.zeros(len(values))
    shares[:rank] = (r * head - eta) / (lambd * dim * head**2)
    s = values @ shares
    loss = (1 - s) ** 2 - lambd * s**2 + lambd * dim * ((values * shares) ** 2).sum()
    return Optimum(rank, shares, float(loss), thresholds)


def _entry(values: Modes, k: int, dim: int) -> float:
    """The kappa = lambd dim above which Barlow Twins holds mode k (from 1)."""
    if k > dim:
        return math.inf
    before, own = values[: k - 1], values[k - 1]
    ahead = ((1 - before) * (before - own) / before**2).sum()
    return float(dim * ahead / (dim - k + 1 + own * (1 / before).sum())) if k > 1 else 0.0


def d_min(k: int, eigenvalues: npt.ArrayLike, lambd: float) -> int:
    """The narrowest projector with which Barlow Twins at weight `lambd` holds the first k modes at its minimum.

    The smallest integer d >= k with d > kappa_k / lambd + sum_{j < k} (1 - lambda_k / lambda_j).

    Raises:
        InputError: k is no mode, or as for `barlow_twins`.
    """
    values = _modes(eigenvalues, 1, lambd=lambd)
    if not 1 <= k <= len(values):
        raise InputError(f"k is one of {len(values)} modes, from 1; given {k}")
    before, own = values[: k - 1], values[k - 1]
    ahead = ((1 - before) * (before - own) / before**2).sum() / lambd + (1 - own / before).sum()
    return max(k, math.floor(ahead + 1e-9) + 1 if k > 1 else 1)


def vicreg(
    eigenvalues: npt.ArrayLike, dim: int, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0
) -> Optimum:
    """VICReg on free features, as the package's loss weighs its terms, without the 1e-4 inside the root.

    Per feature, with variance v <= 1 and b_k = v m_k: 2 sim sum (1 - lambda_k) b_k + std (1 - sqrt v) + 2 cov
    (dim sum b_k^2 - v^2). b_k = (theta - 2 sim (1 - lambda_k))_+ / (4 cov dim); `shares` are the b_k / v, `variance`
    is v, in general below 1. `thresholds` are those of kappa = cov dim / sim.

    Args:
        eigenvalues: of T*T without the constant's, descending, `(modes,)`.
        dim: features.
        sim_coeff, std_coeff, cov_coeff: the three weights.

    Raises:
        InputError: as for `invariance`, or std_coeff below 16 cov_coeff, where equal variances are not proved best.

    Source: derived in this book.
    """
    values = _modes(eigenvalues, dim, sim_coeff=sim_coeff, std_coeff=std_coeff, cov_coeff=cov_coeff)
    if std_coeff < 16 * cov_coeff:
        raise InputError(f"vicreg wants std_coeff >= 16 cov_coeff; given {std_coeff} and {cov_coeff}")
    costs, slope = 2 * sim_coeff * (1 - values), 4 * cov_coeff * dim

    def rising(v: float) -> float:
        """Derivative of the loss in v."""
        return _fill(costs, v, slope, dim)[1] - std_coeff / (2 * math.sqrt(v)) - 4 * cov_coeff * v

    v = 1.0 if rising(1.0) <= 0 else float(brentq(rising, 1e-12, 1.0, xtol=1e-15, rtol=1e-14))
    b, _ = _fill(costs, v, slope, dim)
    loss = costs @ b + std_coeff * (1 - math.sqrt(v)) + 2 * cov_coeff * (dim * (b**2).sum() - v**2)
    entry = np.array([_variance_at_entry(1 - x, sim_coeff, std_coeff, cov_coeff) for x in values])
    thresholds = np.where(np.arange(len(values)) < dim, _ahead(values) / entry, np.inf)
    return Optimum(_rank(b), b / v, float(loss), thresholds, v)


def _variance_at_entry(lost: float, sim: float, std: float, cov: float) -> float:
    """v where a mode with 1 - lambda = lost enters: smaller root of sqrt(v) (4 sim lost - 8 cov v) = std, at most 1."""
    top = sim * lost / (6 * cov)  # where the left side is largest

    def gap(v: float) -> float:
        return math.sqrt(v) * (4 * sim * lost - 8 * cov * v) - std

    return float(brentq(gap, 0.0, min(top, 1.0))) if top > 0 and gap(min(top, 1.0)) > 0 else 1.0


# ---- numerical minima, to check the above ----------------------------------------------------------------------


def invariance_objective(eigenvalues: npt.ArrayLike, beta: float) -> Objective:
    """What `invariance` minimises, as a function of A `(dim, modes)` with unit rows: value and gradient."""
    lost = 1 - np.asarray(eigenvalues, dtype=float)

    def value(a: Features) -> tuple[float, Features]:
        d, k = len(a), a @ a.T
        off = k - np.diag(k.diagonal())
        return float(((a**2) @ lost).sum() + beta * (off**2).sum()) / d, (2 * a * lost + 4 * beta * off @ a) / d

    return value


def barlow_twins_objective(eigenvalues: npt.ArrayLike, lambd: float) -> Objective:
    """What `barlow_twins` minimises, as a function of A `(dim, modes)` with unit rows: value and gradient."""
    values = np.asarray(eigenvalues, dtype=float)

    def value(a: Features) -> tuple[float, Features]:
        d, c = len(a), (a * values) @ a.T
        diagonal = c.diagonal()
        off = c - np.diag(diagonal)
        pull = 2 * lambd * off - np.diag(2 * (1 - diagonal))
        return float(((1 - diagonal) ** 2).sum() + lambd * (off**2).sum()) / d, 2 * pull @ (a * values) / d

    return value


def vicreg_objective(eigenvalues: npt.ArrayLike, sim_coeff: float, std_coeff: float, cov_coeff: float) -> Objective:
    """What `vicreg` minimises, as a function of A `(dim, modes)` with free rows: value and gradient."""
    lost = 1 - np.asarray(eigenvalues, dtype=float)

    def value(a: Features) -> tuple[float, Features]:
        d, k = len(a), a @ a.T
        root = np.sqrt(k.diagonal())
        off = k - np.diag(k.diagonal())
        total = 2 * sim_coeff * ((a**2) @ lost).sum() + std_coeff * np.clip(1 - root, 0, None).sum()
        hinge = np.where(root < 1, std_coeff / np.maximum(root, 1e-12), 0)[:, None] * a
        gradient = 4 * sim_coeff * a * lost - hinge + 8 * cov_coeff * off @ a
        return float(total + 2 * cov_coeff * (off**2).sum()) / d, gradient / d

    return value


def minimise(
    objective: Objective, dim: int, modes: int, starts: int = 20, seed: int = 0, free_norms: bool = False
) -> tuple[float, Features]:
    """The best of many descents (L-BFGS) over `dim` features with unit rows: the value and A `(dim, modes)`.

    Args:
        objective: A -> value and gradient.
        dim: features.
        modes: coordinates of a feature.
        starts: random starts; Barlow Twins has local minima that are not global.
        seed: of the starts.
        free_norms: let each row's length vary in (0, 1], instead of 1.
    """
    random = np.random.default_rng(seed)

    def rows(flat: Array) -> tuple[Features, Features, Array, Array]:
        raw, angle = flat[: dim * modes].reshape(dim, modes), flat[dim * modes :, None]
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        unit = raw / length
        return (np.sin(angle) * unit if free_norms else unit), unit, length, angle

    def loss(flat: Array) -> tuple[float, Array]:
        a, unit, length, angle = rows(flat)
        value, gradient = objective(a)
        scale = np.sin(angle) if free_norms else 1.0
        along = (gradient * unit).sum(1, keepdims=True)
        parts = [(scale * (gradient - along * unit) / length).ravel()]
        return value, np.concatenate([*parts, (along * np.cos(angle)).ravel()] if free_norms else parts)

    best: tuple[float, Features] = (math.inf, np.empty((dim, modes)))
    for _ in range(starts):
        start = random.standard_normal(dim * modes)
        if free_norms:
            start = np.concatenate([start, random.uniform(0.5, 1.2, dim)])
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
        )
        if found.fun < best[0]:
            best = float(found.fun), rows(found.x)[0]
    return best
