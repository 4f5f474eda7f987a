"""What only a GPU can show: `pytest -m gpu`. Without one, everything here is skipped."""

from dataclasses import replace

import pytest
import torch
import yaml

from ncssl_core import BarlowTwinsLoss, MultiView, VICRegLoss, build_backbone, linear_probe
from ncssl_core.datasets import batches, place
from ncssl_core.pretrain import Run, _Training, pretrain
from ncssl_core.sweep import Sweep, read_suite

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LOSSES = [BarlowTwinsLoss(0.02, pairing=p) for p in ("leave-one-out", "all-pairs", "mean")] + [VICRegLoss()]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 256, 64), (4, 64, 512)])
def test_losses_agree_with_float64_under_autocast(loss, dtype, shape):
    z = (torch.randn(shape, device="cuda") + torch.randn(shape[1:], device="cuda")).to(dtype)
    with torch.autocast("cuda", torch.bfloat16):
        ours = loss(z)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(loss(z.double().cpu()).item(), rel=1e-3)


@pytest.mark.parametrize("recipe", ["cifar", "stl", "byol", "shapes"])
def test_views_agree_with_the_cpu_given_the_same_draw(recipe):
    images = torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8)
    augment = MultiView(32, 4, recipe)
    p = augment.sample(images.cuda())
    on_gpu = augment.apply(images.cuda(), p)
    on_cpu = augment.apply(images, type(p)(**{k: v if k == "order" else v.cpu() for k, v in vars(p).items()}))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=0)
    assert torch.equal(augment(images.cuda(), 3), augment(images.cuda(), 3))


@pytest.mark.parametrize("change", [{"precision": "auto"}, {"precision": "fp16"}, {"compile": True}], ids=str)
def test_a_run_learns_and_resumes(config, shapes, change, tmp_path):
    config = replace(config, device="cuda", epochs=3, **change)
    whole = pretrain(replace(config, out=str(tmp_path / "whole")), data=shapes)
    pretrain(replace(config, epochs=2), data=shapes)
    resumed = pretrain(config, data=shapes, resume=True)
    losses = whole.record["curves"]["loss"]
    assert losses[-1] < losses[0]
    assert resumed.record["curves"]["loss"][-1] == pytest.approx(losses[-1], rel=0.1)
    assert whole.record["peak_memory_bytes"] < 2**32


def test_a_sweep_keeps_the_images_and_the_compiled_backbone_on_the_device(shapes, tmp_path):
    path = tmp_path / "try.yaml"
    base = {"epochs": 1, "batch": 64, "validation": 50, "probe_every": 1, "probe_images": 100, "compile": True}
    path.write_text(yaml.safe_dump({"base": base, "runs": [{"dim": [16, 64], "seed": [0, 1]}]}))
    device = torch.device("cuda", 0)
    data = shapes.to(device)
    assert data["train"].images.is_cuda
    todo, startup = Sweep(read_suite(path), data, tmp_path / "out", device), []
    while name := todo.next():
        startup.append(todo.do(name)["time"]["startup_seconds"])
    assert len(startup) == 4
    assert max(startup[1:]) < 2  # seconds: only the first step of all waits for the compiler


def test_the_probe_gives_the_same_on_both_devices():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (2000,), generator=generator)
    x = torch.randn(5, 64, generator=generator)[y] + 2 * torch.randn(2000, 64, generator=generator)
    data = (x[:1500], y[:1500], x[1500:], y[1500:])
    on_gpu = linear_probe(*(t.cuda() for t in data))["accuracy"]
    assert on_gpu == pytest.approx(linear_probe(*data)["accuracy"], abs=1.0)


def test_images_that_do_not_fit_are_streamed_and_said_so(shapes, capsys):
    images, device = shapes["train"].images, torch.device("cuda", 0)
    resident, streamed = place(images, device), place(images, device, reserve=0.0)
    assert resident.is_cuda
    assert not streamed.is_cuda
    assert "stay in host memory" in capsys.readouterr().err
    for a, b in zip(batches(resident, 64, device, 0, 0), batches(streamed, 64, device, 0, 0), strict=True):
        assert a.is_cuda
        assert torch.equal(a, b)


def test_a_step_never_waits_for_the_device(config, shapes):
    """Views, forward, backward and optimiser only queue work; a synchronising call raises here."""
    run = Run(replace(config, device="cuda"), config.folder, build_backbone("tiny"), shapes, torch.device("cuda", 0))
    training = _Training(run, None, None)
    images = next(batches(place(run.splits[0].images, run.device), 64, run.device, 0, 0))
    training.take_step(images)  # the first call allocates and picks kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = training.take_step(images)
        training.log.add(1, 0, 0.0, 0.1, terms)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    training.log.flush()
    assert len((config.folder / "metrics.jsonl").read_text().splitlines()) == 1
