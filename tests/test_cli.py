"""The command line as its user sees it: what it prints, what it leaves, how it fails."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import as_folder, files, picture

from ncssl_core import records
from ncssl_core.cli import main

FAST = ["--dim", "16", "--epochs", "1", "--batch", "8", "--size", "16", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path):
    return as_folder(tmp_path / "pets", files(per_class=12, size=(16, 16)))


def ncssl(*words, code=0, capsys):
    if code:
        with pytest.raises(SystemExit) as exit_:
            main([str(w) for w in words])
        assert exit_.value.code == code
    else:
        main([str(w) for w in words])
    return capsys.readouterr()


def test_from_a_folder_to_a_table(folder, tmp_path, capsys):
    run = tmp_path / "run"
    said = ncssl("pretrain", "--data", folder, "--out", run, *FAST, capsys=capsys).out
    assert "1 epochs of 24 images of pets" in said
    assert f"ncssl probe {run}" in said
    said = ncssl("probe", run, capsys=capsys).out
    assert [line.split()[0] for line in said.splitlines()] == ["trained", "untrained", "pixels"]
    record = records.read(run)
    assert set(record["probe"]) == {"trained", "untrained", "pixels", "test_images"}
    assert f"{record['probe']['trained']['linear']:.2f} %" in said
    assert record["spectrum"]["rankme"] > 1
    said = ncssl("probe", run, "--protocol", "paper", "--average-views", 2, capsys=capsys).out
    assert f"{records.read(run)['paper_probe']['linear']:.2f} %" in said
    assert records.read(run)["probe"] == record["probe"]  # one probe does not undo another
    said = ncssl("show", run, capsys=capsys).out
    assert "barlow_twins" in said
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    features = tmp_path / "x.npz"
    ncssl("embed", run, "--out", features, capsys=capsys)
    with np.load(features) as saved:
        assert saved["train_features"].shape == (24, 128)
        assert saved["test_labels"].tolist() == [0] * 12 + [1] * 12
        assert saved["test_names"][0] == "test/cat/000.jpg"
    others = as_folder(tmp_path / "others", {f"{i}.jpg": picture(i, (20, 30)) for i in range(3)})
    ncssl("embed", run, "--data", others, "--image-size", 16, "--out", features, capsys=capsys)
    with np.load(features) as saved:
        assert saved["train_features"].shape == (3, 128)


def test_settings_come_from_a_file_and_flags_override_it(folder, tmp_path, capsys):
    settings = {"data": str(folder), "dim": 8, "epochs": 1, "batch": 8, "recipe": {"base": "stl", "gray": 0.5}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    ncssl("pretrain", "--config", tmp_path / "c.yaml", "--dim", 12, "--out", run, "--device", "cpu", capsys=capsys)
    record = records.read(run)
    assert record["config"]["dim"] == 12
    assert record["config"]["batch"] == 8
    assert record["recipe"]["gray"] == 0.5
    assert record["recipe"]["scale"] == [0.2, 1.0]


def test_probing_on_the_way(folder, tmp_path, capsys):
    run = tmp_path / "run"
    ncssl("pretrain", "--data", folder, "--out", run, *FAST, "--validation", 8, "--probe-every", 1, capsys=capsys)
    curves = records.read(run)["curves"]
    assert 0 <= curves["evaluation_linear"][0] <= 100
    assert curves["evaluation_epoch"] == [1]


def test_resume_needs_only_the_folder(folder, tmp_path, capsys):
    run = tmp_path / "run"
    ncssl("pretrain", "--data", folder, "--out", run, *FAST, capsys=capsys)
    said = ncssl("pretrain", "--resume", "--out", run, "--epochs", 2, capsys=capsys).out
    assert "2 epochs of 24 images" in said
    error = ncssl("pretrain", "--resume", "--out", run, "--dim", 99, code=2, capsys=capsys).err
    assert "was started with dim 16 (now 99)" in error


def test_resume_of_nothing_does_not_start_something_else(tmp_path, folder, capsys):
    error = ncssl("pretrain", "--resume", "--out", tmp_path / "typo", code=2, capsys=capsys).err
    assert "no run to go on with" in error
    words = ["pretrain", "--resume", "--data", folder, "--out", tmp_path / "new", *FAST]
    assert "1 epochs" in ncssl(*words, capsys=capsys).out


CORRUPT = {**files(size=(16, 16)), "train/cat/bad.jpg": b"nothing"}
MIXED = {**files(size=(16, 16)), "train/cat/large.jpg": picture(1, (20, 20))}
EMPTY_CLASS = {**files(size=(16, 16)), "train/emu/notes.txt": b""}


@pytest.mark.parametrize(
    ("contents", "flags", "message"),
    [
        (None, ["--data", "/nowhere"], "no data at '/nowhere'"),
        (EMPTY_CLASS, [], "class folder train/emu holds no images"),
        (CORRUPT, [], "cannot read train/cat/bad.jpg"),
        (MIXED, [], "--image-size N"),
        (files(), ["--views", "1"], "views is at least 2; given 1"),
        (files(), ["--backbone", "resnet51"], "did you mean 'resnet"),
        (files(), ["--batch", "100"], "a batch of 100 is more than the 8 images"),
        (files(), ["--views", "two"], "--views: wanted int, given two"),
        (files(), ["--loss", "simclr"], "wanted one of 'barlow_twins', 'vicreg'; given simclr"),
        (files(), ["--image-size", "x"], "--image-size: wanted int, given x"),
        (files(), ["--bacth", "8"], "unknown flag '--bacth' (did you mean '--batch'?); valid: --backbone"),
        (files(), ["--recipe", "{grey: 0.1}"], "unknown key in recipe 'grey' (did you mean 'gray'?)"),
        (files(), ["--config", "/nowhere.yaml"], "File does not exist"),
        (files(), ["--lambd", "-1"], "lambd is a finite weight >= 0; given -1.0"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path, capsys, contents, flags, message):
    words = ["pretrain", "--out", tmp_path / "run", *FAST]
    if contents is not None:
        words += ["--data", as_folder(tmp_path / "set", contents)]
    error = ncssl(*words, *flags, code=2, capsys=capsys).err
    assert message in error
    assert error.startswith("ncssl: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_unwritable_place_is_one_sentence(folder, tmp_path, capsys):
    error = ncssl("pretrain", "--data", folder, "--out", folder / "train/cat/000.jpg/x", *FAST, code=2, capsys=capsys)
    assert "cannot write to" in error.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "/nowhere"], "no record: /nowhere has none"),
        (["show", "/nowhere"], "no record: /nowhere has none"),
        (["embed", "/nowhere"], "no record: /nowhere has none"),
        (["show"], "the following arguments are required: runs"),
        (["probe"], "the following arguments are required: run"),
        (["probe", "x", "--protocol", "clan"], "wanted one of 'clean', 'paper'; given clan"),
        ([], "wanted a command, one of: pretrain"),
        (["prtrain"], "invalid choice: 'prtrain'"),
    ],
    ids=str,
)
def test_wrong_words(words, message, capsys):
    assert message in ncssl(*words, code=2, capsys=capsys).err


def test_an_unknown_setting_in_a_file_is_named(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("vews: 3\n")
    error = ncssl("pretrain", "--config", tmp_path / "c.yaml", code=2, capsys=capsys).err
    assert "unknown setting 'vews' (did you mean 'views'?)" in error


def test_unlabelled_images_train_but_cannot_be_probed(tmp_path, capsys):
    photos = as_folder(tmp_path / "photos", {f"{i}.jpg": picture(i, (16, 16)) for i in range(16)})
    said = ncssl("pretrain", "--data", photos, "--out", tmp_path / "run", *FAST, capsys=capsys).out
    assert f"next: ncssl neighbours {tmp_path / 'run'}" in said
    assert "no 'test' images" in ncssl("probe", tmp_path / "run", code=2, capsys=capsys).err


def test_every_flag_has_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert "--off-diagonal" not in text
    from dataclasses import fields

    from ncssl_core import PretrainConfig

    for field in fields(PretrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text


def test_the_module_is_the_command_and_static_means_silent(folder, tmp_path):
    command = [sys.executable, "-m", "ncssl_core", "pretrain", "--data", folder, "--out", tmp_path / "run", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""
    assert json.loads((tmp_path / "run" / "record.json").read_text())["schema"] == 1


def test_progress_is_shown_otherwise(folder, tmp_path, monkeypatch):
    env = {k: v for k, v in os.environ.items() if k != "NCSSL_STATIC"}
    command = [sys.executable, "-m", "ncssl_core", "pretrain", "--data", folder, "--out", tmp_path / "run", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert "img/s" in done.stderr
    assert "on_diagonal=" in done.stderr


# ---- sweep and report -------------------------------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path):
    """Three runs of a second on a folder of labelled images."""
    base = {"dim": 8, "epochs": 1, "batch": 8, "size": 16, "validation": 6, "probe_every": 1}
    path = tmp_path / "try.yaml"
    path.write_text(yaml.safe_dump({"about": "a try", "base": base, "runs": [{"kappa": [1.0, 2.0, 4.0]}]}))
    return path


def test_a_sweep_does_its_runs_and_a_second_call_finds_nothing_to_do(suite, folder, tmp_path, capsys):
    words = ("sweep", suite, "--data", folder, "--out", tmp_path / "results", "--device", "cpu")
    said = ncssl(*words, "--dry-run", capsys=capsys).out
    assert said.count("not yet measured") == 3
    assert not (tmp_path / "results").exists()
    said = ncssl(*words, "--shard", "1/2", capsys=capsys).out
    assert "try on pets: 0 of 2 done, 2 left" in said
    assert said.count(": linear ") == 2
    said = ncssl(*words, "--dry-run", capsys=capsys).out
    assert said.count("   done") == 2
    assert "2 of 3 done, 1 left, about" in said
    assert ncssl(*words, capsys=capsys).out.count(": linear ") == 1
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").glob("*.json")}
    assert len(stamps) == 3
    assert ncssl(*words, capsys=capsys).out.strip() == "try on pets: 3 of 3 done, 0 left"
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    table = ncssl("report", "--results", tmp_path / "results", capsys=capsys).out
    assert "tiny, pets, barlow_twins: NOT YET MEASURED" in table
    assert table.count("pets     tiny") == 3


def test_a_budget_that_is_spent_starts_nothing(suite, folder, tmp_path, capsys):
    said = ncssl("sweep", suite, "--data", folder, "--out", tmp_path / "r", "--time-budget", "1s", capsys=capsys).out
    assert "no run left that fits the time; the same command goes on: 0 of 3 done, 3 left" in said
    assert not list((tmp_path / "r").glob("*.json"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cpu-views"], "cifar10 is not, or not whole, in data/; --download fetches it"),
        (["cpu-views", "--data", "none.tar.xz"], "no data at 'none.tar.xz'"),
        (["cpu-views", "--data", "synthetic"], "cpu-views is for CIFAR-10 or CIFAR-10-JPEG; given synthetic"),
        (["cpu-view"], "unknown suite 'cpu-view' (did you mean 'cpu-views'"),
        (["TRY"], "names no images: wanted --data"),
        (["TRY", "--data", "PETS", "--shard", "3/2"], "--shard is i/n with 1 <= i <= n, e.g. 1/4; given '3/2'"),
        (["TRY", "--data", "PETS", "--shard", "0/2"], "--shard is i/n"),
        (["TRY", "--data", "PETS", "--time-budget", "540"], "a budget is a time such as 9m"),
        (["TRY", "--data", "PETS", "--out", "TRY"], "--out is a folder of records; "),
        (["TRY", "--data", "PLAIN", "--image-size", "16"], "unknown flag '--image-size'"),
    ],
)
def test_what_a_sweep_cannot_use_is_one_sentence_and_code_2(suite, folder, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    given = [{"TRY": str(suite), "PETS": str(folder)}.get(w, w) for w in words]
    said = ncssl("sweep", *given, code=2, capsys=capsys).err
    assert says.replace("cifar10 is", "CIFAR-10 is") in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_images_without_labels_cannot_be_swept(suite, tmp_path, capsys):
    plain = as_folder(tmp_path / "plain", {f"test/{i}.jpg": picture(i) for i in range(9)} | {
        f"train/{i}.jpg": picture(i) for i in range(30)})  # fmt: skip
    said = ncssl("sweep", suite, "--data", plain, "--out", tmp_path / "r", code=2, capsys=capsys).err
    assert "wants labelled training and test images" in said


def test_a_run_that_diverges_is_told_and_the_others_are_done(suite, folder, tmp_path, capsys):
    text = yaml.safe_load(suite.read_text())
    suite.write_text(yaml.safe_dump({**text, "runs": [{"lr": [1e18, 1e-3, 2e-3]}]}))
    words = ("sweep", suite, "--data", folder, "--out", tmp_path / "r", "--device", "cpu")
    for _ in range(2):
        said = ncssl(*words, code=1, capsys=capsys)
        assert "1 runs could not be finished: not finite by step" in said.err
        assert len(list((tmp_path / "r").glob("*.json"))) == 2


def test_the_ledger_goes_between_its_lines(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- ledger -->\nold\n<!-- /ledger -->\nafter\n")
    (tmp_path / "results").mkdir()
    for _ in range(2):
        ncssl("report", "--results", tmp_path / "results", "--write", page, capsys=capsys)
    text = page.read_text()
    assert text.startswith("before\n<!-- ledger -->\n| claim |")
    assert text.endswith("\n<!-- /ledger -->\nafter\n")
    assert text.count("| C6 ") == 1
    assert "old" not in text
    page.write_text("nothing")
    assert "has no lines" in ncssl("report", "--write", page, code=2, capsys=capsys).err
    assert "no folder" in ncssl("report", "--results", tmp_path / "none", code=2, capsys=capsys).err


def test_a_page_of_neighbours(folder, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "near.html"
    ncssl("pretrain", "--data", folder, "--out", run, *FAST, capsys=capsys)
    said = ncssl("neighbours", run, "--out", out, "--queries", 3, "--neighbours", 2, capsys=capsys).out
    assert "3 images of pets with 2 neighbours each" in said
    text = out.read_text()
    assert text.count("<img ") == 9
    assert "train/cat/" in text
    assert "of the query's class" in text.replace("&#x27;", "'")
    others = as_folder(tmp_path / "others", {f"{i}.jpg": picture(i, (20, 30)) for i in range(4)})
    ncssl("neighbours", run, "--data", others, "--image-size", 16, "--out", out, "--neighbours", 3, capsys=capsys)
    assert out.read_text().count("<img ") == 16
    error = ncssl("neighbours", run, "--neighbours", 99, code=2, capsys=capsys).err
    assert "wanted 1 to 23 of 24 images; given 99" in error
    assert "queries is at least 1; given 0" in ncssl("neighbours", run, "--queries", 0, code=2, capsys=capsys).err


def test_advice_at_the_command_line(tmp_path, capsys):
    said = ncssl("recommend", "--images", 20000, "--size", 32, "--budget", "3m", "--device", "cpu", capsys=capsys).out
    assert "views/s here" in said
    command = said.splitlines()[-1]
    assert command.startswith(
        "ncssl pretrain --data PHOTOS --image-size 32 --size 32 --backbone tiny --loss barlow_twins --dim"
    )
    pets = as_folder(tmp_path / "pets", files(per_class=40, size=(16, 16)))
    ncssl("pretrain", "--data", pets, "--out", tmp_path / "run", *FAST, capsys=capsys)
    said = ncssl("recommend", "--run", tmp_path / "run", "--budget", "1h", "--device", "cpu", capsys=capsys).out
    assert said.startswith("80 images, views of 16 pixels, 1h of tiny at")
    assert "the pilot's views agree on" in said
    assert f"--data {pets}" in said
    assert "wants --images and --size, or --run" in ncssl("recommend", code=2, capsys=capsys).err
    error = ncssl("recommend", "--images", 9, "--size", 32, "--budget", "soon", code=2, capsys=capsys).err
    assert "--time-budget" not in error
    assert "a time such as 9m, 90s or 1h30m; given 'soon'" in error


def test_a_sweep_under_torchrun_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", "cpu-views"])
    assert stopped.value.code == 2
    assert "a sweep wants one process a run" in capsys.readouterr().err
