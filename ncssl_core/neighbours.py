"""What a representation takes for alike, as pictures: each query beside its nearest images. No labels needed.

features = extract_features(run.backbone, images.images, run.size, run.recipe)
Path("neighbours.html").write_text(page(images, nearest(features, queries, 6), title="photos"))
"""

from __future__ import annotations

import base64
import html
import io
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from ncssl_core.base import InputError
from ncssl_core.datasets import Images

_LOOK = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:1rem auto;max-width:60rem;"
    "padding:0 1rem}section{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0;padding-top:1rem;"
    "border-top:1px solid #8888}figure{margin:0;width:6rem}figure:first-child{margin-right:1.5rem}"
    "img{width:100%;border-radius:4px}figcaption{font-size:.75rem;overflow-wrap:anywhere}"
)


class Neighbours(NamedTuple):
    """`queries` `(q,)`, and for each its `nearest` `(q, k)`, best first, with their `cosine` `(q, k)`."""

    queries: Int64[Tensor, " q"]
    nearest: Int64[Tensor, "q k"]
    cosine: Float[Tensor, "q k"]


def nearest(features: Float[Tensor, "samples features"], queries: Int64[Tensor, " q"], count: int = 6) -> Neighbours:
    """The images most like each query, by the cosine of centred features; a query is not its own neighbour.

    Centring matters: features that come out of a ReLU all point one way, so that any two would seem alike.

    Args:
        features: one row an image.
        queries: which rows to ask for.
        count: neighbours of each.

    Raises:
        InputError: features that are not finite, or fewer than `count` other images.
    """
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise InputError(f"wanted finite features (samples, features); given {tuple(features.shape)}")
    if not 1 <= count < len(features):
        raise InputError(f"neighbours: wanted 1 to {len(features) - 1} of {len(features)} images; given {count}")
    unit = nn.functional.normalize(features - features.mean(0), dim=1)
    cosine = unit[queries] @ unit.T
    cosine[torch.arange(len(queries)), queries] = -torch.inf
    best, index = cosine.topk(count)
    return Neighbours(queries, index, best)


def page(images: Images, found: Neighbours, title: str, says: str = "") -> str:
    """The neighbours as a web page of its own: pictures inside, light and dark, no script, nothing loaded.

    Args:
        images: what was searched.
        found: as `nearest` gives it, of rows of `images`.
        title: heading of the page.
        says: a sentence below it.
    """

    def shown(index: int, note: str) -> str:
        name = images.names[index] if images.names else f"image {index}"
        source = f"data:image/png;base64,{_png(images.images[index])}"
        caption = html.escape(f"{name} {note}")
        return f'<figure><img alt="{html.escape(name)}" src="{source}"><figcaption>{caption}</figcaption></figure>'

    rows = [
        "<section>" + shown(int(query), "(query)")
        + "".join(shown(int(i), f"{c:.2f}") for i, c in zip(index, cosine, strict=True)) + "</section>"
        for query, index, cosine in zip(*found, strict=True)
    ]  # fmt: skip
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_LOOK}</style></head><body><main><h1>{html.escape(title)}</h1>"
        f"<p>{html.escape(says)}</p>{''.join(rows)}</main></body></html>\n"
    )


def _png(pixels: UInt8[Tensor, "3 h w"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
