"""Advice from records, held out in turn, and from a pilot's spectrum."""

import numpy as np
import pytest

from ncssl_core import InputError, PretrainConfig, records
from ncssl_core.pretrain import pretrain
from ncssl_core.recommend import best_cell, pilot_spectrum, recommend
from ncssl_core.theory import optima

SPEED = 2_400  # views a second: what the records' machine does


@pytest.fixture(scope="module")
def runs():
    every = records.read_all()
    return {
        n: r for n, r in every.items() if r["data"]["name"] == "CIFAR-10-JPEG" and r["config"]["backbone"] == "tiny"
    }


def seeds(runs, wanted):
    return {n: r for n, r in runs.items() if r["config"]["seed"] in wanted}


def reached(runs, images, views_seen):
    """{(dim, kappa, views): validation accuracy after so many views} read off the longest runs on as many images."""
    of_runs = {}
    for record in runs.values():
        config, curves = record["config"], record["curves"]
        if config["loss"] == "barlow_twins" and record["data"]["images"] == images and records.kappa(config) <= 10:
            of_an_epoch = images // config["batch"] * config["batch"] * config["views"]
            seen = np.array(curves["evaluation_epoch"]) * of_an_epoch
            cell = config["dim"], round(records.kappa(config), 6), config["views"]
            value = float(np.interp(views_seen, seen, curves["evaluation_linear"], left=0))
            of_runs.setdefault(cell, {}).setdefault(config["epochs"], []).append(value)
    return {cell: np.mean(found[max(found)]) for cell, found in of_runs.items()}


@pytest.mark.parametrize("images", [5_000, 10_000, 20_000])
@pytest.mark.parametrize("views_seen", [45_000, 60_000, 120_000, 240_000, 480_000, 10**6])
def test_the_cell_it_recommends_is_within_a_point_of_the_best_on_seeds_it_did_not_see(runs, images, views_seen):
    regrets = []
    for seed in range(3):  # each held out in turn
        advice = recommend(images, 32, views_seen, seeds(runs, {0, 1, 2} - {seed}), 1.0)
        held_out = reached(seeds(runs, {seed}), images, views_seen)
        cell = tuple(advice[name].value for name in ("dim", "kappa", "views"))
        regrets.append(max(held_out.values()) - held_out[cell])
        assert best_cell(seeds(runs, {0, 1, 2} - {seed}), images, 32, views_seen)[0] == cell
    assert np.mean(regrets) <= 1


@pytest.mark.parametrize("dim", [16, 64, 256, 1024])
def test_without_a_width_it_still_finds_a_cell_within_a_point_of_the_best(runs, dim):
    grid = {n: r for n, r in runs.items() if r["config"]["epochs"] == 6}  # longer runs are of one width alone
    two_views = {n: r for n, r in grid.items() if r["config"]["views"] == 2}
    others = {n: r for n, r in two_views.items() if r["config"]["dim"] != dim}
    advice = recommend(20_000, 32, 480_000, others, 1.0)
    assert advice["dim"].value != dim
    found = reached(two_views, 20_000, 480_000)  # when all have ended
    assert found[advice["dim"].value, advice["kappa"].value, 2] >= max(found.values()) - 1


@pytest.mark.parametrize("kappa", [0.02, 0.2, 2.0])
def test_a_weight_that_was_held_out_is_not_missed(runs, kappa):
    others = {n: r for n, r in runs.items() if records.kappa(r["config"]) != kappa}
    assert (
        recommend(20_000, 32, 100, others, SPEED)["kappa"].value
        == recommend(20_000, 32, 100, runs, SPEED)["kappa"].value
    )


def test_what_the_records_do_not_hold_is_called_not_measured(runs):
    inside = recommend(20_000, 32, 60, runs, SPEED)
    assert {inside[n].sure for n in ("dim", "kappa", "views", "epochs")} == {"measured"}
    for images, size, budget, backbone in (
        (20_000, 32, 60, "resnet50"),
        (20_000, 96, 60, "tiny"),
        (10**6, 32, 60, "tiny"),
        (500, 32, 60, "tiny"),
    ):
        outside = recommend(images, size, budget, runs, SPEED, backbone)
        assert {outside[n].sure for n in ("dim", "kappa", "views", "epochs")} == {"not measured"}
        assert "for that nothing is measured" in outside.rests
    longer = recommend(20_000, 32, 36_000, runs, SPEED)
    assert longer["epochs"].sure == "not measured"
    assert "what more brings is not measured" in longer["epochs"].why
    assert longer["dim"].sure == "measured"


@pytest.mark.parametrize("budget", [0.5, 5, 15])
def test_a_time_that_ends_before_the_first_measurement_has_nothing_measured(runs, budget):
    advice = recommend(20_000, 32, budget, runs, SPEED)
    assert {advice[n].sure for n in ("loss", "dim", "kappa", "views")} == {"not measured"}
    assert "ends before their first measurement" in advice.rests
    first = {}
    for record in runs.values():
        config, curves = record["config"], record["curves"]
        if record["data"]["images"] == 20_000 and config["loss"] == "barlow_twins" and config["epochs"] == 6:
            cell = config["dim"], round(records.kappa(config), 6), config["views"]
            first.setdefault(cell, []).append(curves["evaluation_linear"][0])
    cell = tuple(advice[name].value for name in ("dim", "kappa", "views"))
    assert np.mean(first[cell]) >= max(np.mean(v) for v in first.values() if len(v) > 2) - 1


def test_without_records_theory_and_the_paper_speak():
    advice = recommend(50_000, 32, 3600, {}, SPEED)
    assert {c.name: c.sure for c in advice.choices} == {
        "loss": "not measured", "dim": "theory", "kappa": "published", "lambd": "published", "views": "theory",
        "batch": "not measured", "epochs": "not measured",
    }  # fmt: skip
    assert "no records" in str(advice)


@pytest.mark.parametrize("seed", range(5))
def test_a_spectrum_sets_width_and_weight_by_the_thresholds(runs, seed):
    rng = np.random.default_rng(seed)
    spectrum = np.sort(rng.uniform(0.02, 0.98, 60))[::-1]
    advice = recommend(20_000, 32, 100, runs, SPEED, spectrum=spectrum)
    dim, kappa = advice["dim"].value, advice["kappa"].value
    held = optima.barlow_twins(spectrum, 1024, kappa / 1024).rank
    assert dim >= held
    assert held >= (spectrum > 0.5).sum() or kappa == 10
    assert f"the loss holds {held}" in advice["dim"].why
    alone = recommend(20_000, 32, 100, runs, SPEED)
    assert dim >= alone["dim"].value
    assert kappa >= alone["kappa"].value


def test_a_rich_spectrum_raises_both():
    advice = recommend(20_000, 32, 100, {}, SPEED, spectrum=np.linspace(0.95, 0.501, 400))
    assert advice["dim"].value == 512
    assert advice["kappa"].value == 10
    assert (advice["dim"].sure, advice["kappa"].sure) == ("theory", "theory")
    assert "records alone say 256" in advice["dim"].why


def test_a_budget_that_ends_before_the_records_begin_is_told(runs):
    advice = recommend(20_000, 32, 5, runs, SPEED)
    assert advice["views"].sure == "not measured"
    assert "comes later" in advice["views"].why


def test_the_settings_are_those_of_a_run_and_few_images_get_small_batches(runs):
    for images in (8, 100, 500, 50_000):
        advice = recommend(images, 32, 60, runs, SPEED)
        config = PretrainConfig(**advice.settings)
        assert 2 <= config.batch <= max(images // 4, 2)
        assert records.kappa(config.plain()) == pytest.approx(advice["lambd"].value * config.dim)
        assert f"--views {config.views}" in advice.flags
    assert recommend(20_000, 32, 1e9, runs, SPEED)["epochs"].value == 1000
    assert "less than one" in recommend(20_000, 32, 1, runs, SPEED)["epochs"].why


@pytest.mark.parametrize(
    ("given", "says"),
    [((4, 32, 60), "images is at least 8; given 4"), ((100, 4, 60), "size is at least 8; given 4"),
     ((100, 32, 0), "budget is a positive number; given 0"),
     ((100, 32, float("nan")), "budget is a positive number; given nan")],
)  # fmt: skip
def test_bad_input_is_answered_in_a_sentence(given, says):
    with pytest.raises(InputError, match=says):
        recommend(*given, {}, SPEED)


def test_a_pilots_spectrum_is_measured_on_images_that_did_not_find_it(config, shapes):
    run = pretrain(config, data=shapes)
    spectrum = pilot_spectrum(run)
    assert (np.diff(spectrum) <= 0).all()
    assert spectrum.max() < 1
    assert np.abs(spectrum[-5:]).max() < 0.5  # directions without agreement
    with pytest.raises(InputError, match="at least 64 images; given 32"):
        pilot_spectrum(run, images=32)
