"""The training loop: it learns, it resumes to the bit, it stops well, and it refuses what it cannot do."""

import json
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from ncssl_core import InputError, RunStopped, build_backbone, load_run, records
from ncssl_core.augment import RECIPES, MultiView
from ncssl_core.base import write_atomically
from ncssl_core.config import read_config
from ncssl_core.datasets import batches
from ncssl_core.models import Projector
from ncssl_core.pretrain import pretrain, untrained_backbone
from ncssl_core.sweep import on_validation


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_folder(config, shapes):
    run = pretrain(config, data=shapes)
    names = {p.name for p in run.folder.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "checkpoint.pt", "backbone.safetensors", "record.json"}
    record = records.read(run.folder)
    assert record["config"] == json.loads(json.dumps(asdict(config)))
    assert record["data"]["checksum"] == shapes.checksum
    assert record["data"]["images"] == 400
    assert record["time"]["steps"] == 12
    assert record["time"]["views_per_second"] == pytest.approx(2 * record["time"]["images_per_second"])
    assert record["peak_memory_bytes"] > 2**27
    assert record["recipe"] == json.loads(json.dumps(RECIPES["shapes"].as_dict()))
    assert read_config(run.folder) == config
    lines = read_lines(run.folder)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    curves = record["curves"]
    assert curves["epoch"] == [1, 2]
    assert curves["step"] == [6, 12]
    assert curves["loss"][1] == pytest.approx(sum(line["loss"] for line in lines[3:]) / 3)
    loaded = load_run(run.folder, data=shapes)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(loaded.backbone(x), run.backbone(x), atol=1e-5, rtol=1e-4)  # other memory format


def test_the_loop_is_the_plain_loop(config, shapes):
    """Weights after two epochs equal those of the loop written out, without anything around it."""
    run = pretrain(config, data=shapes)
    torch.manual_seed(config.seed)
    backbone = build_backbone("tiny")
    encoder = nn.Sequential(backbone, Projector(128, 16)).to(memory_format=torch.channels_last)
    loss, optimizer = config.build_loss(), torch.optim.Adam(encoder.parameters(), 1e-3, weight_decay=1e-6, fused=True)
    augment, step, cpu = MultiView(32, 2, "shapes", config.seed), 0, torch.device("cpu")
    for epoch in range(2):
        for images in batches(shapes["train"].images, 64, cpu, config.seed, epoch):
            views = augment(images, step)
            optimizer.zero_grad()
            loss(encoder(views.flatten(0, 1)).unflatten(0, (2, 64))).backward()
            optimizer.step()
            step += 1
    for ours, plain in zip(run.backbone.parameters(), backbone.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(next(backbone.parameters()), next(untrained_backbone(config).parameters()))


SETTINGS = [
    {"loss": "vicreg"},
    {"views": 4, "pairing": "all-pairs"},
    {"optimizer": "sgd", "schedule": "cosine", "warmup": 1},
    {"precision": "bf16"},
    {"size": 24, "recipe": {"base": "byol"}},
    {"backbone": "resnet18", "batch": 8, "fraction": 0.04},
]


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_settings_reach_the_loop(config, shapes, change):
    run = pretrain(replace(config, **change, epochs=1), data=shapes)
    assert all(torch.isfinite(p).all() for p in run.backbone.parameters())
    assert len(run.record["curves"]["loss"]) == 1


def test_the_learning_rate_follows_its_schedule(config, shapes):
    pretrain(replace(config, schedule="cosine", warmup=1, epochs=3, log_every=1, lr=0.006), data=shapes)
    rates = [line["lr"] for line in read_lines(config.folder)]
    assert rates[:6] == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    assert rates[5] > rates[9] > rates[17] >= 0


class Stop(Exception):
    """Raised at a chosen step, like a kill that leaves what is on disk."""


def stop_at(monkeypatch, step, error=Stop):
    from ncssl_core.pretrain import _Training

    original = _Training.take_step

    def take_step(self, images):
        if self.step == step:
            if error is Stop:
                raise Stop
            signal.raise_signal(error)
        return original(self, images)

    monkeypatch.setattr(_Training, "take_step", take_step)


@pytest.mark.parametrize("step", [0, 3, 6, 9])
@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg"])
def test_a_killed_run_resumes_to_the_bit(config, shapes, monkeypatch, equal_states, step, loss, tmp_path):
    config = replace(config, loss=loss, schedule="cosine")
    whole = pretrain(replace(config, out=str(tmp_path / "whole")), data=shapes)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stop):
            pretrain(config, data=shapes)
    assert not (config.folder / "record.json").exists()
    pretrain(config, data=shapes, resume=True)
    assert equal_states(config.folder, whole.folder)
    steps = [line["step"] for line in read_lines(config.folder)]
    assert steps == [2, 4, 6, 8, 10, 12]  # no line lost or doubled


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    config, shapes, monkeypatch, equal_states, tmp_path, number
):
    whole = pretrain(replace(config, out=str(tmp_path / "whole")), data=shapes)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, 8, number)  # in the middle of the second epoch
        with pytest.raises(RunStopped, match=f"after step 9, saved; go on with .*--resume --out {config.folder}") as e:
            pretrain(config, data=shapes)
    assert e.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    pretrain(config, data=shapes, resume=True)
    assert equal_states(config.folder, whole.folder)


def test_a_finished_run_can_be_given_more_epochs(config, shapes, equal_states, tmp_path):
    whole = pretrain(replace(config, epochs=3, out=str(tmp_path / "whole")), data=shapes)
    pretrain(config, data=shapes)
    run = pretrain(replace(config, epochs=3), data=shapes, resume=True)
    assert equal_states(run.folder, whole.folder)
    assert len(run.record["curves"]["epoch"]) == 3


def test_resuming_a_finished_run_leaves_its_record(config, shapes):
    first = pretrain(config, data=shapes)
    records.extend(first.folder, probe={"trained": {"linear": 50.0}})
    again = pretrain(config, data=shapes, resume=True)
    assert again.record["probe"] == {"trained": {"linear": 50.0}}
    assert again.record["time"] == first.record["time"]
    torch.testing.assert_close(list(again.backbone.parameters()), list(first.backbone.parameters()), atol=0, rtol=0)


def test_a_custom_backbone_starts_from_the_seed(config, shapes, equal_states, tmp_path):
    torch.manual_seed(1)
    backbone = build_backbone("tiny")
    start = {k: v.clone() for k, v in backbone.state_dict().items()}
    pretrain(replace(config, out=str(tmp_path / "a")), backbone=backbone, data=shapes)
    backbone.load_state_dict(start)
    torch.manual_seed(2)  # what went before must not matter
    pretrain(replace(config, out=str(tmp_path / "b")), backbone=backbone, data=shapes)
    assert equal_states(tmp_path / "a", tmp_path / "b")


def test_without_labels_rankme_is_what_is_measured_on_the_way(config, shapes):
    unlabelled = replace(shapes, splits={"train": replace(shapes["train"], labels=None)})
    run = pretrain(replace(config, validation=80, probe_every=1), data=unlabelled, evaluate=on_validation)
    curves = run.record["curves"]
    assert curves["evaluation_epoch"] == [1, 2]
    assert all(1 < r < 80 for r in curves["evaluation_rankme"])
    assert "evaluation_linear" not in curves


def test_resuming_keeps_the_settings_and_the_images(config, shapes):
    pretrain(config, data=shapes)
    with pytest.raises(InputError, match="already holds a run: --resume goes on with it"):
        pretrain(config, data=shapes)
    with pytest.raises(InputError, match=r"was started with dim 16 \(now 32\), lr 0.001 \(now 0.1\)"):
        pretrain(replace(config, dim=32, lr=0.1), data=shapes, resume=True)
    other = replace(shapes, checksum="other")
    with pytest.raises(InputError, match="was trained on other images"):
        pretrain(replace(config, epochs=4), data=other, resume=True)


@pytest.mark.parametrize("keep", [0, 10, 5000, -20])
def test_a_torn_checkpoint_is_refused(config, shapes, keep):
    pretrain(config, data=shapes)
    path = config.folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"checkpoint.pt is cut short or is no checkpoint .*; delete it") as error:
        pretrain(replace(config, epochs=4), data=shapes, resume=True)
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_code_in_it_is_refused(config, shapes, tmp_path):
    pretrain(config, data=shapes)

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"encoder": Payload()}, config.folder / "checkpoint.pt")
    with pytest.raises(InputError, match="no checkpoint"):
        pretrain(replace(config, epochs=4), data=shapes, resume=True)
    assert not (tmp_path / "pwned").exists()


def test_a_loss_that_is_no_number_stops_the_run(config, shapes, monkeypatch):
    from ncssl_core.losses import BarlowTwinsLoss

    original, calls = BarlowTwinsLoss.terms, []

    def terms(self, z):
        calls.append(0)
        found = original(self, z)
        return {**found, "off_diagonal": found["off_diagonal"] * (float("nan") if len(calls) > 8 else 1)}

    monkeypatch.setattr(BarlowTwinsLoss, "terms", terms)
    with pytest.raises(
        RunStopped, match=r"not finite by step 9: off_diagonal; the last good checkpoint is .*checkpoint.pt"
    ):
        pretrain(replace(config, log_every=1), data=shapes)
    saved = torch.load(config.folder / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 6
    assert all(torch.isfinite(v).all() for v in saved["encoder"].values())
    assert not (config.folder / "record.json").exists()


def test_a_weight_that_is_no_number_is_not_saved(config, shapes, monkeypatch):
    from ncssl_core.pretrain import _Training

    original = _Training.take_step

    def take_step(self, images):
        terms = original(self, images)
        if self.step == 5:
            with torch.no_grad():
                next(self.encoder.parameters())[0] = float("inf")
        return terms

    monkeypatch.setattr(_Training, "take_step", take_step)
    with pytest.raises(RunStopped, match="not finite by step 6: a weight; there is no checkpoint yet"):
        pretrain(config, data=shapes)


def test_probes_on_the_way_join_the_curves_and_see_no_test_image(config, shapes):
    config = replace(config, validation=80, probe_every=1)
    seen = []

    def evaluate(backbone, run):
        pool, train, validation = run.splits
        assert not backbone.training
        seen.append((len(pool), len(train), len(validation)))
        return {"linear": 10.0 * len(seen)}

    run = pretrain(config, data=shapes, evaluate=evaluate)
    assert seen == [(320, 320, 80)] * 2
    assert run.record["curves"]["evaluation_linear"] == [10.0, 20.0]
    assert run.record["curves"]["evaluation_epoch"] == [1, 2]
    time = run.record["time"]
    assert time["total_seconds"] == pytest.approx(time["training_seconds"] + time["evaluation_seconds"])


def test_any_module_can_be_trained(config, shapes):
    import timm

    backbone = timm.create_model("resnet10t", num_classes=0)
    before = backbone.layer1[0].conv1.weight.clone()
    run = pretrain(replace(config, epochs=1), backbone=backbone, data=shapes)
    assert run.backbone is backbone
    assert not torch.equal(backbone.layer1[0].conv1.weight, before)
    assert run.record["model"] == {"custom": "ResNet", "features": 512, "parameters": sum(
        p.numel() for p in backbone.parameters())}  # fmt: skip
    with pytest.raises(InputError, match="passed from Python"):
        load_run(run.folder, data=shapes)


def test_the_weights_go_into_a_torchvision_resnet(config, shapes):
    """The README's lines."""
    import torchvision
    from safetensors.torch import load_file

    run = pretrain(replace(config, backbone="resnet18", batch=8, fraction=0.04, epochs=1), data=shapes)
    model = torchvision.models.resnet18()
    model.conv1, model.maxpool, model.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
    model.load_state_dict(load_file(run.folder / "backbone.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), run.backbone(x), atol=1e-5, rtol=1e-4)


def test_one_step_of_the_papers_model(config, shapes):
    run = pretrain(replace(config, backbone="resnet50", dim=64, batch=4, fraction=0.01, epochs=1, views=4), data=shapes)
    assert run.record["model"]["features"] == 2048
    assert run.record["time"]["steps"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 1}, "views is at least 2; given 1"),
        ({"batch": 500}, "a batch of 500 is more than the 400 images"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"lr": float("nan")}, "lr is at least 0"),
        ({"kappa": -1.0}, "kappa is a finite weight"),
        ({"backbone": "resnet"}, "unknown backbone 'resnet'"),
        ({"recipe": "none"}, "unknown recipe 'none'"),
        ({"precision": "fp16"}, "fp16 wants a CUDA device"),
        ({"device": "cuda:77"}, "no device 'cuda:77' here"),
        ({"device": "meta"}, "wants a device of type cpu, cuda or mps; given 'meta'"),
        ({"loss": "vicregg"}, "unknown loss 'vicregg' .did you mean 'vicreg'"),
        ({"schedule": "cos"}, "unknown schedule 'cos'.*constant, cosine"),
        ({"seed": 2**40}, "seed is less than 2\\^32"),
        ({"recipe": {"base": 5}}, "base is a recipe's name"),
        ({"probe_every": 1}, "probe_every wants images to probe on"),
        ({"fraction": 0.0}, "fraction is a share"),
        ({"size": 2}, "size is at least 8"),
        ({"validation": 400}, "cannot hold out 400 of 400"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_leave_nothing_behind(config, shapes, change, message):
    with pytest.raises(InputError, match=message):
        pretrain(replace(config, **change), data=shapes)
    assert not config.folder.exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_work(config, shapes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*file is not a folder that may be written to"):
        pretrain(replace(config, out=str(tmp_path / "file" / "run")), data=shapes)


def test_a_run_without_its_weights_is_refused(config, shapes):
    pretrain(config, data=shapes)
    write_atomically(config.folder / "backbone.safetensors", lambda p: p.write_bytes(b"torn"))
    with pytest.raises(InputError, match="backbone.safetensors holds no tiny"):
        load_run(config.folder, data=shapes)


def test_a_run_reads_an_array_on_disk_and_resumes_in_it(config, shapes, tmp_path, equal_states):
    np.save(tmp_path / "set.npy", shapes["train"].images.numpy())
    whole, parts = (replace(config, data=str(tmp_path / "set.npy"), out=str(tmp_path / o)) for o in ("whole", "parts"))
    pretrain(whole)
    with pytest.raises(RunStopped):
        pretrain(parts, stop_at=0)
    pretrain(parts, resume=True)
    assert equal_states(tmp_path / "whole", tmp_path / "parts")
