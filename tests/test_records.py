"""Records: written whole, read strictly, put in a table."""

import json

import numpy as np
import pytest
from safetensors import SafetensorError

from ncssl_core import InputError, PretrainConfig, records
from ncssl_core.base import write_atomically

RECORD = {
    "config": {**PretrainConfig(dim=64, lambd=0.1, epochs=3, seed=1).plain()},
    "model": {"custom": None},
    "recipe": {},
    "size": 32,
    "data": {"name": "CIFAR-10-JPEG", "images": 100},
    "environment": {"device": "cpu"},
    "time": {"training_seconds": 12.5, "images_per_second": 800.0},
    "curves": {"epoch": [1, 2], "loss": [3.0, float("nan")]},
}  # fmt: skip


def test_a_record_comes_back(tmp_path):
    records.write(tmp_path / "record.json", RECORD)
    back = records.read(tmp_path)
    assert back["schema"] == records.SCHEMA
    assert back["config"] == RECORD["config"]
    assert back["curves"]["loss"] == [3.0, None]  # JSON has no NaN
    more = records.extend(tmp_path, probe={"trained": {"linear": 50.0}})
    assert records.read(tmp_path / "record.json") == more


def test_the_table_has_what_is_compared(tmp_path):
    for i, name in enumerate(["run0", "lr0.01"]):
        records.write(tmp_path / name / "record.json", {**RECORD, "probe": {"trained": {"linear": 40.0 + i}}})
    vicreg = {**RECORD, "config": {**RECORD["config"], "loss": "vicreg", "cov_coeff": 2.0, "sim_coeff": 16.0}}
    records.write(tmp_path / "loose.json", vicreg)
    frame = records.table([tmp_path / "run0", tmp_path / "lr0.01", tmp_path / "loose.json"])
    assert frame["run"].tolist() == ["run0", "lr0.01", "loose"]
    assert frame["kappa"].tolist() == [6.4, 6.4, 8.0]  # lambd * dim; cov_coeff * dim / sim_coeff
    assert frame["linear"][1] == 41
    assert np.isnan(frame["linear"][2])
    assert len(frame.attrs["records"]) == 3


def test_every_truncation_is_refused_with_one_sentence(tmp_path):
    path = tmp_path / "record.json"
    records.write(path, RECORD)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut short or is no record") as error:
            records.read(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [RuntimeError("file write failed"), SafetensorError("I/O error: no space")])
def test_a_library_that_cannot_write_is_one_sentence(tmp_path, error):
    def fail(_):
        raise error

    with pytest.raises(InputError, match=f"cannot write .*: {error}"):
        write_atomically(tmp_path / "file", fail)


def test_written_files_have_the_usual_permissions(tmp_path):
    write_atomically(tmp_path / "a", lambda p: (p.write_text(""), p.chmod(0o600)))
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "newer than this package's"),
        ({"config": []}, "config, config.loss, .* missing or of the wrong type"),
        ({"time": None}, "time, time.training_seconds, time.images_per_second missing"),
        ({"data": {"name": 3, "images": 1}}, "data.name missing or of the wrong type"),
        ({"config": {**RECORD["config"], "dim": "wide"}}, "config.dim missing or of the wrong type"),
        ({"config": {**RECORD["config"], "dim": 0}}, "config.dim below 1"),
        ({"config": {**RECORD["config"], "kappa": None}}, "config.kappa missing or of the wrong type"),
        ({"recipe": {"scale": [None]}}, "its recipe's scale is no number, word or list of numbers"),
        ({"curves": {"epoch": [1, 2], "loss": [1]}}, "its curves are no columns of one length"),
        ({"curves": {"evaluation_linear": [None]}}, "evaluation_linear holds what is no number"),
        ({"probe": {"trained": {"linear": None}}}, "probe.trained holds what is no number"),
        ({"curves": {"evaluation_epoch": [1, 1]}}, "evaluation_epoch does not rise"),
        ({"probe": {"pixels": None}}, "probe.pixels of the wrong type"),
    ],
)
def test_foreign_records_are_refused(tmp_path, change, message):
    (tmp_path / "record.json").write_text(json.dumps({"schema": 1, **RECORD, **change}))
    with pytest.raises(InputError, match=message):
        records.read(tmp_path)


def test_a_missing_record_says_whether_a_run_began(tmp_path):
    with pytest.raises(InputError, match="has none"):
        records.read(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match="unfinished run"):
        records.read(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda p: p.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="cannot write .*: No space left on device"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_environment_names_versions_and_commit():
    about = records.environment()
    assert about["torch"].startswith("2.")
    assert about["commit"] is None or len(about["commit"].split("+")[0]) == 40
