"""The augmentation operator of a finite world, its spectrum and its two kernels.

    world = hypercube([0.02, 0.1, 0.45])   # three bits; a view flips each with its own probability
    world.eigenvalues                      # 1, then the share of each eigenfunction that views of one sample agree on

Everything here is a finite sum or one singular value decomposition; nothing is approximated. Derived in the chapter
*Views, kernels and the augmentation operator*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from ncssl_core.base import InputError

Array = np.ndarray
OnSamples = Float[Array, " samples"] | Float[Array, "samples functions"]
OnViews = Float[Array, " views"] | Float[Array, "views functions"]
Probabilities = npt.ArrayLike


@dataclass(frozen=True, eq=False)
class Augmentation:
    """A finite augmentation: `given[x, a] = p(view a | sample x)`, and how often each sample occurs.

    Functions of samples are columns of length `samples`, functions of views columns of length `views`; several at once
    are the columns of a matrix. "Orthonormal" always weighs by `samples` or by `view_shares`.

    Args:
        given: `(samples, views)`, rows sum to 1.
        samples: probabilities of the samples, `(samples,)`; uniform if not given.

    Raises:
        InputError: the arrays are no such probabilities, do not fit, or a sample or a view never occurs.

    Source: HaoChen et al. 2021 (the augmentation graph), Zhai et al. 2024 (the operator), Johnson et al. 2023 (the
    positive-pair kernel); statements and proofs in the chapter *Views, kernels and the augmentation operator*.
    """

    given: Float[Array, "samples views"]
    samples: Float[Array, " samples"]

    def __init__(self, given: Probabilities, samples: Probabilities | None = None) -> None:
        table = np.array(given, dtype=float)
        if table.ndim != 2 or not table.size:
            raise InputError(f"given: wanted a table (samples, views) of p(view | sample); its shape is {table.shape}")
        shares = np.full(len(table), 1 / len(table)) if samples is None else np.array(samples, dtype=float)
        if shares.shape != table.shape[:1]:
            raise InputError(f"samples: wanted {len(table)} probabilities, one a row of given; shape {shares.shape}")
        for name, values in (("each row of given", table), ("samples", shares)):
            if not (np.all(values >= 0) and np.allclose(values.sum(-1), 1, atol=1e-9)):
                raise InputError(f"{name}: wanted probabilities that sum to 1; sums are {values.sum(-1).tolist()}")
        if not (shares > 0).all() or not (shares @ table > 0).all():
            raise InputError("every sample and every view wants a probability above 0; leave the others out")
        object.__setattr__(self, "given", table)
        object.__setattr__(self, "samples", shares)

    @property
    def view_shares(self) -> Float[Array, " views"]:
        """How often each view occurs: sum over x of p(x) p(a | x)."""
        return np.asarray(self.samples @ self.given)

    @property
    def sources(self) -> Float[Array, "views samples"]:
        """p(sample x | view a), by Bayes' rule: the adjoint's matrix."""
        return np.asarray((self.samples[:, None] * self.given).T / self.view_shares[:, None])

    def mean_over_views(self, f: OnViews) -> OnSamples:
        """T f (x) = E[f(a) | x]: what is left of a function of views once the draw of the view is averaged out."""
        return np.asarray(self.given @ f)

    def mean_over_samples(self, g: OnSamples) -> OnViews:
        """T* g (a) = E[g(x) | a]: the adjoint of `mean_over_views`."""
        return np.asarray(self.sources @ g)

    @cached_property
    def _svd(self) -> tuple[Array, Array, Array]:
        """Of S = diag(samples)^(1/2) given diag(view_shares)^(-1/2); signs such that the largest entry is positive."""
        symmetric = np.sqrt(self.samples)[:, None] * self.given / np.sqrt(self.view_shares)
        u, sigma, vt = np.linalg.svd(symmetric, full_matrices=False)
        sign = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])
        return u * sign, sigma.clip(0, 1), vt.T * sign

    @property
    def eigenvalues(self) -> Float[Array, " modes"]:
        """Of T*T, descending, in [0, 1]; the first is 1, of the constant. `modes` is min(samples, views)."""
        return np.asarray(self._svd[1] ** 2)

    @property
    def view_functions(self) -> Float[Array, "views modes"]:
        """Eigenfunctions of T*T, orthonormal under `view_shares`: T phi_k = sigma_k psi_k, sigma_k^2 = eigenvalue k."""
        return np.asarray(self._svd[2] / np.sqrt(self.view_shares)[:, None])

    @property
    def sample_functions(self) -> Float[Array, "samples modes"]:
        """Eigenfunctions of T T*, orthonormal under `samples`: T* psi_k = sigma_k phi_k."""
        return np.asarray(self._svd[0] / np.sqrt(self.samples)[:, None])

    @property
    def forward_kernel(self) -> Float[Array, "samples samples"]:
        """sum_a p(a|x) p(a|x') / p(a): the kernel of T T*. Large where two samples give the same views."""
        return np.asarray((self.given / self.view_shares) @ self.given.T)

    @property
    def pairs(self) -> Float[Array, "views views"]:
        """p(a, a'): how often two views, drawn independently from one sample, are a and a'. A positive pair's law."""
        return np.asarray(self.given.T @ (self.samples[:, None] * self.given))

    @property
    def backward_kernel(self) -> Float[Array, "views views"]:
        """p(a, a') / (p(a) p(a')): the positive-pair kernel of T*T. Large where two views come from one sample."""
        return np.asarray(self.pairs / np.outer(self.view_shares, self.view_shares))

    @property
    def adjacency(self) -> Float[Array, "views views"]:
        """Normalised adjacency of the augmentation graph: `pairs` over the root of both degrees."""
        return np.asarray(self.pairs / np.sqrt(np.outer(self.view_shares, self.view_shares)))

    def variance_within(self, f: OnViews) -> Float[Array, "..."]:
        """E_x Var(f(a) | x): how much a function of views varies between views of one sample."""
        f = np.asarray(f, dtype=float)
        return np.asarray(self.samples @ (self.given @ f**2 - (self.given @ f) ** 2))

    def draw(self, count: int, views: int, seed: int = 0) -> Int[Array, "views count"]:
        """Draw `count` samples and `views` views of each: indices of views, one row a view.

        Raises:
            InputError: count or views below 1.
        """
        if count < 1 or views < 1:
            raise InputError(f"draw wants count >= 1 and views >= 1; given {count} and {views}")
        random = np.random.default_rng(seed)
        x = random.choice(len(self.samples), count, p=self.samples)
        below = random.random((views, count, 1)) > self.given.cumsum(1)[x]
        return np.asarray(below.sum(-1).clip(max=self.given.shape[1] - 1))


def hypercube(flips: Sequence[float]) -> Augmentation:
    """All words of `len(flips)` bits, equally likely; a view flips bit i with probability `flips[i]`.

    Eigenfunctions are the parities of subsets S of the bits, with eigenvalue prod_{i in S} (1 - 2 flips[i])^2. A bit
    that is rarely flipped is content, one that is flipped half of the time is style. Word number n has bit i of n.

    Raises:
        InputError: no bit or more than 12, or a probability outside [0, 1].
    """
    if not 1 <= len(flips) <= 12 or not all(0 <= q <= 1 for q in flips):
        raise InputError(f"hypercube wants 1 to 12 flip probabilities in [0, 1]; given {list(flips)}")
    one_bit = [np.array([[1 - q, q], [q, 1 - q]]) for q in flips]
    return Augmentation(reduce(np.kron, one_bit[::-1]))


def parities(bits: int) -> Float[Array, "words subsets"]:
    """(-1)^(number of bits of word n inside subset s), for all words and subsets; subset s holds bit i where s does."""
    sign = np.array([[1.0, 1.0], [1.0, -1.0]])
    return reduce(np.kron, [sign] * bits)


def cycle(length: int, step: float) -> Augmentation:
    """`length` points on a ring, equally likely; a view is a step left or right with probability `step` each.

    Eigenfunctions are Fourier modes, with eigenvalue (1 - 2 step + 2 step cos(2 pi k / length))^2.

    Raises:
        InputError: fewer than 3 points, or a step outside [0, 1/2].
    """
    if length < 3 or not 0 <= step <= 0.5:
        raise InputError(f"cycle wants length >= 3 and step in [0, 1/2]; given {length} and {step}")
    stay = np.eye(length)
    return Augmentation((1 - 2 * step) * stay + step * (np.roll(stay, 1, 1) + np.roll(stay, -1, 1)))
