"""Backbones and projectors: shapes, stems, and a custom module."""

import pytest
import torch
import torchvision
from torch import nn

from ncssl_core import InputError, Projector, build_backbone
from ncssl_core.models import feature_dim


@pytest.mark.parametrize(("name", "features"), [("tiny", 128), ("resnet18", 512), ("resnet50", 2048)])
def test_backbones_give_vectors(name, features):
    assert feature_dim(build_backbone(name), 32) == features


def test_tiny_is_tiny():
    assert sum(p.numel() for p in build_backbone("tiny").parameters()) == pytest.approx(300_000, rel=0.05)


def test_the_small_stem_keeps_the_resolution_and_its_relu():
    model = build_backbone("resnet18")
    seen = []
    model.layer1.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    model(torch.randn(2, 3, 32, 32))
    assert seen[0].shape == (2, 64, 32, 32)
    assert seen[0].min() == 0


def test_the_imagenet_stem_is_torchvisions():
    ours, theirs = build_backbone("resnet18", "imagenet"), torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("layers", "count"), [(1, 16 * 8 + 8), (2, 16 * 32 + 2 * 32 + 32 * 8 + 8)])
def test_projector(layers, count):
    projector = Projector(16, 8, hidden=32, layers=layers)
    assert projector(torch.randn(4, 16)).shape == (4, 8)
    assert sum(p.numel() for p in projector.parameters()) == count
    assert sum(p.numel() for p in Projector(16, 8).parameters()) == 16 * 8 + 2 * 8 + 8 * 8 + 8  # hidden = dim


def test_any_module_from_images_to_vectors_will_do():
    import timm

    model = timm.create_model("resnet10t", num_classes=0)
    assert feature_dim(model, 32) == 512
    with pytest.raises(InputError, match=r"maps \(2, 3, 32, 32\) to \(2, 3, 32, 32\), wanted \(2, features\)"):
        feature_dim(nn.Identity(), 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_backbone("resnet5"), "unknown backbone 'resnet5'.*resnet101, .*tiny"),
        (lambda: build_backbone("tiny", "large"), "unknown stem 'large'; valid: imagenet, small"),
        (lambda: Projector(8, 0), "dim is at least 1; given 0"),
    ],
)
def test_bad_names_and_sizes(make, message):
    with pytest.raises(InputError, match=message):
        make()
