"""The augmentation operator of a finite world, its spectrum and its two kernels.

    world = hypercube([0.02, 0.1, 0.45])   # three bits; a view flips each with its own probability
    world.eigenvalues                      # 1, then the share of each eigenfunction that views of one sample agree on

Everything finite here is a sum or one singular value decomposition; nothing is approximated. `Gaussian` is the one
world with infinitely many images, solved by Hermite polynomials. Derived in the chapter *Views, kernels and the
augmentation operator*.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from numpy.polynomial import hermite_e

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


def two_points(first: float, second: float, share: float = 0.5) -> Augmentation:
    """Two samples and two views: view 0 of sample 0 with probability `first`, of sample 1 with `second`.

    Beside the constant's there is one eigenvalue, share (1 - share) (first - second)^2 / (b (1 - b)), b being how often
    view 0 occurs. `share` is the probability of sample 0.

    Raises:
        InputError: no probabilities, or a sample or view that never occurs.
    """
    return Augmentation([[first, 1 - first], [second, 1 - second]], [share, 1 - share])


def random_world(samples: int, views: int, seed: int = 0) -> Augmentation:
    """A world without structure: each sample's law of views, and the samples' own, are drawn evenly (Dirichlet).

    Raises:
        InputError: samples or views below 1.
    """
    if samples < 1 or views < 1:
        raise InputError(f"random_world wants samples >= 1 and views >= 1; given {samples} and {views}")
    random = np.random.default_rng(seed)
    return Augmentation(random.dirichlet(np.ones(views), samples), random.dirichlet(np.ones(samples)))


class Gaussian:
    """Independent normal latents: a sample is x ~ N(0, I), a view a = c x + sqrt(1 - c^2) n with n ~ N(0, I).

    T takes the Hermite polynomial He_k of a latent to c^k He_k, so eigenfunctions are products of one polynomial a
    latent, with eigenvalue the product of c_i^(2 k_i). Linear features come first only while the largest
    correlation, squared once more, stays below the others: c_1^4 < c_i^2.

    Args:
        correlations: c, one for each latent, between view and sample, in [0, 1).

    Raises:
        InputError: no latent, or a correlation outside [0, 1).

    Source: Mehler's formula for the Ornstein-Uhlenbeck process; checked in the chapter *Views, kernels and the
    augmentation operator*.
    """

    def __init__(self, correlations: npt.ArrayLike) -> None:
        self.correlations = np.atleast_1d(np.asarray(correlations, dtype=float))
        c = self.correlations
        if c.ndim != 1 or not len(c) or not ((c >= 0) & (c < 1)).all():
            raise InputError(f"correlations: wanted numbers in [0, 1), one a latent; given {c.tolist()}")

    def modes(self, count: int) -> tuple[Int[Array, "count latents"], Float[Array, " count"]]:
        """The first eigenfunctions, the constant among them: degrees of their polynomials, and eigenvalues, descending.

        Raises:
            InputError: count below 1.
        """
        if count < 1:
            raise InputError(f"modes wants count >= 1; given {count}")
        c = self.correlations

        def eigenvalue(degrees: tuple[int, ...]) -> float:
            return math.prod(float(x) ** (2 * k) for x, k in zip(c, degrees, strict=True))

        start = (0,) * len(c)
        waiting, seen = [(-1.0, start)], {start}
        found: list[tuple[tuple[int, ...], float]] = []
        while len(found) < count:  # best first: a degree more never raises an eigenvalue
            value, degrees = heapq.heappop(waiting)
            found.append((degrees, -value))
            for i in range(len(c)):
                more = (*degrees[:i], degrees[i] + 1, *degrees[i + 1 :])
                if more not in seen:
                    seen.add(more)
                    heapq.heappush(waiting, (-eigenvalue(more), more))
        degrees_of, values = zip(*found, strict=True)
        return np.array(degrees_of), np.array(values)

    @staticmethod
    def functions(
        latents: Float[Array, "samples latents"], degrees: Int[Array, "functions latents"]
    ) -> Float[Array, "samples functions"]:
        """Products of Hermite polynomials, normalised to mean square 1, at latents of views or of samples."""
        x, k = np.asarray(latents, dtype=float), np.asarray(degrees)
        values = hermite_e.hermevander(x, int(k.max())) / np.sqrt([math.factorial(j) for j in range(k.max() + 1)])
        columns = np.arange(x.shape[1])
        return np.stack([values[:, columns, row].prod(1) for row in k], axis=1)

    def draw(self, count: int, views: int, seed: int = 0) -> Float[Array, "views count latents"]:
        """Latents of `views` views of each of `count` samples.

        Raises:
            InputError: count or views below 1.
        """
        if count < 1 or views < 1:
            raise InputError(f"draw wants count >= 1 and views >= 1; given {count} and {views}")
        random, c = np.random.default_rng(seed), self.correlations
        x = random.standard_normal((count, len(c)))
        return np.asarray(c * x + np.sqrt(1 - c**2) * random.standard_normal((views, count, len(c))))

    def mean_over_views(
        self, f: Callable[[Array], Array], samples: Float[Array, "samples latents"], nodes: int = 20
    ) -> Array:
        """T f (x) = E[f(a) | x] by Gauss-Hermite quadrature: exact for polynomials of degree below 2 nodes a latent.

        Args:
            f: maps latents of views `(n, latents)` to `(n,)` or `(n, functions)`.
            samples: x.
            nodes: per latent; nodes^latents evaluations a sample.
        """
        x, c = np.asarray(samples, dtype=float), self.correlations
        points, weights = hermite_e.hermegauss(nodes)
        grid = np.stack(np.meshgrid(*[points] * len(c), indexing="ij"), -1).reshape(-1, len(c))
        shares = reduce(np.multiply.outer, [weights / weights.sum()] * len(c)).ravel()
        views = c * x[:, None] + np.sqrt(1 - c**2) * grid
        values = np.asarray(f(views.reshape(-1, len(c))))
        return np.asarray(np.einsum("g,xg...->x...", shares, values.reshape(len(x), len(grid), *values.shape[1:])))
