"""The six claims of arXiv:2312.10725 (version 1, abstract), each a computation over records.

    for verdict in ledger(records.read_all("results")):
        print(verdict.claim, verdict.data, verdict.verdict, verdict.says)

A cell is (claim, loss, image set, backbone); no cell fills another's. Within one, runs are compared only where all else
is equal: images, epochs, batch, recipe, optimiser, precision, validation split. Where several such settings were run,
the one that decides speaks, then the longest, then the one with the most images and runs.

The thresholds were set before any run; the F test, the pairing and what counts as a like setting were settled while
the first records at CPU scale came in. Accuracy is the linear probe's on the test images at the last epoch, in points,
a mean over at least 3 seeds; what is tuned, and every curve over epochs or seconds, is read on the validation images.
"Higher", "lower" and "better" ask for a difference of more than twice its standard error (over a whole grid: for an
F test at 1 %); "no worse than 0.5 below" is read off the means. kappa is lambd dim for Barlow Twins, cov_coeff dim /
sim_coeff for VICReg. More than two views are paired leave-one-out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import f as f_distribution

from ncssl_core import records

if TYPE_CHECKING:
    import pandas as pd

CLAIMS = {
    "C1": "Orthogonality of the features matters more than the projector's dimension",
    "C2": "Low-dimensional projectors suffice with the right weight, against the heuristic of 8192",
    "C3": "More views of each image learn better features, earlier",
    "C4": "With more views, up to 4x fewer images reach the same accuracy",
    "C5": "The recommendations together halve the wall-clock time",
    "C6": "The recommendations together raise the accuracy",
}
RULES = {
    "C1": "over the (d, weight) grid at kappa <= 10, where its cells differ (F test at 1 %), an isotonic fit on kappa "
    "explains at least 80 % of the variance of accuracy and at least twice what one on d explains; contradicted if d "
    "explains more",
    "C2": "the best tuned d <= 256 is no worse than 0.5 below the best tuned d = 8192, and 0.5 below d = 8192 with the "
    "heuristic weight; contradicted if more than 2 below the tuned one",
    "C3": "4 or 8 views reach 2 views' last accuracy in at most 75 % of the epochs and in no more seconds, and end at "
    "least 0.5 higher at equal epochs; contradicted if they end lower",
    "C4": "8 views of a quarter of the images (4x), or 4 views of half (2x), are no worse than 0.5 below 2 views of "
    "all, and higher than 2 views of as few images; contradicted if in no pair they are told apart from those",
    "C5": "d = 256 with 4 views reaches the last accuracy of d = 8192 with 2 views and the heuristic weight in at most "
    "half its seconds on the same device; contradicted if it takes more than 1/1.2 of them",
    "C6": "d = 256 with 4 views ends at least 0.5 higher than d = 8192 with 2 views and the heuristic weight; "
    "contradicted if at least 0.5 lower",
}
NAMES = {"barlow_twins": "Barlow Twins", "vicreg": "VICReg", "resnet50": "ResNet-50"}  # what a reader calls them
Word = Literal["supported", "contradicted", "mixed", "too few seeds", "not yet measured"]
SEEDS = 3
SMALL, RECOMMENDED, HEURISTIC = 256, 256, 8192  # widths of the projector
_PAPER = [(loss, data, "resnet50") for data in ("CIFAR-10", "STL-10") for loss in ("barlow_twins", "vicreg")]
_SETTING = ("image_size", "validation", "stem", "hidden", "layers", "epochs", "batch", "optimizer", "lr",
            "weight_decay", "schedule", "warmup")  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim in a cell.

    `says` is a sentence with the numbers; `effect` the number that the rule is about, in `unit`; `spread` the largest
    standard deviation over seeds among what is compared, in points; `seeds` the fewest; `epochs` the runs' length;
    `images` how many are all; `runs` the runs' names.
    """

    claim: str
    loss: str
    data: str
    backbone: str
    verdict: Word
    says: str
    effect: float | None = None
    unit: str = ""
    spread: float | None = None
    seeds: int = 0
    epochs: int | None = None
    images: int | None = None
    runs: tuple[str, ...] = ()

    @property
    def cell(self) -> str:
        """Backbone, image set and loss, in words."""
        return f"{NAMES.get(self.backbone, self.backbone)}, {self.data}, {NAMES.get(self.loss, self.loss)}"

    @property
    def rests(self) -> str:
        """What it rests on, in words."""
        spread = f", largest s.d. {self.spread:.1f}" if self.spread is not None else ""
        return (
            f"{len(self.runs)} runs of {self.epochs} epochs on {self.images} images, {self.seeds} seeds or more{spread}"
        )


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone: (name, record) of each."""

    dim: int
    kappa: float
    heuristic: bool  # the heuristic weight of the paper: lambd 0.0004, or 750 in VICReg
    views: int
    share: float  # of the images of what it is compared with
    runs: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def seeds(self) -> int:
        """How many seeds were run."""
        return len(self.runs)

    @property
    def accuracies(self) -> list[float]:
        """Linear probe on the test images, of each seed."""
        return [r["probe"]["trained"]["linear"] for _, r in self.runs]

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return fmean(self.accuracies)

    @property
    def sd(self) -> float:
        """Standard deviation of the accuracy over seeds; 0 for one seed."""
        return stdev(self.accuracies) if self.seeds > 1 else 0.0

    @property
    def seconds(self) -> list[float]:
        """Seconds of training, without evaluation, of each seed."""
        return [r["time"]["training_seconds"] for _, r in self.runs]

    @property
    def validation(self) -> float:
        """Mean accuracy on the validation images at the last epoch: what tuning goes by."""
        return fmean(r["curves"]["evaluation_linear"][-1] for _, r in self.runs)

    @property
    def hardware(self) -> set[str]:
        """What the seeds ran on, and how; seconds compare only where that is one and the same."""
        return {_hardware(r) for _, r in self.runs}

    def curve(self) -> tuple[list[float], list[float], list[float]]:
        """(epochs, training seconds, validation accuracy) where every seed was evaluated, means over seeds."""
        points = [list(zip(*(r["curves"][c] for c in records.COMPARED), strict=True)) for _, r in self.runs]
        shared = set.intersection(*({p[0] for p in run} for run in points))
        kept = [[p for p in run if p[0] in shared] for run in points]
        epochs, seconds, accuracy = ([fmean(p[k] for p in same) for same in zip(*kept, strict=True)] for k in range(3))
        return epochs, seconds, accuracy


def _hardware(record: Mapping[str, Any]) -> str:
    """What a run ran on, and how."""
    processor = ("processor", "threads") if record["environment"]["device"] == "cpu" else ()
    names = ("device", "processes", *processor, "earlier", "precision")
    return json.dumps([*(record["environment"].get(k) or None for k in names), record["config"].get("compile")])


Runs = Mapping[str, Mapping[str, Any]]  # name -> record


def ledger(runs: Runs) -> list[Verdict]:
    """Every claim in every cell of the paper, and in every other that has records; `runs` maps names to records."""
    settings, verdicts = _settings(runs), []
    cells = dict.fromkeys([*_PAPER, *(cell for cell, _ in settings)])
    for claim, rule in _RULES.items():
        for cell in cells:
            blank = Verdict(claim, *cell, "not yet measured", "no record")
            found = [_judge(rule, blank, group, images) for (c, _), group in settings.items() if c == cell
                     for images in sorted({r["data"]["images"] for r in group.values()})]  # fmt: skip
            verdicts.append(max(found, key=_weight, default=blank))
    return verdicts


def _weight(v: Verdict) -> tuple[int, int, int, int]:
    """Which of several verdicts on a cell speaks: one that decides, then the longest, most images, most runs."""
    return {"not yet measured": 0, "too few seeds": 1}.get(v.verdict, 2), v.epochs or 0, v.images or 0, len(v.runs)


def _settings(runs: Runs) -> dict[tuple[tuple[str, str, str], str], Runs]:
    """Runs that were probed, by cell (loss, image set, backbone) and by all that must be equal to compare them."""
    found: dict[tuple[tuple[str, str, str], str], dict[str, Any]] = {}
    for name, record in sorted(runs.items()):
        config, curve = record["config"], [record["curves"].get(column, []) for column in records.COMPARED]
        probed = "linear" in record.get("probe", {}).get("trained", {}) and all(curve)
        if probed and curve[0][-1] == config["epochs"] and not record["model"].get("custom"):
            cell = (config["loss"], record["data"]["name"], config["backbone"])
            others = [record["data"].get("checksum"), record["environment"].get("precision"), record["size"]]
            recipe = {k: _rounded(v) for k, v in record["recipe"].items()}
            same = json.dumps([*others, recipe, *(config.get(k) for k in _SETTING)])
            found.setdefault((cell, same), {})[name] = record
    return dict(found)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value if isinstance(value, bool | str) else round(value, 4)


def arms(runs: Runs) -> pd.DataFrame:
    """One row an arm (runs that differ in their seed alone): what it is, and mean and spread of what it reached.

    Accuracies in percent, `seconds` of training without evaluation; `sd` and `seconds_sd` over seeds, NaN for one.
    """
    import pandas as pd

    rows = []
    for ((loss, data, backbone), _), group in _settings(runs).items():
        for arm, pairing in _arms(group):
            (_, first), *_ = arm.runs
            knn = [r["probe"]["trained"].get("knn", math.nan) for _, r in arm.runs]
            rows.append({
                "data": data, "backbone": backbone, "loss": loss, "epochs": first["config"]["epochs"],
                "batch": first["config"]["batch"], "images": first["data"]["images"], "views": arm.views,
                "pairing": pairing, "dim": arm.dim, "kappa": arm.kappa, "seeds": arm.seeds, "linear": arm.mean,
                "sd": arm.sd if arm.seeds > 1 else math.nan, "validation": arm.validation, "knn": fmean(knn),
                "seconds": fmean(arm.seconds), "seconds_sd": stdev(arm.seconds) if arm.seeds > 1 else math.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def apart(a: pd.Series, b: pd.Series) -> str:
    """How far apart two rows of `arms` are on the test images; in words, where both have seeds enough."""
    difference, fewest = a.linear - b.linear, min(a.seeds, b.seeds)
    if fewest < SEEDS:
        return f"{difference:+.1f} points ({fewest} of {SEEDS} seeds: no verdict)"
    noise = 2 * math.sqrt(a.sd**2 / a.seeds + b.sd**2 / b.seeds)
    word = "higher" if difference > noise else "lower" if -difference > noise else "not told apart"
    return f"{difference:+.1f} points (2 s.e. {noise:.1f}), {word}"


def curves(runs: Runs) -> pd.DataFrame:
    """One row an arm and evaluation on the way: what had been spent by then, and the validation accuracy in points.

    The columns that say which arm are those of `arms`, and `device`; `epoch`, `steps`, `views_seen` and `seconds` (of
    training, mean over seeds) say how far; `validation` and `spread` are mean and standard deviation over its seeds.
    Seconds compare only within a device.
    """
    import pandas as pd

    rows = []
    for ((loss, data, backbone), _), group in _settings(runs).items():
        for arm, pairing in _arms(group):
            (_, first), *_ = arm.runs
            batch, images = first["config"]["batch"], first["data"]["images"]
            same = {
                "data": data, "backbone": backbone, "loss": loss, "epochs": first["config"]["epochs"], "batch": batch,
                "images": images, "views": arm.views, "pairing": pairing, "dim": arm.dim, "kappa": arm.kappa,
                "seeds": arm.seeds, "device": "; ".join(sorted(arm.hardware)),
            }  # fmt: skip
            for epoch, seconds, *values in zip(*arm.curve()[:2], *_by_seed(arm), strict=True):
                steps = round(epoch * (images // batch))
                rows.append({
                    **same, "epoch": epoch, "steps": steps, "views_seen": steps * batch * arm.views,
                    "seconds": seconds, "validation": fmean(values),
                    "spread": stdev(values) if len(values) > 1 else math.nan,
                })  # fmt: skip
    return pd.DataFrame(rows)


def paces(runs: Runs) -> pd.DataFrame:
    """One row a run: the seconds of a training step, and `slower`, as a multiple of the fastest run of like steps.

    Steps are like where backbone, projector, loss, views, batch and size are equal, and the hardware: they are the same
    work, but for the recipe, so that what `slower` has above 1 is the machine's load and what the package has gained in
    speed since: it says how well seconds are known. `alike` is the number of such runs.
    """
    import pandas as pd

    work = ["backbone", "loss", "dim", "views", "batch", "stem", "hidden", "layers"]
    rows = [{"data": r["data"]["name"], **{k: r["config"].get(k) for k in work}, "size": r["size"],
             "hardware": _hardware(r), "step": r["config"]["batch"] / r["time"]["images_per_second"]}
            for r in runs.values() if r["time"]["images_per_second"] > 0]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["data", *work, "size", "hardware", "step"])
    like = frame.groupby([*work, "size", "hardware"], dropna=False).step
    return frame.assign(slower=frame.step / like.transform("min"), alike=like.transform("size"))


def _by_seed(arm: Arm) -> list[list[float]]:
    """Validation accuracies of each seed at the epochs of `arm.curve()`."""
    shared = set(arm.curve()[0])
    columns = ("evaluation_epoch", "evaluation_linear")
    points = [zip(*(r["curves"][c] for c in columns), strict=True) for _, r in arm.runs]
    return [[y for epoch, y in run if epoch in shared] for run in points]


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The ledger as a table, one column a cell that has records, and below it what each verdict rests on."""
    columns = list(dict.fromkeys(v.cell for v in verdicts if v.epochs))
    bare = dict.fromkeys(v.cell for v in verdicts if v.cell not in columns)
    lines = ["| claim | " + "".join(f"{c} | " for c in columns), "| --- " * (len(columns) + 1) + "|"]
    for claim, text in CLAIMS.items():
        words = {v.cell: v.verdict for v in verdicts if v.claim == claim}
        lines.append(f"| {claim} {text} | " + "".join(f"{words.get(c, '')} | " for c in columns))
    lines = [line.rstrip() for line in lines]
    lines += ["", f"Without any record yet: {'; '.join(bare)}."] if bare else []
    lines += [""]
    for v in verdicts:
        if v.runs:
            lines.append(f"- **{v.claim}, {v.cell}: {v.verdict}.** {v.says} ({v.rests}).")
    return "\n".join(lines)


def _judge(rule: Rule, blank: Verdict, runs: Runs, images: int) -> Verdict:
    """One claim on the runs of one setting, those on `images` images being the ones that had all."""
    comparable = [replace(arm, share=round(arm.share / images, 2)) for arm, pairing in _arms(runs)
                  if arm.share <= images and pairing in ("", "leave-one-out")]  # fmt: skip
    finding = rule(comparable)
    epochs = next(iter(runs.values()))["config"]["epochs"]
    return replace(
        blank, verdict=finding.verdict, says=finding.says, effect=finding.effect, unit=finding.unit,
        spread=max((a.sd for a in finding.arms if a.seeds > 1), default=None), images=images, epochs=epochs,
        seeds=min((a.seeds for a in finding.arms), default=0),
        runs=tuple(sorted({name for arm in finding.arms for name, _ in arm.runs})),
    )  # fmt: skip


def _arms(runs: Runs) -> list[tuple[Arm, str]]:
    """The runs grouped by all but the seed, one for each seed, with the pairing; `share` is their number of images."""
    groups: dict[tuple[Any, ...], dict[int, tuple[str, Mapping[str, Any]]]] = {}
    for name, record in sorted(runs.items()):
        c = record["config"]
        heuristic = c["sim_coeff"] == 750 if c["loss"] == "vicreg" else c["lambd"] == 0.0004
        pairing = c["pairing"] if c["views"] > 2 and c["loss"] == "barlow_twins" else ""
        weight = float(f"{records.kappa(c):.6g}")
        coefficients = (c["sim_coeff"], c["std_coeff"], c["cov_coeff"]) if c["loss"] == "vicreg" else ()
        key = (c["dim"], weight, heuristic, c["views"], record["data"]["images"], pairing, coefficients)
        groups.setdefault(key, {}).setdefault(c["seed"], (name, record))
    return [(Arm(k[0], k[1], k[2], k[3], k[4], tuple(group.values())), k[5]) for k, group in sorted(groups.items())]


# ---- the rules --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a rule says, and the arms it rests on."""

    verdict: Word
    says: str
    arms: Sequence[Arm] = ()
    effect: float | None = None
    unit: str = "points"


Rule = Callable[[list[Arm]], Finding]


def _missing(what: str) -> Finding:
    return Finding("not yet measured", f"no record of {what}")


def _few(arms: Sequence[Arm]) -> Finding:
    """Too few seeds, with the single values as what they are."""
    shown = "; ".join(f"d={a.dim}, kappa {a.kappa:.2g}, {a.views} views: {a.mean:.1f}" for a in arms[:4])
    return Finding("too few seeds", f"fewest seeds {min(a.seeds for a in arms)} of {SEEDS} ({shown})", arms)


def _difference(a: Arm, b: Arm) -> tuple[float, float]:
    """(a - b in points, twice its standard error)."""
    return a.mean - b.mean, 2 * math.sqrt(a.sd**2 / a.seeds + b.sd**2 / b.seeds)


def _higher(a: Arm, b: Arm, by: float = 0.0) -> bool:
    """Whether a ends at least `by` higher than b, by more than noise."""
    difference, noise = _difference(a, b)
    return difference >= by and difference > noise


def _tuned(arms: Iterable[Arm]) -> Arm | None:
    """The arm that the validation images choose, among those with enough seeds if there are any."""
    return max(arms, key=lambda a: (a.seeds >= SEEDS, a.validation), default=None)


def _small_width(arms: list[Arm]) -> list[Arm]:
    """The arms of one width: of those up to 256 that were run with the most kinds of views and shares, the largest."""
    kinds: dict[int, set[tuple[int, float]]] = {}
    for arm in arms:
        if arm.dim <= SMALL:
            kinds.setdefault(arm.dim, set()).add((arm.views, arm.share))
    width = max(kinds, key=lambda d: (len(kinds[d]), d), default=None)
    return [a for a in arms if a.dim == width]


def _c1(arms: list[Arm]) -> Finding:
    grid = _crossed([a for a in arms if a.views == 2 and a.share == 1 and a.kappa <= 10])
    if not grid:
        return _missing("a grid of at least 2 widths by 3 values of kappa")
    enough = _crossed([a for a in grid if a.seeds >= SEEDS])
    if not enough:
        return _few(sorted(grid, key=lambda a: a.seeds))
    accuracy = np.array([a.mean for a in enough])
    by_kappa, by_width = (explained(np.array(x), accuracy)
                          for x in ([a.kappa for a in enough], [a.dim for a in enough]))  # fmt: skip
    best, worst = max(enough, key=lambda a: a.mean), min(enough, key=lambda a: a.mean)
    says = (f"kappa explains {100 * by_kappa:.0f} % of the variance of accuracy over {len(enough)} cells, d "
            f"{100 * by_width:.0f} %; accuracies from {worst.mean:.1f} to {best.mean:.1f}")  # fmt: skip
    if not _differ(enough):
        return Finding("mixed", f"the cells differ by no more than noise; {says}", enough, by_kappa, "of variance")
    word: Word = "mixed"
    if by_width > by_kappa:
        word = "contradicted"
    elif by_kappa >= 0.8 and by_kappa >= 2 * by_width:
        word = "supported"
    return Finding(word, says, enough, by_kappa, "of variance")


def _crossed(grid: list[Arm]) -> list[Arm]:
    """The arms whose kappa was run at 2 widths or more; none if there are not 2 widths that share 3 such values."""
    kappas: dict[int, set[float]] = {}
    for arm in grid:
        kappas.setdefault(arm.dim, set()).add(arm.kappa)
    shared = {k for d, a in kappas.items() for e, b in kappas.items() if d < e for k in a & b}
    enough = any(len(a & b) >= 3 for d, a in kappas.items() for e, b in kappas.items() if d < e)
    return [a for a in grid if a.kappa in shared] if enough else []


def _differ(cells: list[Arm]) -> bool:
    """Whether the cells differ by more than their seeds do: a one-way analysis of variance at 1 %."""
    values = [a.accuracies for a in cells]
    overall = fmean(x for v in values for x in v)
    between = sum(len(v) * (fmean(v) - overall) ** 2 for v in values) / (len(values) - 1)
    freedom = sum(len(v) - 1 for v in values)
    within = sum((x - fmean(v)) ** 2 for v in values for x in v) / freedom
    return between > within * float(f_distribution.isf(0.01, len(values) - 1, freedom))


def explained(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Share of the variance of y that the better of a rising and a falling fit on x explains, equal x pooled."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(place, y) / counts
    fits = [isotonic_regression(means, weights=counts, increasing=up).x for up in (True, False)]
    total = ((y - y.mean()) ** 2).sum()
    return float(max(1 - ((y - fit[place]) ** 2).sum() / total for fit in fits)) if total > 0 else 0.0


def _c2(arms: list[Arm]) -> Finding:
    plain = [a for a in arms if a.views == 2 and a.share == 1]
    wide = [a for a in plain if a.dim == HEURISTIC]
    small, tuned = _tuned(a for a in plain if a.dim <= SMALL), _tuned(wide)
    heuristic = next((a for a in wide if a.heuristic), None)
    if small is None:
        return _missing(f"d <= {SMALL}")
    if tuned is None or heuristic is None or len(wide) < 2:
        return _missing(f"d = {HEURISTIC} with the heuristic weight and another")
    compared = (small, tuned, heuristic)
    if min(a.seeds for a in compared) < SEEDS or all(a.heuristic or a.seeds < SEEDS for a in wide):
        return _few([small, *wide])
    (to_tuned, noise), (to_heuristic, _) = _difference(small, tuned), _difference(small, heuristic)
    tried = sum(a.dim <= SMALL for a in plain)
    says = (f"d={small.dim} (kappa {small.kappa:.2g}, best of {tried}) {small.mean:.1f}; d={HEURISTIC} tuned (kappa "
            f"{tuned.kappa:.2g}, best of {len(wide)}) {tuned.mean:.1f}, heuristic {heuristic.mean:.1f}")  # fmt: skip
    word: Word = "mixed"
    if to_tuned >= -0.5 and to_heuristic >= -0.5:
        word = "supported"
    elif to_tuned < -2 and -to_tuned > noise:
        word = "contradicted"
    return Finding(word, says, compared, to_tuned)


def _c3(arms: list[Arm]) -> Finding:
    whole = [a for a in _small_width(arms) if a.share == 1]
    two = _tuned(a for a in whole if a.views == 2)
    many = [a for a in (_tuned(a for a in whole if a.views == m) for m in (4, 8)) if a]
    if two is None or not many:
        return _missing(f"2 and more views of all images at one d <= {SMALL}")
    if two.seeds < SEEDS or all(a.seeds < SEEDS for a in many):
        return _few([two, *many])
    many = [a for a in many if a.seeds >= SEEDS]
    parts = [_earlier(a, two) for a in many]
    best = max(many, key=lambda a: a.validation)
    says = f"against 2 views (kappa {two.kappa:.2g}) " + "; ".join(
        f"{a.views} views (kappa {a.kappa:.2g}): {says}" for a, (_, says) in zip(many, parts, strict=True))  # fmt: skip
    word: Word = "mixed"
    if any(good for good, _ in parts):
        word = "supported"
    elif all(_higher(two, a) for a in many):
        word = "contradicted"
    return Finding(word, says, [two, *many], best.mean - two.mean)


def _earlier(a: Arm, other: Arm) -> tuple[bool, str]:
    """(whether C3's rule holds of a against another, when a reaches the other's last accuracy and where that holds)."""
    epochs, seconds, _ = other.curve()
    at = _reached(a, other)
    share = at[0] / epochs[-1]
    same = len(a.hardware | other.hardware) == 1
    of_seconds = at[1] / seconds[-1] if same else math.inf
    difference, noise = _difference(a, other)
    of_views = share * a.views / other.views
    parts = {"per epoch": share <= 0.75, "per view": of_views <= 1, "per second": of_seconds <= 1,
             "at the end": _higher(a, other, 0.5)}  # fmt: skip
    holds = [part for part, so in parts.items() if so]
    when = "not reached" if math.isinf(share) else (
        f"reached after {100 * share:.0f} % of the epochs, {100 * of_views:.0f} % of the views, "
        + (f"{100 * of_seconds:.0f} % of the seconds (2 s.e. {200 * of_seconds * _clock_noise(a, other):.0f})"
           if same else "seconds not comparable"))  # fmt: skip
    says = f"{when}; ends {difference:+.1f} (2 s.e. {noise:.1f}); holds {', '.join(holds) or 'nowhere'}"
    return {"per epoch", "per second", "at the end"} <= set(holds), says


def _clock_noise(a: Arm, other: Arm) -> float:
    """Relative standard error of the ratio of two arms' training seconds."""
    return math.sqrt(sum((stdev(s) / fmean(s)) ** 2 / len(s) for s in (a.seconds, other.seconds)))


def _reached(a: Arm, other: Arm) -> tuple[float, float]:
    """(epochs, training seconds) at which a's mean curve first is at the other's last accuracy; infinite if never."""
    target = other.curve()[2][-1]
    epochs, seconds, accuracy = a.curve()
    after = next((i for i, y in enumerate(accuracy) if y >= target), None)
    if after is None:
        return math.inf, math.inf
    if after == 0:
        return epochs[0], seconds[0]
    before = after - 1  # a straight line between evaluations
    way = (target - accuracy[before]) / (accuracy[after] - accuracy[before])
    epoch, second = (x[before] + way * (x[after] - x[before]) for x in (epochs, seconds))
    return epoch, second


def _c4(arms: list[Arm]) -> Finding:
    width = _small_width(arms)

    def arm(views: int, share: float) -> Arm | None:
        return _tuned(a for a in width if a.views == views and abs(a.share - share) < 0.02)

    whole = arm(2, 1.0)
    pairs = {x: (many, control) for x, m, s in ((4, 8, 0.25), (2, 4, 0.5))
             if (many := arm(m, s)) and (control := arm(2, s))}  # fmt: skip
    if whole is None or not pairs:
        return _missing("many views of a part of the images, with all images and the same part at 2 views")
    ready = {x: pair for x, pair in pairs.items() if min(a.seeds for a in pair) >= SEEDS}
    if whole.seeds < SEEDS or not ready:
        return _few([whole, *(a for pair in pairs.values() for a in pair)])
    gaps = {x: many.mean - whole.mean for x, (many, _) in ready.items()}
    better = {x: _higher(many, control) for x, (many, control) in ready.items()}
    parts = [f"{m.views} views of 1/{x} {m.mean:.1f}, 2 views of it {c.mean:.1f}" for x, (m, c) in ready.items()]
    says = f"2 views of all {whole.mean:.1f}; {'; '.join(parts)}"
    used = [whole, *(a for pair in ready.values() for a in pair)]
    for fold in ready:
        if gaps[fold] >= -0.5 and better[fold]:
            return Finding("supported", f"{fold}x: {says}", used, gaps[fold])
    word: Word = "mixed" if any(better.values()) else "contradicted"
    return Finding(word, says, used, max(gaps.values()))


def _recipes(arms: list[Arm]) -> tuple[Arm | None, Arm | None]:
    """(the recommended recipe, the heuristic one), on all images."""
    whole = [a for a in arms if a.share == 1]
    recommended = _tuned(a for a in whole if a.dim == RECOMMENDED and a.views == 4)
    return recommended, next((a for a in whole if a.dim == HEURISTIC and a.views == 2 and a.heuristic), None)


def _c5(arms: list[Arm]) -> Finding:
    recommended, heuristic = _recipes(arms)
    if recommended is None or heuristic is None or len(recommended.hardware | heuristic.hardware) > 1:
        return _missing("the recommended and the heuristic recipe on one device")
    compared = (recommended, heuristic)
    if min(a.seeds for a in compared) < SEEDS:
        return _few(compared)
    (_, mine, _), (_, theirs, _) = recommended.curve(), heuristic.curve()
    at = _reached(recommended, heuristic)[1]
    ratio = at / theirs[-1]
    if math.isinf(at):
        word: Word = "contradicted" if mine[-1] > theirs[-1] / 1.2 else "mixed"
        return Finding(word, f"not reached within {mine[-1] / theirs[-1]:.2f} of its seconds", compared)
    word = "supported" if ratio <= 0.5 else "contradicted" if ratio > 1 / 1.2 else "mixed"
    return Finding(word, f"reached in {ratio:.2f} of its {theirs[-1]:.0f} s", compared, ratio, "of the seconds")


def _c6(arms: list[Arm]) -> Finding:
    recommended, heuristic = _recipes(arms)
    if recommended is None or heuristic is None:
        return _missing("the recommended and the heuristic recipe")
    compared = (recommended, heuristic)
    if min(a.seeds for a in compared) < SEEDS:
        return _few(compared)
    difference, noise = _difference(recommended, heuristic)
    says = f"recommended {recommended.mean:.1f}, heuristic {heuristic.mean:.1f} (2 s.e. {noise:.1f})"
    word: Word = "mixed"
    if _higher(recommended, heuristic, 0.5):
        word = "supported"
    elif _higher(heuristic, recommended, 0.5):
        word = "contradicted"
    return Finding(word, says, compared, difference)


_RULES: dict[str, Rule] = {"C1": _c1, "C2": _c2, "C3": _c3, "C4": _c4, "C5": _c5, "C6": _c6}
