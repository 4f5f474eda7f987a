"""The README's front figure, from the records: `python experiments/front.py` writes book/_static/front.png."""

from __future__ import annotations

import hashlib
from pathlib import Path

import matplotlib.pyplot as plt

from ncssl_core import claims, figures, records
from ncssl_core.base import write_atomically

ROOT = Path(__file__).parents[1]
OUT = ROOT / "book" / "_static" / "front.png"
SETTING = {"data": "CIFAR-10-JPEG", "backbone": "tiny", "loss": "barlow_twins"}


def digest() -> str:
    """A hash of every record, which the picture carries."""
    files = sorted((ROOT / "results").glob("*.json"))
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def draw() -> plt.Figure:
    """Three panels: accuracy against kappa, against epochs by views, and with fewer images."""
    runs = records.read_all(ROOT / "results")
    arms, curves = claims.arms(runs), claims.curves(runs)
    for column, value in SETTING.items():
        arms, curves = arms[arms[column] == value], curves[curves[column] == value]
    whole = arms.images.max()
    figure, (one, two, three) = plt.subplots(1, 3, figsize=(13, 3.9))
    grid = arms[(arms.views == 2) & (arms.images == whole) & (arms.epochs == 6)].sort_values("kappa")
    for place, (dim, group) in enumerate(grid.groupby("dim")):
        one.errorbar(group.kappa, group.linear, group.sd, marker="os^Dv"[place], capsize=3, label=f"d = {dim}")
    one.set(xscale="log", xlabel="κ = λ d", ylabel="linear probe, test (%)", title="Width d and weight λ")
    one.legend()
    several = curves[(curves.images == whole) & (curves.dim == 256) & (curves.kappa == 8) & (curves.epochs == 6)]
    for place, (views, group) in enumerate(several.groupby("views")):
        two.errorbar(
            group.epoch, group.validation, group.spread, marker="osD"[place], capsize=3, label=f"{views} views"
        )
    two.set(xlabel="epochs", ylabel="linear probe, validation (%)", title="More views an image")
    two.legend()
    rows = [
        ("all images, 2 views", whole, 2, 6), ("half, 4 views", whole / 2, 4, 6), ("half, 2 views", whole / 2, 2, 6),
        ("half, 2 views, 2x epochs", whole / 2, 2, 12), ("quarter, 8 views", whole / 4, 8, 6),
        ("quarter, 2 views", whole / 4, 2, 6), ("quarter, 2 views, 4x epochs", whole / 4, 2, 24),
    ]  # fmt: skip
    few = arms[(arms.dim == 256) & (arms.kappa == 8)]
    for place, (_, images, views, epochs) in enumerate(rows):
        found = few[(few.images == images) & (few.views == views) & (few.epochs == epochs)]
        colour = figures.COLOURS[0 if views == 2 and epochs == 6 else 1 if views > 2 else 3]
        for row in found.itertuples():
            three.errorbar(row.linear, place, xerr=row.sd, color=colour, marker="o", markersize=9, capsize=4)
    three.set(yticks=range(len(rows)), xlabel="linear probe, test (%)", title="Fewer images, with controls")
    three.set_yticklabels([name for name, *_ in rows])
    three.invert_yaxis()
    return figure


def main() -> None:
    """Draw it and write it."""
    figures.use()
    figure = draw()
    text = {"Records": digest(), "Software": None}
    write_atomically(OUT, lambda p: figure.savefig(p, format="png", dpi=110, metadata=text))
    print(f"{OUT.relative_to(ROOT)}: drawn")


if __name__ == "__main__":
    main()
