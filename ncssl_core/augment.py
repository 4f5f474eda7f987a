"""Many views of each image, every view with its own draw, on the device where the images lie.

    views = MultiView(size=32, views=4, recipe="cifar")(images)  # (batch, 3, H, W) -> (4, batch, 3, 32, 32)

A random resized crop with a flip is a weighted sum of a few columns, then of a few rows, of the image: each is one
`embedding_bag` for all samples and views. A blur is two batched matrix products. Jitter, grayscale and solarisation are
elementwise with one factor a sample. No step loops over samples. On a CPU the batch goes through in chunks that stay in
cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ncssl_core.base import InputError, unknown_name

_GRAY = (0.2989, 0.587, 0.114)  # torchvision's luma weights
_JITTER = ("brightness", "contrast", "saturation", "hue")
_CHUNK_VALUES = 2**20  # floats at a time on a CPU (4 MB): few enough for the cache, enough to hide the cost of a call


@dataclass(frozen=True)
class Recipe:
    """What a view may undergo, in this order, with torchvision's meaning and distribution of every parameter.

    Random resized crop (`scale`: share of the image's area, `ratio`: width over height), horizontal flip with
    probability `flip`; with probability `jitter` brightness, contrast, saturation and hue by factors from
    [1 - x, 1 + x] (hue: a shift from [-x, x] turns); grayscale with probability `gray`; Gaussian blur with probability
    `blur`, its width `sigma` pixels, its kernel a tenth of the image; solarisation above `threshold` with probability
    `solarize`; then (x - mean) / std. `blur` and `solarize` may be one probability a view, cycled.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.2
    blur: float | tuple[float, ...] = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float | tuple[float, ...] = 0.0
    threshold: float = 0.5
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not all(isinstance(v, int | float) for v in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"recipe: {f.name} is a number or a list of numbers; given {value!r}")
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            value = getattr(self, name)
            if not all(0 <= p <= 1 for p in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"recipe: {name} is a probability in [0, 1]; given {value}")
        for name, low in (("scale", 0), ("ratio", 0), ("sigma", 0)):
            pair = getattr(self, name)
            if len(pair) != 2 or not low < pair[0] <= pair[1]:
                raise InputError(f"recipe: {name} is a range [low, high] with 0 < low <= high; given {pair}")
        if self.scale[1] > 1:
            raise InputError(f"recipe: scale is a share of the image, at most 1; given {self.scale}")
        for name, high in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"recipe: {name} lies in [0, {high}]; given {getattr(self, name)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"recipe: mean and std are three numbers, std > 0; given {self.mean} and {self.std}")

    @classmethod
    def named(cls, recipe: str | Mapping[str, Any] | Recipe) -> Recipe:
        """A recipe by name, or from a dict that changes a named one: `{"base": "stl", "gray": 0.2}`.

        Raises:
            InputError: unknown name or key (the valid ones are listed), or a value out of range.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise unknown_name("recipe", recipe, RECIPES)
            return RECIPES[recipe]
        if not isinstance(recipe.get("base", "cifar"), str):
            raise InputError(f"recipe: base is a recipe's name, one of {', '.join(RECIPES)}; given {recipe['base']!r}")
        changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items() if k != "base"}
        known = [f.name for f in fields(cls)]
        for key in changes:
            if key not in known:
                raise unknown_name("key in recipe", key, ["base", *known])
        try:
            return replace(cls.named(recipe.get("base", "cifar")), **changes)
        except TypeError as error:
            raise InputError(f"recipe: a value has the wrong type ({error}); given {dict(recipe)}") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return asdict(self)


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RECIPES = {
    "cifar": Recipe(),  # fastssl's for CIFAR-10, with hue (0 in their fast path)
    "stl": Recipe(scale=(0.2, 1.0), gray=0.1, **_IMAGENET),  # fastssl's for STL-10
    "shapes": Recipe(  # for the built-in set: colours change until little but the shape is shared between views
        scale=(0.4, 1.0), jitter=1.0, brightness=0.6, contrast=0.6, saturation=1.0, hue=0.5, gray=0.3
    ),
    "byol": Recipe(saturation=0.2, blur=(1.0, 0.1), solarize=(0.0, 0.2), **_IMAGENET),  # BYOL, as both papers use it
}


@dataclass(frozen=True)
class ViewParameters:
    """One draw for every view of every sample; each tensor is `(views, batch)`.

    Crop box in pixels (`top`, `left`, `height`, `width`), `flip`, jitter factors (1, or 0 for `hue`, where a sample
    is not jittered), `gray`, `sigma` (0: no blur), `solarize`; `order` of the jitter's parts, one for the whole draw.
    """

    top: Int[Tensor, "views batch"]
    left: Int[Tensor, "views batch"]
    height: Int[Tensor, "views batch"]
    width: Int[Tensor, "views batch"]
    flip: Bool[Tensor, "views batch"]
    brightness: Float[Tensor, "views batch"]
    contrast: Float[Tensor, "views batch"]
    saturation: Float[Tensor, "views batch"]
    hue: Float[Tensor, "views batch"]
    gray: Bool[Tensor, "views batch"]
    sigma: Float[Tensor, "views batch"]
    solarize: Bool[Tensor, "views batch"]
    order: tuple[str, ...] = _JITTER

    def __getitem__(self, index: Any) -> ViewParameters:
        """The same draw for some views or samples: every tensor indexed alike."""
        return ViewParameters(
            **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "order"}, order=self.order
        )


class MultiView:
    """Draw `views` random views of every image of a batch.

    Each view of each sample has its own crop, flip, jitter factors, grayscale, blur and solarisation; only the order
    of the jitter's four parts is drawn once a call. Draws depend on (seed, step) and the device's kind alone, so a run
    resumed at a step sees the views that it would have seen.

    Args:
        size: side of the square views, pixels.
        views: how many a sample.
        recipe: `"cifar"`, `"stl"`, `"byol"`, `"shapes"`, a `Recipe`, or a dict of changes to one (see `Recipe.named`).
        seed: of all draws.

    Raises:
        InputError: size < 1, views < 1, or a bad recipe.
    """

    def __init__(
        self, size: int, views: int = 2, recipe: str | Mapping[str, Any] | Recipe = "cifar", seed: int = 0
    ) -> None:
        if size < 1 or views < 1:
            raise InputError(f"MultiView wants size >= 1 and views >= 1; given size={size}, views={views}")
        self.size, self.views, self.seed = size, views, seed
        self.recipe = Recipe.named(recipe)
        self.step = 0

    def __repr__(self) -> str:
        return f"MultiView(size={self.size}, views={self.views}, recipe={self.recipe}, seed={self.seed})"

    def __call__(self, images: Tensor, step: int | None = None) -> Float[Tensor, "views batch 3 size size"]:
        """Draw and apply: `(batch, 3, H, W)`, uint8 or float in [0, 1], to normalised views on the same device.

        Args:
            images: the batch.
            step: names the draw; without it, a counter that goes up by one a call.
        """
        return self.apply(images, self.sample(images, step))

    def sample(self, images: Tensor, step: int | None = None) -> ViewParameters:
        """Draw the parameters for a batch of images of this shape, on its device, without applying them."""
        _check_images(images)
        step, self.step = (self.step, self.step + 1) if step is None else (step, self.step)
        generator = torch.Generator(images.device).manual_seed(_mix(self.seed, step))
        batch, _, height, width = images.shape
        return _draw(self.recipe, (self.views, batch), (height, width), generator, images.device)

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: ViewParameters) -> Float[Tensor, "views batch 3 size size"]:
        """The views that given parameters make of `(batch, 3, H, W)` images.

        Raises:
            InputError: the images are no such tensor, or another number of them than the parameters are for.
        """
        _check_images(images)
        views, batch = parameters.top.shape
        if batch != len(images):
            raise InputError(f"parameters were drawn for a batch of {batch}, given {len(images)} images")
        if images.device.type == "cpu":
            _keep_freed_memory()
        out = torch.empty((views, batch, 3, self.size, self.size), device=images.device)
        per_chunk = max(1, _CHUNK_VALUES // (3 * self.size**2 * views)) if images.device.type == "cpu" else batch
        taps = _taps(parameters, (images.shape[2], images.shape[3]), self.size)
        for start in range(0, batch, per_chunk):
            part = slice(start, start + per_chunk)
            part_taps = _Taps(taps.pixels[:, :, part], taps.weights[:, :, part])
            self._apply_chunk(images[part], part_taps, parameters[:, part], out[:, part])
        return out

    def _apply_chunk(
        self, images: Tensor, taps: _Taps, p: ViewParameters, out: Float[Tensor, "views batch 3 size size"]
    ) -> None:
        recipe = self.recipe
        columns_first = images.permute(1, 0, 3, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if images.dtype == torch.uint8:
            columns_first.mul_(1 / 255)
        x = _crop(columns_first, taps)
        for name in p.order if recipe.jitter > 0 else ():
            if getattr(recipe, name) > 0:
                _OPERATIONS[name](x, getattr(p, name)[..., None, None])
        if recipe.gray > 0:
            x.lerp_(_luma(x).expand_as(x), p.gray[..., None, None].float())
        if recipe.blur != 0:
            x = _blur(x, p.sigma)
        if recipe.solarize != 0:
            x = torch.where((x >= recipe.threshold) & p.solarize[..., None, None], 1 - x, x)
        for channel, (mean, std) in enumerate(zip(recipe.mean, recipe.std, strict=True)):
            out[:, :, channel].copy_(x[channel].sub_(mean).mul_(1 / std))


def clean_view(
    images: Tensor, size: int, recipe: str | Mapping[str, Any] | Recipe = "cifar"
) -> Float[Tensor, "batch 3 size size"]:
    """All of each image, resized to `size` and normalised as the recipe's views are: what a probe looks at.

    Raises:
        InputError: as `MultiView` does.
    """
    plain = replace(Recipe.named(recipe), flip=0, jitter=0, gray=0, blur=0, solarize=0)
    multiview = MultiView(size, 1, plain)
    p = multiview.sample(images, 0)
    zero = torch.zeros_like(p.top)
    whole = replace(p, top=zero, left=zero, height=zero + images.shape[2], width=zero + images.shape[3])
    return multiview.apply(images, whole)[0]


# ---- drawing ----------------------------------------------------------------------------------------------------


def _mix(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers, far apart for neighbours (splitmix64's finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


def _draw(
    recipe: Recipe, shape: tuple[int, int], image: tuple[int, int], generator: torch.Generator, device: torch.device
) -> ViewParameters:
    def uniform(low: float, high: float, *more: int) -> Tensor:
        return torch.empty((*shape, *more), device=device).uniform_(low, high, generator=generator)

    def happens(probability: float | tuple[float, ...]) -> Tensor:
        coins = uniform(0, 1)
        if not isinstance(probability, tuple):
            return coins < probability
        return torch.stack([view < probability[v % len(probability)] for v, view in enumerate(coins)])

    top, left, height, width = _draw_boxes(recipe, uniform, image)
    jittered = happens(recipe.jitter)
    factors = {n: torch.where(jittered, uniform(1 - getattr(recipe, n), 1 + getattr(recipe, n)), 1.0)
               for n in _JITTER[:3]}  # fmt: skip
    order = torch.randperm(4, generator=torch.Generator().manual_seed(generator.initial_seed()))
    return ViewParameters(
        top, left, height, width,
        flip=happens(recipe.flip),
        **factors,
        hue=torch.where(jittered, uniform(-recipe.hue, recipe.hue), 0.0),
        gray=happens(recipe.gray),
        sigma=torch.where(happens(recipe.blur), uniform(*recipe.sigma), 0.0),
        solarize=happens(recipe.solarize),
        order=tuple(_JITTER[i] for i in order.tolist()),
    )  # fmt: skip


def _draw_boxes(recipe: Recipe, uniform: Any, image: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torchvision's RandomResizedCrop: the first of ten tries that fits, else the largest central box."""
    rows, columns = image
    area = uniform(*recipe.scale, 10) * (rows * columns)
    ratio = uniform(*map(math.log, recipe.ratio), 10).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)
    first = fits.float().argmax(-1, keepdim=True)
    width, height = (v.gather(-1, first).squeeze(-1) for v in (widths, heights))
    whole = min(max(columns / rows, recipe.ratio[0]), recipe.ratio[1])  # the fallback's width over height
    none = ~fits.any(-1)
    width = torch.where(none, min(columns, round(rows * whole)), width)
    height = torch.where(none, min(rows, round(columns / whole)), height)
    top, left = ((uniform(0, 1) * (side - v + 1)).floor() for side, v in ((rows, height), (columns, width)))
    top = torch.where(none, (rows - height) // 2, top)
    left = torch.where(none, (columns - width) // 2, left)
    return top.long(), left.long(), height.long(), width.long()


# ---- applying, on planes (3, views, batch, H, W); a sample's factor is (views, batch, 1, 1) ----------------------
# On a CPU `where` and everything boolean run far slower than arithmetic; hence lerp, copysign and products below.


class _Taps(NamedTuple):
    """For both axes (columns, rows) of every view: which pixels an output sums, and with which weights."""

    pixels: Int[Tensor, "2 views batch size taps"]
    weights: Float[Tensor, "2 views batch size taps"]


def _taps(p: ViewParameters, image: tuple[int, int], size: int) -> _Taps:
    """Crop, then antialiased bilinear resampling, as Pillow and torchvision's `antialias=True` do it.

    Output y of `size`, with centre (y + 1/2) length / size in the crop, sums the pixels under a triangle of half-width
    max(length / size, 1); none outside the crop. A flip runs the columns' outputs backwards.
    """
    begin = torch.stack([p.left, p.top])[..., None, None].float()
    length = torch.stack([p.width, p.height])[..., None, None].float()
    outputs = torch.arange(size, device=begin.device) + 0.5
    direction = torch.stack([1 - 2 * p.flip.float(), torch.ones_like(p.flip, dtype=torch.float32)])[..., None]
    outputs = (outputs - size / 2) * direction + size / 2
    scale = length / size
    reach = scale.clamp_min(1)
    centres = outputs[..., None] * scale + begin
    offsets = torch.arange(math.ceil(2 * max(*image, size) / size), device=begin.device)
    pixels = (centres - reach + 0.5).floor() + offsets
    weights = (pixels + 0.5 - centres).abs_().div_(reach).neg_().add_(1).clamp_min_(0)
    inside = torch.minimum(torch.maximum(pixels, begin), begin + length - 1)
    weights.mul_((pixels == inside).float())
    return _Taps(inside.int(), weights.div_(weights.sum(-1, keepdim=True)))


def _resample(
    x: Float[Tensor, "3 *images side other"],
    pixels: Int[Tensor, "views batch size taps"],
    weights: Float[Tensor, "views batch size taps"],
) -> Float[Tensor, "3 views batch size other"]:
    """Weighted sums of a few rows of every image: a bag of rows, cheaper than a dense resampling matrix (benchmarks).

    `x` is `(3, batch, side, other)`, shared by all views, or `(3, views, batch, side, other)`.
    """
    side, other = x.shape[-2:]
    views, batch, size, taps = pixels.shape
    first_row = torch.arange(0, x.shape[:-1].numel(), side, dtype=torch.int32, device=x.device)
    bags = (pixels + first_row.view(3, -1, batch, 1, 1)).view(-1, taps)
    table, repeated = x.reshape(-1, other), weights.expand(3, -1, -1, -1, -1).reshape(-1, taps)
    out = torch.nn.functional.embedding_bag(bags, table, per_sample_weights=repeated, mode="sum")
    return out.view(3, views, batch, size, other)


def _crop(columns_first: Float[Tensor, "3 batch W H"], taps: _Taps) -> Float[Tensor, "3 views batch size size"]:
    narrow = _resample(columns_first, taps.pixels[0], taps.weights[0])
    return _resample(narrow.mT, taps.pixels[1], taps.weights[1])


def _luma(x: Float[Tensor, "3 ..."]) -> Float[Tensor, "..."]:
    return (x[0] * _GRAY[0]).add_(x[1], alpha=_GRAY[1]).add_(x[2], alpha=_GRAY[2])


def _brightness_(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _contrast_(x: Tensor, factor: Tensor) -> None:
    mean = _luma(x.mean((-2, -1), keepdim=True))
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation_(x: Tensor, factor: Tensor) -> None:
    x.lerp_(_luma(x).expand_as(x), 1 - factor).clamp_(0, 1)


def _hue_(x: Tensor, turns: Tensor) -> None:
    """Shift the hue. In HSV value and chroma stay, so the saturation need not be formed.

    The hexagon angle a in [0, 6) of (r, g, b) is sign(g - b) (1 + (g + b - r - min) / chroma) modulo 6. Back from it a
    channel is min + chroma * ramp(a), ramp = clamp(|a - 3| - 1, 0, 1) for red, clamp(2 - |a - 2|, 0, 1) for green and
    clamp(2 - |a - 4|, 0, 1) for blue.
    """
    r, g, b = x
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = torch.maximum(torch.maximum(r, g), b).sub_(low)
    angle = (g + b).sub_(r).sub_(low).div_(chroma + 1e-12).add_(1).copysign_(g - b)
    angle.mul_(1 / 6).add_(turns)
    angle.sub_(angle.floor()).mul_(6)
    torch.addcmul(low, (angle - 3).abs_().sub_(1).clamp_(0, 1), chroma, out=x[0])
    for channel, peak in ((1, 2), (2, 4)):
        torch.addcmul(low, (angle - peak).abs_().neg_().add_(2).clamp_(0, 1), chroma, out=x[channel])


_OPERATIONS = {"brightness": _brightness_, "contrast": _contrast_, "saturation": _saturation_, "hue": _hue_}


def _blur(x: Float[Tensor, "3 views batch size size"], sigma: Float[Tensor, "views batch"]) -> Tensor:
    """Separable Gaussian blur with reflected borders, as two matrices a sample; sigma 0 leaves the sample alone."""
    size = x.shape[-1]
    reach = min(max(1, round(0.05 * size)), size - 1)
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[..., None]) ** 2)
    weights /= weights.sum(-1, keepdim=True)
    source = (torch.arange(size, device=x.device)[:, None] + offsets).abs()
    source = (size - 1) - ((size - 1) - source).abs()
    reflect = torch.nn.functional.one_hot(source, size).float()  # (output, offset, input)
    matrices = torch.einsum("vbk,oki->vboi", weights, reflect)
    return matrices @ x @ matrices.mT


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MB instead of returning them to the kernel.

    It raises that limit to the largest mapped block it has seen freed. Without it every temporary is faulted in anew,
    page by page, which halves the speed of everything below. Elsewhere this does nothing.
    """
    torch.zeros(2**23 - 2**12)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or (images.dtype != torch.uint8 and not images.is_floating_point()):
        raise InputError(
            f"given images of shape {tuple(images.shape)} and type {images.dtype}, "
            "wanted (batch, 3, height, width), uint8 or float in [0, 1]"
        )
