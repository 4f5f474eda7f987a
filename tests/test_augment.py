"""Views against torchvision's own operations, one sample at a time, and against its distributions."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from scipy import stats

from ncssl_core import RECIPES, InputError, MultiView, Recipe

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PLAIN = Recipe(flip=0, jitter=0, gray=0, **UNIT)
WHOLE = replace(PLAIN, scale=(1.0, 1.0), ratio=(1.0, 1.0))


def photographs(batch=8, height=32, width=32, seed=0):
    """Smooth colour images with some pure greys, blacks and whites in them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, height // 4, width // 4, generator=generator)
    x = F.resize(x, [height, width], antialias=True) * 1.4 - 0.2
    x = x.clamp(0, 1)
    x[:, :, :2] = x[:, :1, :2]  # grey rows
    x[:, :, 2], x[:, :, 3] = 0.0, 1.0
    return x


def by_torchvision(images, p, recipe, size):
    """Every view of every sample through torchvision's functional operations, with the parameters drawn."""
    views, batch = p.top.shape
    out = torch.empty(views, batch, 3, size, size)
    apply = {
        "brightness": F.adjust_brightness,
        "contrast": F.adjust_contrast,
        "saturation": F.adjust_saturation,
        "hue": F.adjust_hue,
    }
    for v in range(views):
        for n in range(batch):
            q = p[v, n]
            x = images[n] / 255 if images.dtype == torch.uint8 else images[n]
            box = [int(q.top), int(q.left), int(q.height), int(q.width)]
            x = F.resized_crop(x, *box, [size, size], antialias=True)
            x = F.horizontal_flip(x) if q.flip else x
            for name in p.order if recipe.jitter else ():
                x = apply[name](x, float(getattr(q, name)))
            x = F.rgb_to_grayscale(x, 3) if q.gray else x
            kernel = 2 * max(1, round(0.05 * size)) + 1
            x = F.gaussian_blur(x, [kernel, kernel], [float(q.sigma)] * 2) if q.sigma > 0 else x
            x = F.solarize(x, recipe.threshold) if q.solarize else x
            out[v, n] = F.normalize(x, recipe.mean, recipe.std)
    return out


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (96, 96, 64), (40, 56, 24), (20, 12, 32), (64, 64, 9)]
)
def test_crop_and_flip_equal_torchvision(height, width, size):
    recipe, images = replace(PLAIN, flip=0.5), photographs(16, height, width)
    multiview = MultiView(size, 3, recipe)
    p = multiview.sample(images)
    torch.testing.assert_close(multiview.apply(images, p), by_torchvision(images, p, recipe, size), atol=1e-5, rtol=0)


ONE_AT_A_TIME = {
    "brightness": {"jitter": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "contrast": {"jitter": 1.0, "brightness": 0.0, "saturation": 0.0, "hue": 0.0},
    "saturation": {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "hue": 0.0},
    "hue": {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.5},
    "jitter": {"jitter": 0.7},
    "gray": {"gray": 0.5},
    "blur": {"blur": 0.8},
    "solarize": {"solarize": 0.5},
    "solarize low": {"solarize": 1.0, "threshold": 0.2},
}


@pytest.mark.parametrize("change", ONE_AT_A_TIME.values(), ids=ONE_AT_A_TIME)
def test_each_operation_equals_torchvision(change):
    recipe, images = replace(WHOLE, **change), photographs(32)
    multiview = MultiView(32, 2, recipe)
    p = multiview.sample(images)
    views = multiview.apply(images, p)
    assert not torch.equal(views[0], images)  # the operation did happen
    torch.testing.assert_close(views, by_torchvision(images, p, recipe, 32), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("step", range(3))
def test_recipes_equal_torchvision(name, step):
    images = (photographs(16, 48, 48) * 255).to(torch.uint8)
    multiview = MultiView(32, 2, name)
    p = multiview.sample(images, step)
    expected = by_torchvision(images, p, RECIPES[name], 32)
    torch.testing.assert_close(multiview.apply(images, p), expected, atol=1e-3, rtol=0)  # of unit std: 1e-4 / .22


def drawn(recipe, views=2, batch=4000, size=(32, 32)):
    return MultiView(32, views, recipe, seed=3).sample(torch.zeros(batch, 3, *size, dtype=torch.uint8))


@pytest.mark.parametrize(("size", "name"), [((32, 32), "cifar"), ((96, 96), "stl"), ((30, 90), "cifar")])
def test_boxes_have_torchvisions_distribution(size, name):
    recipe = RECIPES[name]
    torch.manual_seed(0)
    crop = T.RandomResizedCrop(32, scale=recipe.scale, ratio=recipe.ratio)
    theirs = [crop.make_params([torch.zeros(3, *size)]) for _ in range(6000)]
    ours = drawn(recipe, 2, 3000, size)
    for field in ("top", "left", "height", "width"):
        a, b = getattr(ours, field).flatten().numpy(), np.array([t[field] for t in theirs])
        assert stats.ks_2samp(a, b).pvalue > 1e-3, field
    right, bottom = ours.left + ours.width, ours.top + ours.height
    assert (right <= size[1]).all()
    assert (bottom <= size[0]).all()
    assert min(ours.top.min(), ours.left.min()) >= 0


def test_factors_have_torchvisions_distributions():
    recipe = replace(RECIPES["byol"], jitter=1.0, hue=0.1, blur=1.0)
    torch.manual_seed(0)
    jitter = T.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    theirs = [jitter.make_params([]) for _ in range(6000)]
    ours = drawn(recipe)
    for field in ("brightness", "contrast", "saturation", "hue"):
        expected = np.array([float(t[f"{field}_factor"]) for t in theirs])
        assert stats.ks_2samp(getattr(ours, field).flatten().numpy(), expected).pvalue > 1e-3, field
    low, high = recipe.sigma
    assert stats.kstest(ours.sigma.flatten().numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_probabilities_are_met_and_may_differ_by_view():
    ours = drawn(RECIPES["byol"], views=4, batch=4000)
    expected = {"flip": [0.5] * 4, "gray": [0.2] * 4, "solarize": [0, 0.2, 0, 0.2], "blurred": [1, 0.1, 1, 0.1]}
    for field, probability in expected.items():
        happened = (ours.sigma > 0 if field == "blurred" else getattr(ours, field)).float().mean(1)
        np.testing.assert_allclose(happened, probability, atol=0.03, err_msg=field)
    jittered = (ours.brightness != 1).float().mean()
    np.testing.assert_allclose(jittered, 0.8, atol=0.02)
    together = ((ours.brightness != 1) == (ours.hue != 0)).float().mean()
    assert together > 0.999  # one coin for the four parts


def test_the_order_of_the_jitter_is_uniform_over_steps():
    multiview, images = MultiView(8, 2), torch.zeros(2, 3, 8, 8)
    orders = Counter(multiview.sample(images, step).order for step in range(2400))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_every_view_of_every_sample_has_its_own_draw():
    one = photographs(1).expand(64, -1, -1, -1)
    views = MultiView(32, 4, "cifar")(one).flatten(0, 1)
    assert torch.pdist(views.flatten(1)).min() > 0.1


def test_same_seed_and_step_same_views():
    images = photographs()
    a, b, other = MultiView(16, 2, seed=5), MultiView(16, 2, seed=5), MultiView(16, 2, seed=6)
    assert torch.equal(a(images, 7), b(images, 7))
    assert not torch.equal(a(images, 7), a(images, 8))
    assert not torch.equal(a(images, 7), other(images, 7))
    first, second = a(images), a(images)  # the counter names the step when nobody does
    assert torch.equal(first, b(images, 0))
    assert torch.equal(second, b(images, 1))


def test_chunks_do_not_change_the_views(monkeypatch):
    images, multiview = photographs(13, 48, 40), MultiView(24, 3, "byol")
    expected = multiview(images, 1)
    monkeypatch.setattr("ncssl_core.augment._CHUNK_VALUES", 3 * 24 * 24 * 3 * 2)
    torch.testing.assert_close(multiview(images, 1), expected, atol=1e-6, rtol=0)


def test_uint8_and_float_images_give_the_same_views():
    images = (photographs() * 255).to(torch.uint8)
    multiview = MultiView(32, 2, "stl")
    torch.testing.assert_close(multiview(images, 0), multiview(images / 255, 0), atol=1e-5, rtol=0)


def test_parameters_can_be_applied_again_and_picked_apart():
    images, multiview = photographs(), MultiView(32, 4, "cifar")
    p = multiview.sample(images)
    views = multiview.apply(images, p)
    assert torch.equal(multiview.apply(images, p), views)
    torch.testing.assert_close(multiview.apply(images[2:5], p[1:2, 2:5]), views[1:2, 2:5], atol=1e-6, rtol=0)


def test_a_recipe_may_change_a_named_one():
    assert Recipe.named({"base": "stl", "gray": 0.5}) == replace(RECIPES["stl"], gray=0.5)
    assert Recipe.named({"scale": [0.5, 1.0]}).scale == (0.5, 1.0)
    assert Recipe.named(RECIPES["byol"].as_dict()) == RECIPES["byol"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("cifra", "did you mean 'cifar'.*byol, cifar, shapes, stl"),
        ({"grey": 0.1}, "unknown key in recipe 'grey'.*'gray'"),
        ({"gray": 1.5}, "gray is a probability"),
        ({"scale": [0.5, 0.1]}, "scale is a range"),
        ({"scale": [0.5, 1.1]}, "at most 1"),
        ({"hue": 0.7}, r"hue lies in \[0, 0.5\]"),
        ({"std": [0, 1, 1]}, "std > 0"),
        ({"gray": "much"}, "gray is a number or a list of numbers; given 'much'"),
        ({"mean": "abc"}, "mean is a number or a list"),
        ({"mean": 0.5}, "wrong type"),
    ],
)
def test_bad_recipes_are_refused(recipe, message):
    with pytest.raises(InputError, match=message):
        MultiView(32, 2, recipe)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_bad_images_are_refused(shape):
    with pytest.raises(InputError, match="wanted \\(batch, 3, height, width\\)"):
        MultiView(32, 2)(torch.zeros(shape))
    with pytest.raises(InputError, match="parameters were drawn for a batch of 2, given 3 images"):
        MultiView(8).apply(torch.zeros(3, 3, 8, 8), MultiView(8).sample(torch.zeros(2, 3, 8, 8)))
