"""What to set for images of one's own: records and theory turned into numbers, each with its reason.

    advice = recommend(images=20_000, size=32, budget=3600, runs=records.read_all(), views_per_second=2_000)
    print(advice)                       # a line for each setting: value, how sure, why
    PretrainConfig(data="photos/", **advice.settings)

The rules are those of the chapter *Choosing d, lambda, views and epochs*. What was measured is read on the validation
images, mean over seeds; test images are not looked at. A difference below 0.25 points decides nothing: the cheaper
setting wins. Arms with fewer seeds than others, up to three, are left out.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from ncssl_core import claims
from ncssl_core.base import InputError
from ncssl_core.linear_ssl import canonical, view_features
from ncssl_core.pretrain import Run
from ncssl_core.theory import optima

if TYPE_CHECKING:
    import pandas as pd

Sure = Literal["measured", "theory", "published", "not measured"]
TIE = 0.25  # points
LONGEST = 1_000  # epochs: as long as published runs on CIFAR-10 are


@dataclass(frozen=True)
class Choice:
    """One setting: its value, what it rests on, and why."""

    name: str
    value: float | str
    sure: Sure
    why: str

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        why = textwrap.fill(self.why, 78, initial_indent="    ", subsequent_indent="    ")
        return f"{self.name} {value}, {self.sure}\n{why}"


@dataclass(frozen=True)
class Advice:
    """The choices, and the records they were made from in a sentence."""

    choices: tuple[Choice, ...]
    rests: str

    @property
    def settings(self) -> dict[str, Any]:
        """The choices as arguments of `PretrainConfig`."""
        return {c.name: c.value for c in self.choices if c.name != "lambd"}

    @property
    def flags(self) -> str:
        """The choices as flags of `ncssl pretrain`."""
        return " ".join(f"--{name} {value:.6g}" if isinstance(value, float) else f"--{name} {value}"
                        for name, value in self.settings.items())  # fmt: skip

    def __getitem__(self, name: str) -> Choice:
        return next(c for c in self.choices if c.name == name)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.choices), textwrap.fill(self.rests, 82)])


def recommend(
    images: int,
    size: int,
    budget: float,
    runs: Mapping[str, Mapping[str, Any]],
    views_per_second: float,
    backbone: str = "tiny",
    spectrum: Float[np.ndarray, " modes"] | None = None,
) -> Advice:
    """Loss, width, weight, views, batch and epochs for a set of images and a time.

    Args:
        images: how many there are to pretrain on.
        size: side of the views, pixels.
        budget: seconds of training.
        runs: records by name, as `records.read_all` gives them; may be none.
        views_per_second: how fast this machine trains the backbone on views of this size.
        backbone: what is to be trained.
        spectrum: eigenvalues that a pilot run found on these images, as `pilot_spectrum` does; descending.

    Raises:
        InputError: fewer than 8 images, a size below 8, a budget or speed that is not positive.
    """
    check(images, size, budget, views_per_second)
    known = _Known.near(runs, backbone, size, images)
    batch = min(128, 2 ** int(math.log2(images / 4)))
    cell, line = _best_cell(known, budget * views_per_second)
    if line and all(r.accuracy == -math.inf for r in line.values()):
        short = " The time ends before their first measurement: what was best then is a guess at what is best sooner."
        known = replace(known, sure="not measured", says=known.says + short)
    dim, kappa = _dim(known, cell), _kappa(known, cell)
    if spectrum is not None:
        dim, kappa = _by_spectrum(np.asarray(spectrum, float), dim, kappa)
    views = _views(known, cell, line)
    epochs = _epochs(known, images, batch, int(views.value), budget * views_per_second)
    lambd = Choice("lambd", float(kappa.value) / int(dim.value), kappa.sure, "kappa / dim")
    reason = "a quarter of the images at most"
    if batch == 128:
        reason = "the usual one here" if known.whole.empty else "as in the records, which compare no other"
    elif batch < 32:
        reason += "; over so few images features correlate by chance, and the loss pushes against that in vain"
    choices = (_loss(known), dim, kappa, lambd, views, Choice("batch", batch, "not measured", reason), epochs)
    return Advice(choices, known.says)


def check(images: int, size: int, budget: float, views_per_second: float = 1.0) -> None:
    """Refuse a question that has no answer.

    Raises:
        InputError: fewer than 8 images, a size below 8, a budget or speed that is not positive.
    """
    for name, given, least in (("images", images, 8), ("size", size, 8)):
        if given < least:
            raise InputError(f"{name} is at least {least}; given {given}")
    for name, number in (("budget", budget), ("views_per_second", views_per_second)):
        if not 0 < number < math.inf:
            raise InputError(f"{name} is a positive number; given {number}")


@dataclass(frozen=True)
class _Known:
    """The records of the setting nearest to what is asked, and whether it is what is asked."""

    whole: pd.DataFrame  # arms on all images, where weight and width were varied
    curves: pd.DataFrame  # of arms on as many images as is nearest to the asked number
    sure: Sure
    says: str

    @classmethod
    def near(cls, runs: Mapping[str, Mapping[str, Any]], backbone: str, size: int, images: int) -> _Known:
        import pandas as pd

        arms, curves = (f[f.pairing.isin(["", "leave-one-out"])] if len(f) else pd.DataFrame()
                        for f in (claims.arms(runs), claims.curves(runs)))  # fmt: skip
        if arms.empty:
            return cls(arms, curves, "not measured", "There are no records; `ncssl sweep` makes them.")
        sizes = {(r["data"]["name"], r["config"]["backbone"]): int(r["size"]) for r in runs.values()}
        count = arms.groupby(["data", "backbone"]).seeds.sum()
        data, network = min(
            count.index, key=lambda cell: (cell[1] != backbone, abs(math.log(sizes[cell] / size)), -count[cell])
        )
        arms, curves = (f[(f.data == data) & (f.backbone == network)] for f in (arms, curves))
        counts = sorted(arms.images.unique())
        curves = curves[curves.images == min(counts, key=lambda n: abs(math.log(n / images)))]
        apart = {
            f"{network}, not {backbone}": network != backbone,
            f"{sizes[data, network]} pixels, not {size}": sizes[data, network] != size,
            f"{counts[0]} to {counts[-1]} images, not {images}": not counts[0] / 1.5 <= images <= 1.5 * counts[-1],
        }
        other = [text for text, so in apart.items() if so]
        says = (f"Records: {count[data, network]} runs of {network} on {data}, {sizes[data, network]} pixels, "
                f"{counts[0]} to {counts[-1]} images.")  # fmt: skip
        if other:
            says += f" They are of {'; of '.join(other)}: for that nothing is measured, and the numbers are a guide."
        return cls(arms[arms.images == counts[-1]], curves, "not measured" if other else "measured", says)


def _two_views(known: _Known, loss: str = "barlow_twins") -> pd.DataFrame:
    """The arms over widths and weights with two views of all images, kappa up to 10, of one length and seeds enough."""
    arms = known.whole
    if arms.empty:
        return arms
    arms = arms[(arms.views == 2) & (arms.loss == loss) & (arms.kappa <= 10)]
    arms = arms[arms.epochs == arms.epochs.mode().max()] if len(arms) else arms
    return arms[arms.seeds >= min(arms.seeds.max(), claims.SEEDS)] if len(arms) else arms


def _loss(known: _Known) -> Choice:
    best = {name: arms.validation.max() for name in ("barlow_twins", "vicreg") if len(arms := _two_views(known, name))}
    if len(best) < 2:
        return Choice("loss", "barlow_twins", "not measured", "no records of both losses")
    why = f"best {best['barlow_twins']:.1f} with Barlow Twins, {best['vicreg']:.1f} with VICReg"
    if best["vicreg"] > best["barlow_twins"] + TIE:
        return Choice("loss", "barlow_twins", "not measured", f"{why}, but what follows is for Barlow Twins")
    return Choice("loss", "barlow_twins", known.sure, why)


Cell = tuple[int, float, int]  # dim, kappa, views


@dataclass(frozen=True)
class Reached:
    """A cell's validation accuracy after a time, or where records end if that is sooner, and whether its own do."""

    accuracy: float
    ended: bool


def best_cell(
    runs: Mapping[str, Mapping[str, Any]], images: int, size: int, affordable: float, backbone: str = "tiny"
) -> tuple[Cell | None, dict[Cell, Reached]]:
    """The (dim, kappa, views) that `recommend` takes from records, and what every cell of them had reached by then.

    Args:
        runs: records by name.
        images: how many there are to pretrain on.
        size: side of the views, pixels.
        affordable: how many views the time allows.
        backbone: what is to be trained.
    """
    return _best_cell(_Known.near(runs, backbone, size, images), affordable)


def _best_cell(known: _Known, affordable: float) -> tuple[Cell | None, dict[Cell, Reached]]:
    """The cheapest of the cells whose curve is within `TIE` of the highest after the time, and what each reached.

    Cells that differ in views alone are read where the first of their curves ends, if that is sooner: else the one with
    longer records would win by their length. Where the time ends before any curve begins, the cell is the best of those
    that were measured first.
    The time is that of `affordable` views. What a wide projector or more views make of a view's cost, is taken from
    the least seconds of the records.
    """
    curves = known.curves
    if len(curves):
        curves = curves[(curves.loss == "barlow_twins") & (curves.kappa <= 10)]
        curves = curves[curves.seeds >= min(curves.seeds.max(), claims.SEEDS)]
    reached: dict[Cell, Reached] = {}
    if curves.empty:
        return None, reached
    cost = curves.seconds / curves.views_seen
    cost = cost.groupby([curves.dim, curves.views]).min()  # the least: other work on a machine only adds
    dear = cost / cost.median()  # a view's cost, the usual one being 1
    lines, ends = {}, {}
    for (dim, kappa, views), part in curves.groupby(["dim", "kappa", "views"]):
        cell = int(dim), float(kappa), int(views)
        lines[cell] = part[part.epochs == part.epochs.max()].sort_values("views_seen")
        ends[cell] = float(dear[dim, views]) * float(lines[cell].views_seen.max())
    for cell, line in lines.items():
        shared = min(end for other, end in ends.items() if other[:2] == cell[:2])
        seen = min(affordable, shared) / float(dear[cell[0], cell[2]])
        accuracy = float(np.interp(seen, line.views_seen, line.validation, left=-math.inf))  # not yet begun
        reached[cell] = Reached(accuracy, affordable > ends[cell])
    best = max(r.accuracy for r in reached.values())
    if best == -math.inf:
        first = curves[curves.epoch == curves.epoch.min()].groupby(["dim", "kappa", "views"]).validation.max()
        dim, kappa, views = first.idxmax()
        return (int(dim), float(kappa), int(views)), reached
    good = [cell for cell, r in reached.items() if r.accuracy >= best - TIE]
    return min(good, key=lambda c: (c[2], c[0], -reached[c].accuracy)), reached


def _kappa(known: _Known, cell: Cell | None) -> Choice:
    if cell is None:
        return Choice("kappa", 5.12, "published", "the paper's weights keep kappa = lambd dim within 1.6 to 6.6")
    arms = _two_views(known)
    mean = arms[arms.dim.map(arms.groupby("dim").kappa.nunique()) > 1].groupby("kappa").validation.mean()
    why = f"mean over widths, two views: {', '.join(f'{y:.1f} at {k:.3g}' for k, y in mean.items())}"
    if len(mean) and cell[1] >= mean.index.max():
        why += "; larger was not measured"
    return Choice("kappa", cell[1], known.sure, why)


def _dim(known: _Known, cell: Cell | None) -> Choice:
    if cell is None:
        return Choice("dim", 256, "theory", "with enough weight a width of 256 holds every mode that views agree on")
    arms = _two_views(known)
    by_width = arms[arms.kappa == cell[1]].groupby("dim").validation.max()
    why = f"at that kappa, two views: {', '.join(f'{y:.1f} at {d:g}' for d, y in by_width.items())}"
    return Choice("dim", cell[0], known.sure, why)


def _by_spectrum(spectrum: Float[np.ndarray, " modes"], dim: Choice, kappa: Choice) -> tuple[Choice, Choice]:
    """Width and weight by the thresholds of the chapter on orthogonality, from what views of these images agree on.

    Worth holding are modes whose views agree more than they differ, an eigenvalue above 1/2. The weight is raised, up
    to 10, until the minimum of the loss holds them; the width is the next power of two that has room for what it holds,
    and not below what the records say, since a short pilot finds only the first modes.
    """
    values = np.sort(spectrum[(spectrum > 0) & (spectrum < 1)])[::-1]
    worth = max(int((values > 0.5).sum()), 1)

    def held(weight: float, width: int = 1024) -> int:
        return optima.barlow_twins(values, width, weight / width).rank

    weight = float(kappa.value)
    while held(weight) < worth and weight < 10:
        weight = min(1.25 * weight, 10.0)
    modes = held(weight)
    width = max(2 ** math.ceil(math.log2(modes)), int(dim.value))
    why = f"the pilot's views agree on {worth} modes by more than half; at this weight the loss holds {modes}"
    room = Choice("dim", width, dim.sure, f"{why}, for which there is room; {dim.why}")
    if width > int(dim.value):
        room = Choice("dim", width, "theory", f"{why}, and needs as many features; records alone say {dim.value}")
    if weight > float(kappa.value):
        return room, Choice("kappa", weight, "theory", f"{why}; records alone say {kappa.value}")
    return room, Choice("kappa", weight, kappa.sure, f"{why}; {kappa.why}")


def _views(known: _Known, cell: Cell | None, reached: Mapping[Cell, Reached]) -> Choice:
    if cell is None:
        return Choice("views", 4, "theory", "more views estimate the same loss with less noise; records of them lack")
    alike = {c[2]: r for c, r in reached.items() if c[:2] == cell[:2]}
    begun = {m: r for m, r in sorted(alike.items()) if r.accuracy > -math.inf}
    if not begun:
        return Choice("views", cell[2], "not measured", "the records' first measurement comes later")
    why = f"in that time {', '.join(f'{r.accuracy:.1f} with {m}' for m, r in begun.items())}"
    if late := [str(m) for m in sorted(alike) if m not in begun]:
        why += f"; with {' and '.join(late)} the first measurement comes later"
    ended = [str(m) for m, r in sorted(alike.items()) if r.ended]
    if ended:
        why += f"; records with {' and '.join(ended)} end sooner, and where the first of them ends all are compared"
    fewer_ended = any(r.ended for m, r in alike.items() if m <= cell[2])
    return Choice("views", cell[2], "not measured" if fewer_ended else known.sure, why)


def _epochs(known: _Known, images: int, batch: int, views: int, affordable: float) -> Choice:
    """As many as the time allows, up to what the field has tried."""
    exact = affordable / (images * views)
    chosen = max(1, min(int(exact), LONGEST))
    why = f"{'the time allows' if exact >= 1 else 'the time allows less than one:'} {exact:.3g}"
    if exact > LONGEST:
        why += f", published runs end at {LONGEST}"
    steps, curves = chosen * (images // batch), known.curves
    longest = int(curves[curves.views == views].steps.max()) if len(curves) and (curves.views == views).any() else 0
    beyond = steps > longest
    if not longest:
        why += f"; no records with {views} views"
    elif beyond:
        why += f"; {steps} steps, and records with {views} views end at {longest}: what more brings is not measured"
    return Choice("epochs", chosen, "not measured" if beyond else known.sure, why)


def pilot_spectrum(run: Run, images: int = 4_000, components: int = 128) -> Float[np.ndarray, " modes"]:
    """What views of a run's images agree on, as far as linear maps of its representation can tell; descending.

    Canonical directions are found on half of the images and their correlations between two views measured on the other
    half, so that chance agreement does not count.

    Args:
        run: a finished run, as `load_run` gives it; a few minutes of training will do.
        images: at most so many of its images to pretrain on.
        components: at most so many principal components of the representation.

    Raises:
        InputError: fewer than 64 images.
    """
    pool = run.splits[0].images[:images]
    if len(pool) < 64:
        raise InputError(f"a pilot's spectrum wants at least 64 images; given {len(pool)}")
    with torch.no_grad():
        views = view_features(run.backbone.eval(), pool.to(run.device), run.size, run.recipe).float().cpu()
    half = len(pool) // 2
    modes = canonical(views[:, :half], min(components, views.shape[-1], half // 4))
    first, second = (modes(v) for v in views[:, half:])
    first, second = (v - v.mean(0) for v in (first, second))
    agreement = (first * second).mean(0) / ((first.square() + second.square()).mean(0) / 2)
    return np.sort(agreement.double().numpy())[::-1].copy()
