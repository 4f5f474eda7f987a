"""The built-in image set: shapes drawn from a seed, with every factor known. No download, no file.

The class is the shape. Position, scale, rotation, the two colours, the two textures and the lighting are nuisance: they
are drawn independently of the class, and strongly enough that neither pixels nor random features tell the classes
apart well. Which of them a trained representation drops is up to the augmentation: the recipe "shapes" changes colours
so much that views of one image share little but the shape; under the recipe "cifar" they share their colours, and the
representation keeps those instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Plane = Float[Tensor, "n h w"]


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _disc(x: Plane, y: Plane, radius: float = 0.9) -> Plane:
    return torch.hypot(x, y) - radius


def _triangle(x: Plane, y: Plane) -> Plane:
    return torch.maximum(y - 0.6, 0.866 * x.abs() - 0.5 * y - 0.5)


def _star(x: Plane, y: Plane) -> Plane:
    angle = torch.atan2(x, -y)
    wedge = 2 * math.pi / 5
    inside = ((angle + wedge / 2).remainder(wedge) - wedge / 2).abs()
    radius = torch.hypot(x, y)
    return radius * (inside.cos() + 1.3 * inside.sin()) - 0.95


# Signed "distance" to each shape's edge in its own frame, about [-1, 1]; negative inside.
_SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": _disc,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.72).abs() - 0.2,
    "square": lambda x, y: _box(x, y, 0.78, 0.78),
    "frame": lambda x, y: (_box(x, y, 0.65, 0.65)).abs() - 0.18,
    "triangle": _triangle,
    "star": _star,
    "plus": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95)),
    "crescent": lambda x, y: torch.maximum(_disc(x, y), 0.75 - torch.hypot(x - 0.45, y)),
    "bars": lambda x, y: torch.minimum(_box(x, y - 0.55, 0.9, 0.25), _box(x, y + 0.55, 0.9, 0.25)),
    "dots": lambda x, y: torch.minimum(_disc(x - 0.5, y - 0.45, 0.42), _disc(x + 0.5, y + 0.45, 0.42)),
}
SHAPES = tuple(_SHAPES)


def draw_shapes(
    count: int, size: int, seed: int
) -> tuple[UInt8[Tensor, "n 3 size size"], dict[str, Float[Tensor, "n ..."]]]:
    """Draw `count` images of `size` pixels, and the factors that made them, one row an image.

    Factors: `shape` (class index), `position` (x, y of the centre, in [-1, 1] across the image), `scale` (half-width,
    same unit), `rotation` (radians), `foreground` and `background` (RGB), `texture` (for each of the two: angle,
    cycles across the image, strength), `lighting` (angle, strength). The same arguments give the same images.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return torch.rand((count, *more), generator=generator) * (high - low) + low

    scale = uniform(0.55, 0.8)
    factors = {
        "shape": (torch.randperm(count, generator=generator) % len(SHAPES)).float(),
        "position": uniform(-1, 1, 2) * (1.0 - scale[:, None]),
        "scale": scale,
        "rotation": uniform(-0.35, 0.35),
        "foreground": 0.5 + uniform(-0.15, 0.15, 3) + uniform(-0.35, 0.35, 1),
        "background": 0.5 + uniform(-0.15, 0.15, 3) + uniform(-0.35, 0.35, 1),
        "texture": torch.stack([uniform(0, math.pi, 2), uniform(2, 7, 2), uniform(0, 0.1, 2)], -1),
        "lighting": torch.stack([uniform(0, 2 * math.pi), uniform(0, 0.35)], -1),
    }
    _separate_colours(factors["foreground"], factors["background"])
    parts = [
        _render({k: v[i : i + 1024] for k, v in factors.items()}, size) for i in range(0, count, 1024)
    ]  # a thousand at a time keeps the temporaries small
    images = torch.cat(parts)
    images += torch.randn(images.shape, generator=generator) * 0.03
    return (images.clamp_(0, 1) * 255).round_().to(torch.uint8), factors


def _separate_colours(foreground: Tensor, background: Tensor) -> None:
    """Push the two colours of an image apart in brightness, to at least 0.3, in place; either may be the lighter."""
    gap = foreground.mean(1, keepdim=True) - background.mean(1, keepdim=True)
    push = (0.3 - gap.abs()).clamp_min(0) / 2 * torch.where(gap >= 0, 1.0, -1.0)
    foreground.add_(push).clamp_(0, 1)
    background.sub_(push).clamp_(0, 1)


def _render(f: dict[str, Tensor], size: int) -> Float[Tensor, "n 3 size size"]:
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centre_x, centre_y = f["position"].T[..., None, None]
    cos, sin = (t(f["rotation"])[:, None, None] for t in (torch.cos, torch.sin))
    scale = f["scale"][:, None, None]
    u = ((x - centre_x) * cos + (y - centre_y) * sin) / scale
    v = ((y - centre_y) * cos - (x - centre_x) * sin) / scale
    distance = torch.empty_like(u)
    for index, name in enumerate(SHAPES):
        these = f["shape"] == index
        distance[these] = _SHAPES[name](u[these], v[these])
    inside = torch.sigmoid(-distance * scale * size * 1.5)[:, None]  # an edge about a pixel wide
    layers = []
    for layer, colour in enumerate((f["foreground"], f["background"])):
        angle, cycles, strength = f["texture"][:, layer].T[..., None, None]
        wave = torch.sin(math.pi * cycles * (x * angle.cos() + y * angle.sin()) + 9 * angle)
        layers.append(colour[..., None, None] + (strength * wave)[:, None])
    angle, strength = f["lighting"].T[..., None, None]
    light = 1 + strength * (x * angle.cos() + y * angle.sin())
    image: Tensor = (inside * layers[0] + (1 - inside) * layers[1]) * light[:, None]
    return image
