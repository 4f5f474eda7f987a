"""The ledger on made-up records, where the truth is known: every verdict of every claim."""

import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ncssl_core import InputError, PretrainConfig, claims, records
from ncssl_core.claims import CLAIMS, RULES, ledger, markdown
from ncssl_core.sweep import read_suite

ROOT = Path(__file__).parents[1]


@dataclass
class Made:
    """Records with accuracies as told: `add` makes one a seed."""

    loss: str = "barlow_twins"
    data: str = "CIFAR-10"
    backbone: str = "resnet50"
    images: int = 45_000
    epochs: int = 20
    runs: dict = field(default_factory=dict)

    def add(self, accuracy, dim=256, views=2, share=1.0, seeds=3, noise=0.2, kappa=None, lambd=None, sim=None,
            rise=1.0, seconds=None, device="cpu", **config):  # fmt: skip
        """Seeds end at `accuracy` - noise, + 0, + noise; curves climb there with time constant epochs / rise / 4."""
        if self.loss == "vicreg":
            config |= {"sim_coeff": sim, "std_coeff": sim}
        elif lambd is not None:
            config |= {"lambd": lambd}
        elif kappa is not None:
            config |= {"kappa": kappa}
        seconds = 10.0 * views if seconds is None else seconds  # an epoch
        for seed in range(seeds):
            c = PretrainConfig(loss=self.loss, backbone=self.backbone, dim=dim, views=views, fraction=share, seed=seed,
                               epochs=self.epochs, validation=5000, probe_every=1, **config).plain()  # fmt: skip
            last = accuracy + noise * (seed - (seeds - 1) / 2)
            epochs = list(range(1, self.epochs + 1))
            curve = [last - 30 * (math.exp(-4 * rise * e / self.epochs) - math.exp(-4 * rise)) for e in epochs]
            self.runs[f"run{len(self.runs)}"] = {
                "schema": 1, "config": c, "model": {}, "recipe": {"scale": [0.08, 1]}, "size": 32,
                "data": {"name": self.data, "images": round(self.images * share)},
                "environment": {"device": device, "processor": "p", "threads": 2},
                "time": {"startup_seconds": 5.0, "training_seconds": seconds * self.epochs,
                         "images_per_second": 1.0},
                "probe": {"trained": {"linear": last, "knn": last - 2}},
                "curves": {"evaluation_epoch": epochs, "evaluation_seconds": [seconds * e for e in epochs],
                           "evaluation_linear": curve},
            }  # fmt: skip
        return self

    def verdict(self, claim):
        """The one verdict in this cell."""
        cell = (claim, self.loss, self.data, self.backbone)
        (found,) = [v for v in ledger(self.runs) if (v.claim, v.loss, v.data, v.backbone) == cell]
        return found


def weight(loss, kappa, dim):
    """The argument of `Made.add` that gives this kappa."""
    return {"sim": dim / kappa} if loss == "vicreg" else {"kappa": kappa}


def heuristic(loss):
    return {"sim": 750.0} if loss == "vicreg" else {"lambd": 0.0004}


LOSSES = pytest.mark.parametrize("loss", ["barlow_twins", "vicreg"])
GRID = [(d, k) for d in (64, 512, 8192) for k in (0.02, 0.2, 2.0, 8.0)]


# ---- C1 ---------------------------------------------------------------------------------------------------------


@LOSSES
@pytest.mark.parametrize(
    ("accuracy", "word"),
    [
        (lambda d, k: 70 + 2 * math.log(k), "supported"),
        (lambda d, k: 70 - math.log(k / 0.4) ** 2 + 0.1 * math.log(d), "mixed"),  # not monotone: neither explains it
        (lambda d, k: 70 + 2 * math.log(d), "contradicted"),
        (lambda d, k: 70 + 2 * math.log(k) + 1.2 * math.log(d), "mixed"),
        (lambda d, k: 70 + 0.01 * math.log(k), "mixed"),  # kappa explains all of what noise could be
    ],
    ids=["kappa", "peak", "width", "both", "noise"],
)
def test_c1(loss, accuracy, word):
    made = Made(loss)
    for d, k in GRID:
        made.add(accuracy(d, k), dim=d, **weight(loss, k, d))
    assert made.verdict("C1").verdict == word


def test_c1_reads_the_grid_at_kappa_up_to_10_with_enough_seeds():
    made = Made()
    for d, k in GRID:
        made.add(70 + 2 * math.log(k), dim=d, kappa=k, seeds=3 if d < 8192 else 2)
    verdict = made.verdict("C1")
    assert verdict.verdict == "supported"
    assert len(verdict.runs) == 2 * 4 * 3
    for d in (64, 512, 8192):
        made.add(10.0, dim=d, kappa=40.0)
    assert made.verdict("C1") == verdict
    few = Made()
    for d, k in GRID:
        few.add(70 + 2 * math.log(k), dim=d, kappa=k, seeds=2)
    assert few.verdict("C1").verdict == "too few seeds"
    assert Made().add(70, kappa=2.0).add(60, kappa=0.2).verdict("C1").verdict == "not yet measured"


@pytest.mark.parametrize("grid", [GRID, [(d, k) for d in (16, 256, 1024) for k in (0.02, 2.0, 8.0)]], ids=len)
def test_c1_noise_decides_nothing(grid):
    """Where all cells are the same in truth, at most a few in a hundred draws of seeds give a verdict."""
    generator, decided = np.random.default_rng(0), 0
    for _ in range(100):
        made = Made()
        for d, k in grid:
            made.add(70, dim=d, kappa=k)
        for record in made.runs.values():
            record["probe"]["trained"]["linear"] = generator.normal(70, 0.5)
        decided += made.verdict("C1").verdict != "mixed"
    assert decided <= 4


def test_c1_counts_values_of_kappa_that_several_widths_share():
    made = Made()
    for d, k in GRID:
        made.add(70 + 2 * math.log(k), dim=d, kappa=k)
    before = made.verdict("C1")
    made.add(10, dim=256, kappa=5.12)
    assert made.verdict("C1") == before


def test_explained_is_one_for_a_monotone_truth_and_zero_for_none():
    x = np.repeat([1.0, 2.0, 3.0, 4.0], 3)
    assert claims.explained(x, x**3) == pytest.approx(1)
    assert claims.explained(x, -np.log(x)) == pytest.approx(1)
    assert claims.explained(x, np.tile([1.0, 2.0, 3.0], 4)) == pytest.approx(0)
    assert claims.explained(x, np.ones(12)) == 0


# ---- C2 ---------------------------------------------------------------------------------------------------------


def widths(loss, small, tuned, fixed, seeds=3, noise=0.2):
    made = Made(loss).add(small, dim=256, seeds=seeds, noise=noise, **weight(loss, 5, 256))
    made.add(small - 3, dim=64, seeds=seeds, noise=noise, **weight(loss, 2, 64))
    made.add(tuned, dim=8192, seeds=seeds, noise=noise, **weight(loss, 7, 8192))
    return made.add(fixed, dim=8192, seeds=seeds, noise=noise, **heuristic(loss))


@LOSSES
@pytest.mark.parametrize(
    ("small", "tuned", "fixed", "noise", "word"),
    [
        (80, 80.3, 79, 0.2, "supported"),
        (82, 80, 79, 0.2, "supported"),
        (79, 80, 78, 0.2, "mixed"),
        (77, 80, 78, 0.2, "contradicted"),
        (77, 80, 78, 3.0, "mixed"),  # more than 2 below, but within noise
    ],
)
def test_c2(loss, small, tuned, fixed, noise, word):
    verdict = widths(loss, small, tuned, fixed, noise=noise).verdict("C2")
    assert verdict.verdict == word
    assert verdict.effect == pytest.approx(small - tuned)
    assert verdict.spread == pytest.approx(noise)


def test_c2_takes_what_the_validation_images_choose():
    made = Made().add(80, dim=64, kappa=2).add(81, dim=128, kappa=2)
    made.add(80, dim=8192, kappa=3).add(80, dim=8192, lambd=0.0004)
    for record in made.runs.values():
        if record["config"]["dim"] == 128:  # better on the test images, worse on the validation images
            record["curves"]["evaluation_linear"][-1] -= 5
    assert "d=64 (kappa 2, best of 2)" in made.verdict("C2").says
    assert "tuned (kappa 3, best of 2)" in made.verdict("C2").says


def test_c2_without_its_evidence():
    assert widths("barlow_twins", 80, 80, 80, seeds=2).verdict("C2").verdict == "too few seeds"
    assert Made().add(80).verdict("C2").verdict == "not yet measured"
    untuned = Made().add(80).add(79, dim=8192, lambd=0.0004).add(84, dim=8192, kappa=6.5, seeds=2)
    assert untuned.verdict("C2").verdict == "too few seeds"
    only_heuristic = Made().add(80).add(80, dim=8192, lambd=0.0004)
    assert only_heuristic.verdict("C2").verdict == "not yet measured"
    assert Made().add(80, dim=8192, lambd=0.0004).verdict("C2").verdict == "not yet measured"


# ---- C3 ---------------------------------------------------------------------------------------------------------


@LOSSES
@pytest.mark.parametrize(
    ("accuracy", "rise", "seconds", "word", "says", "holds"),
    [
        (82, 3, 20, "supported", "reached after", "per epoch, per view, per second, at the end"),
        # earlier in epochs, later in seconds
        (82, 3, 120, "mixed", "% of the seconds", "per epoch, per view, at the end"),
        # earlier, but no better in the end
        (80.2, 3, 20, "mixed", "ends +0.2", "per epoch, per view, per second"),
        (82, 0.3, 20, "mixed", "reached after 8", "per second, at the end"),  # better, but late
        (78, 1, 20, "contradicted", "not reached", "nowhere"),
    ],
)
def test_c3(loss, accuracy, rise, seconds, word, says, holds):
    w = weight(loss, 5, 256)
    made = Made(loss).add(80, views=2, **w).add(accuracy, views=4, rise=rise, seconds=seconds, **w)
    verdict = made.verdict("C3")
    assert verdict.verdict == word
    assert says in verdict.says
    assert verdict.says.endswith(f"holds {holds}")
    assert verdict.effect == pytest.approx(accuracy - 80)


def test_c3_one_of_4_and_8_is_enough_and_lower_must_be_both():
    made = Made().add(80, views=2).add(82, views=8, rise=4, seconds=30).add(78, views=4)
    assert made.verdict("C3").verdict == "supported"
    assert Made().add(80).add(78, views=4).add(78, views=8).verdict("C3").verdict == "contradicted"
    assert Made().add(80).add(78, views=4).add(80, views=8).verdict("C3").verdict == "mixed"


def test_c3_seconds_on_two_devices_do_not_compare():
    made = Made().add(80, views=2).add(82, views=4, rise=3, seconds=20, device="H200")
    verdict = made.verdict("C3")
    assert verdict.verdict == "mixed"
    assert "seconds not comparable" in verdict.says


def test_c3_without_its_evidence():
    assert Made().add(80).verdict("C3").verdict == "not yet measured"
    assert Made().add(80).add(82, views=4, seeds=2).verdict("C3").verdict == "too few seeds"
    assert Made().add(80, dim=1024).add(82, dim=1024, views=4).verdict("C3").verdict == "not yet measured"
    assert Made().add(80, dim=64).add(82, dim=256, views=4).verdict("C3").verdict == "not yet measured"


def test_when_another_accuracy_is_reached_is_read_off_a_straight_line():
    made = Made(epochs=4).add(80, noise=0).add(90, views=4, noise=0)
    for record in made.runs.values():
        many = record["config"]["views"] == 4
        record["curves"]["evaluation_linear"] = [60, 70, 90, 91] if many else [50, 60, 70, 80]
        record["curves"]["evaluation_seconds"] = [2, 4, 6, 8] if many else [1, 2, 3, 4]
    assert "after 62 % of the epochs, 125 % of the views, 125 % of the seconds (2 s.e. 0)" in made.verdict("C3").says
    for record in made.runs.values():
        if record["config"]["views"] == 4:
            record["time"]["training_seconds"] *= 1 + 0.1 * (record["config"]["seed"] - 1)  # 10 % either way
    assert f"125 % of the seconds (2 s.e. {250 * 0.1 / math.sqrt(3):.0f})" in made.verdict("C3").says


def test_seeds_evaluated_at_different_epochs_are_averaged_where_all_were():
    made = Made(epochs=20).add(80, noise=0).add(82, views=4, noise=0, rise=3, seconds=10)
    expected = made.verdict("C3")
    curves = next(r for r in made.runs.values() if r["config"]["views"] == 4)["curves"]
    for name, values in curves.items():
        curves[name] = values[4::5]
    arm = next(a for a, _ in claims._arms(made.runs) if a.views == 4)
    assert arm.curve()[0] == [5, 10, 15, 20]
    assert made.verdict("C3").verdict == expected.verdict == "supported"


def test_views_that_count_themselves_are_another_estimator():
    made = Made().add(80).add(82, views=4, rise=3, seconds=20, pairing="mean")
    assert made.verdict("C3").verdict == "not yet measured"


# ---- C4 ---------------------------------------------------------------------------------------------------------


def shares(loss, whole, eight, control8, four=None, control4=None, seeds=3, noise=0.2):
    w = weight(loss, 5, 256) | {"seeds": seeds, "noise": noise}
    made = Made(loss).add(whole, **w).add(eight, views=8, share=0.25, **w).add(control8, share=0.25, **w)
    if four is not None:
        made.add(four, views=4, share=0.5, **w).add(control4, share=0.5, **w)
    return made


@LOSSES
@pytest.mark.parametrize(
    ("accuracies", "word", "says"),
    [
        ((80, 79.7, 70), "supported", "4x"),
        ((80, 82, 70, 79, 75), "supported", "4x"),
        ((80, 78, 70, 80, 75), "supported", "2x"),
        ((80, 78, 70, 78, 75), "mixed", "2 views of all 80.0"),
        ((80, 79.8, 79.8), "contradicted", ""),  # few images suffice without more views
        ((80, 79.8, 79.8, 80, 80), "contradicted", ""),
        ((80, 79.8, 79.8, 80, 75), "supported", "2x"),
        ((80, 70, 70, 70, 69), "mixed", ""),
    ],
)
def test_c4(loss, accuracies, word, says):
    verdict = shares(loss, *accuracies).verdict("C4")
    assert verdict.verdict == word
    assert says in verdict.says


def test_c4_a_control_within_noise_is_as_good():
    assert shares("barlow_twins", 80, 80, 79, noise=0.2).verdict("C4").verdict == "supported"
    assert shares("barlow_twins", 80, 80, 79, noise=2.0).verdict("C4").verdict == "contradicted"


def test_c4_without_its_evidence():
    assert shares("barlow_twins", 80, 80, 70, seeds=1).verdict("C4").verdict == "too few seeds"
    assert Made().add(80).add(80, views=8, share=0.25).verdict("C4").verdict == "not yet measured"
    assert Made().add(80, views=8, share=0.25).add(70, share=0.25).verdict("C4").verdict == "not yet measured"


def test_c4_all_is_what_has_its_own_parts():
    made = shares("barlow_twins", 80, 79.7, 70)
    made.add(90, dim=512, share=1.0)
    made.images *= 2
    made.add(90, dim=512)  # a run on more images than any other
    verdict = made.verdict("C4")
    assert (verdict.verdict, verdict.images) == ("supported", 45_000)
    halves = Made().add(80, share=0.5).add(80, views=4, share=0.25).add(75, share=0.25)
    assert halves.verdict("C4").images == 22_500  # said as such: all are the half here


# ---- C5 and C6 --------------------------------------------------------------------------------------------------


def recipes(loss, mine, theirs=80, seeds=3, noise=0.2, device="H200", **kw):
    made = Made(loss).add(theirs, dim=8192, seeds=seeds, noise=noise, device="H200", **heuristic(loss))
    return made.add(mine, dim=256, views=4, seeds=seeds, noise=noise, device=device, **weight(loss, 3, 256), **kw)


@LOSSES
@pytest.mark.parametrize(
    ("accuracy", "rise", "seconds", "word"),
    [
        (82, 3, 20, "supported"),
        (82, 1, 20, "mixed"),  # in between
        (82, 1, 40, "contradicted"),
        (78, 1, 20, "contradicted"),  # never, in as much time
        (78, 1, 5, "mixed"),  # not yet, but it had far less time
    ],
)
def test_c5(loss, accuracy, rise, seconds, word):
    assert recipes(loss, accuracy, rise=rise, seconds=seconds).verdict("C5").verdict == word


def test_c5_without_its_evidence():
    assert recipes("barlow_twins", 82, rise=3, device="another").verdict("C5").verdict == "not yet measured"
    assert recipes("barlow_twins", 82, rise=3, seeds=2).verdict("C5").verdict == "too few seeds"
    assert Made().add(82, views=4).verdict("C5").verdict == "not yet measured"


@LOSSES
@pytest.mark.parametrize(
    ("mine", "noise", "word"),
    [(81, 0.2, "supported"), (80.3, 0.1, "mixed"), (79, 0.2, "contradicted"), (82, 3.0, "mixed"), (78, 3.0, "mixed")],
)
def test_c6(loss, mine, noise, word):
    verdict = recipes(loss, mine, noise=noise).verdict("C6")
    assert verdict.verdict == word
    assert verdict.effect == pytest.approx(mine - 80)


@pytest.mark.parametrize("change", ["compile", "precision", "earlier"])
def test_seconds_compare_only_between_like_runs(change):
    made = recipes("barlow_twins", 82, rise=3, seconds=20)
    assert made.verdict("C5").verdict == "supported"
    for record in made.runs.values():
        if record["config"]["views"] == 4:
            (record["config"] if change == "compile" else record["environment"])[change] = "other"
    assert made.verdict("C5").verdict == "not yet measured"


def test_c6_without_its_evidence():
    assert recipes("barlow_twins", 82, seeds=2).verdict("C6").verdict == "too few seeds"
    assert Made().add(82, views=4).verdict("C6").verdict == "not yet measured"


# ---- cells ------------------------------------------------------------------------------------------------------


def test_nothing_is_measured_without_records():
    verdicts = ledger({})
    assert len(verdicts) == 6 * 4
    assert {v.verdict for v in verdicts} == {"not yet measured"}
    assert {(v.data, v.backbone) for v in verdicts} == {("CIFAR-10", "resnet50"), ("STL-10", "resnet50")}
    assert set(CLAIMS) == set(RULES)


def test_no_cell_fills_anothers():
    made = recipes("barlow_twins", 82)
    made.backbone, before = "tiny", len(made.runs)
    made.add(70, dim=8192, lambd=0.0004).add(90, views=4)
    made.backbone, made.data = "resnet50", "CIFAR-10-JPEG"
    made.add(75, dim=8192, lambd=0.0004)
    verdicts = {(v.data, v.backbone): v for v in ledger(made.runs) if v.claim == "C6" and v.loss == "barlow_twins"}
    assert verdicts["CIFAR-10", "resnet50"].effect == pytest.approx(2)
    assert verdicts["CIFAR-10", "tiny"].effect == pytest.approx(20)
    assert verdicts["CIFAR-10-JPEG", "resnet50"].verdict == "not yet measured"
    assert verdicts["STL-10", "resnet50"].verdict == "not yet measured"
    assert set(verdicts["CIFAR-10", "resnet50"].runs) == set(list(made.runs)[:before])


def test_runs_that_differ_in_more_are_not_compared():
    made = Made().add(80, dim=8192, lambd=0.0004, batch=128).add(90, views=4, batch=512)
    assert made.verdict("C6").verdict == "not yet measured"
    other = Made().add(80, dim=8192, lambd=0.0004)
    other.epochs = 100
    assert other.add(90, views=4).verdict("C6").verdict == "not yet measured"


def test_the_setting_that_decides_speaks_then_the_longest():
    made = recipes("barlow_twins", 82)
    made.epochs = 100
    made.add(85, dim=8192, lambd=0.0004, seeds=1).add(90, views=4, seeds=1)
    assert made.verdict("C6").epochs == 20
    made.runs = {k: v for k, v in made.runs.items() if v["config"]["epochs"] == 20}
    made.add(85, dim=8192, lambd=0.0004).add(90, views=4)
    assert made.verdict("C6").epochs == 100
    assert made.verdict("C6").effect == pytest.approx(5)


@pytest.mark.parametrize("lack", ["probe", "validation", "last epoch", "named backbone"])
def test_a_run_that_lacks_what_the_protocol_asks_counts_for_nothing(lack):
    made = recipes("barlow_twins", 82)
    for record in made.runs.values():
        if lack == "probe":
            del record["probe"]
        elif lack == "validation":
            record["curves"] = {}
        elif lack == "last epoch":
            record["curves"]["evaluation_epoch"][-1] -= 1
        else:
            record["model"]["custom"] = "Mine"
    assert made.verdict("C6").verdict == "not yet measured"


def test_a_seed_counts_once():
    made = recipes("barlow_twins", 82, seeds=1)
    for copy in range(3):
        made.runs |= {f"{name} {copy}": record for name, record in made.runs.items()}
    assert made.verdict("C6").verdict == "too few seeds"
    assert made.verdict("C6").seeds == 1


@pytest.mark.parametrize("scale", ["cifar10", "96px"])
def test_the_suites_decide_every_claim_for_both_losses(scale):
    """Records of every run of the suites, all alike: each verdict is one of the three that decide."""
    made, images = Made(), {"CIFAR-10": 50_000, "STL-10": 105_000}
    data = {"cifar10": "CIFAR-10", "96px": "STL-10"}[scale]
    for kind in ("projector", "views", "fraction", "pareto"):
        for task in read_suite(f"{scale}-{kind}").tasks:
            c = task.config.plain()
            made.loss, made.data, made.epochs = c["loss"], data, c["epochs"]
            before = set(made.runs)
            made.add(80 + records.kappa(c) / 100, dim=c["dim"], views=c["views"], seeds=1, sim=1.0)
            for name in set(made.runs) - before:
                made.runs[name]["config"] = c
                made.runs[name]["data"]["images"] = round((images[data] - c["validation"]) * c["fraction"])
    found = {(v.claim, v.loss): v.verdict for v in ledger(made.runs) if v.data == data}
    assert len(found) == 12
    assert set(found.values()) <= {"supported", "contradicted", "mixed"}, found


def test_the_order_of_records_does_not_matter():
    made = shares("barlow_twins", 80, 79.8, 70, 80, 75)
    assert ledger(dict(reversed(made.runs.items()))) == ledger(made.runs)


# ---- tables -----------------------------------------------------------------------------------------------------


def test_the_markdown_has_a_row_a_claim_and_the_evidence_below():
    text = markdown(ledger(recipes("vicreg", 82).runs))
    rows = [line for line in text.splitlines() if line.startswith("| C")]
    assert [row[2:4] for row in rows] == list(CLAIMS)
    assert len({row.count("|") for row in rows}) == 1
    assert rows[0].endswith("| not yet measured |")
    assert rows[0].count("|") == 3  # the one cell with records
    assert "Without any record yet: ResNet-50, CIFAR-10, Barlow Twins; ResNet-50, STL-10, Barlow Twins" in text
    assert "Without" not in markdown([v for v in ledger(recipes("vicreg", 82).runs) if v.epochs])
    assert "**C6, ResNet-50, CIFAR-10, VICReg: supported.** recommended 82.0, heuristic 80.0" in text


def test_arms_are_means_over_seeds():
    frame = claims.arms(recipes("barlow_twins", 82).runs)
    assert len(frame) == 2
    row = frame[frame.views == 4].iloc[0]
    assert (row["seeds"], row["dim"]) == (3, 256)
    assert row["linear"] == pytest.approx(82)
    assert row["sd"] == pytest.approx(0.2)


def test_paces_compare_steps_that_are_the_same_work():
    runs = Made().add(80, dim=64).add(80, dim=256).add(80, dim=64, kappa=3).runs
    for place, record in enumerate(runs.values()):
        record["time"]["images_per_second"] = 100.0 / (1 + place)
    paces = claims.paces(runs)
    assert list(paces.slower) == pytest.approx([1, 2, 3, 1, 5 / 4, 6 / 4, 7, 8, 9])
    assert list(paces.alike) == [6] * 3 + [3] * 3 + [6] * 3
    assert paces.step[0] == pytest.approx(next(iter(runs.values()))["config"]["batch"] / 100)
    runs["run0"]["environment"]["processor"] = "another"
    assert claims.paces(runs).slower[0] == 1
    assert claims.paces({}).empty


@pytest.mark.parametrize(
    ("accuracy", "seeds", "says"),
    [(82, 3, "+2.0 points (2 s.e. 0.3), higher"), (78, 3, "-2.0 points (2 s.e. 0.3), lower"),
     (80.1, 3, "+0.1 points (2 s.e. 0.3), not told apart"), (82, 2, "+2.0 points (2 of 3 seeds: no verdict)")],
)  # fmt: skip
def test_how_far_two_arms_are_apart_is_said_in_words(accuracy, seeds, says):
    runs = Made().add(80, dim=64, seeds=3).add(accuracy, dim=256, seeds=seeds).runs
    frame = claims.arms(runs).set_index("dim")
    assert claims.apart(frame.loc[256], frame.loc[64]) == says


def test_a_folder_of_records_is_read_whole(tmp_path):
    for name, record in recipes("barlow_twins", 82).runs.items():
        records.write(tmp_path / f"{name}.json", {k: v for k, v in record.items() if k != "schema"})
    assert ledger(records.read_all(tmp_path)) == ledger(recipes("barlow_twins", 82).runs)
    with pytest.raises(InputError, match="no folder"):
        records.read_all(tmp_path / "none")


def test_the_readmes_ledger_is_what_the_records_say():
    text = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"<!-- ledger -->\n(.*?)\n<!-- /ledger -->", text, re.DOTALL)
    assert shown == markdown(ledger(records.read_all(ROOT / "results"))), "run: ncssl report --write README.md"


def test_curves_are_means_over_seeds_at_what_was_spent_by_then():
    runs = recipes("barlow_twins", 82).runs
    frame, arms = claims.curves(runs), claims.arms(runs)
    for arm in arms.itertuples():
        line = frame[(frame.dim == arm.dim) & (frame.views == arm.views)]
        assert line.validation.iloc[-1] == pytest.approx(arm.validation)
        assert line.epoch.iloc[-1] == arm.epochs
        assert line.steps.iloc[-1] == arm.epochs * (arm.images // arm.batch)
        assert (line.views_seen == line.steps * arm.batch * arm.views).all()
    assert claims.curves({}).empty


def test_seconds_compare_whether_or_not_a_record_says_that_nothing_came_earlier():
    arm = next(a for a, _ in claims._arms(recipes("barlow_twins", 82).runs))
    before = arm.hardware
    for _, record in arm.runs:
        record["environment"]["earlier"] = []
    assert arm.hardware == before


def test_the_front_figure_is_of_todays_records():
    sys.path.insert(0, str(ROOT / "experiments"))
    import front
    from PIL import Image

    with Image.open(front.OUT) as picture:
        assert picture.text["Records"] == front.digest(), "run: python experiments/front.py"
