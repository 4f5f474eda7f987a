"""Figures in one style: colour-blind safe, legible on a phone, at home on light and dark pages. Needs the extra `book`.

In a notebook: `figures.use()` once, draw with matplotlib, end the cell with `Picture(figure, "what it shows")`.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncssl_core.base import InputError, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1a1b1c"  # text, axes and whatever has no colour of its own: in a page, the page's text colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito; lighter on dark pages
_STYLE: Any = {
    "font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlesize": 12, "axes.axisbelow": True, "lines.linewidth": 2.0, "legend.frameon": False,
    "figure.figsize": (5.4, 3.2), "figure.constrained_layout.use": True, "figure.dpi": 110, "savefig.dpi": 150,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": INK,
}  # fmt: skip


def _matplotlib() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise InputError("a picture wants matplotlib: pip install 'ncssl-core[book]'") from None
    return plt


def _style() -> dict[str, Any]:
    from cycler import cycler

    return {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}


def use() -> None:
    """Draw in the book's style from here on: set matplotlib's defaults for this session.

    Raises:
        InputError: matplotlib is not installed.
    """
    _matplotlib().rcParams.update(_style())


class Picture:
    """A figure as a page shows it: sharp at any size, its colours the page's own, light or dark, with words for it.

    The figure is closed, so that a notebook does not show it twice.

    Args:
        figure: a matplotlib figure, or several, which stand side by side where there is room.
        says: what it shows, in a sentence or two: read out in place of the picture.
    """

    def __init__(self, figure: Figure | Sequence[Figure], says: str) -> None:
        self.says = says
        panels = list(figure) if isinstance(figure, Sequence) else [figure]
        drawn = "".join(map(themed_svg, panels))
        look = "display:flex;flex-wrap:wrap;gap:0.5em"
        self.html = (
            f'<div class="ncssl-picture" role="img" aria-label="{html.escape(says)}" style="{look}">{drawn}</div>'
        )
        for panel in panels:
            _matplotlib().close(panel)

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<picture: {self.says}>"


def themed_svg(figure: Figure) -> str:
    """A figure as an `<svg>` element that takes the ink of the page around it, and its colours from `--ncssl-0`, ...

    The figure is one drawn in the book's style. The same figure gives the same text; its inner names begin with a hash
    of it, so that any number of pictures may stand on a page.
    """
    buffer, plt = io.StringIO(), _matplotlib()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ncssl"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML header
    name = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    width = figure.get_figwidth()  # may shrink to three quarters beside another, and to any phone alone
    look = f"flex:1 1 {0.75 * width:.2f}in;min-width:0;max-width:{width:.2f}in;height:auto"
    look += ";stroke-linejoin:round;font-family:inherit"
    steps: tuple[tuple[str, Any], ...] = (
        (r"<(metadata|style)\b.*?</\1>", ""),
        (r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1"),
        (r"<svg ", f'<svg aria-hidden="true" style="{look}" '),
        (r'<g id="[^"]*"', "<g"),
        (r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-"),
        (r"font: ([\d.]+px) [^;\"]*", r"font-size: \1"),  # matplotlib before 3.9
        (r"font-family: '[^;\"]*;?", ""),
        (r"<[^>]*>", lambda tag: re.sub(r"(?<=\d\.\d\d)\d+", "", tag[0])),  # coordinates; text keeps its digits
        (r"\s*\n\s*", " "),
        (INK, "currentColor"),
        *((colour.lower(), f"var(--ncssl-{place}, {colour})") for place, colour in enumerate(COLOURS)),
    )
    for pattern, new in steps:
        svg = re.sub(pattern, new, svg, flags=re.DOTALL)
    return svg.strip()


def missing(command: str) -> Picture:
    """The picture that stands where records are missing, with the command that makes them."""
    figure, axis = _matplotlib().subplots(figsize=(5.4, 2.2))
    axis.text(0.5, 0.5, f"not yet measured:\n{command}", ha="center", va="center", transform=axis.transAxes)
    axis.set(xticks=[], yticks=[])
    return Picture(figure, f"Not yet measured; {command} does.")


_NAMES = {
    "loss": "loss", "on_diagonal_mean": "on-diagonal error per feature",
    "off_diagonal_mean": "mean squared correlation of features", "invariance": "invariance", "variance": "variance",
    "covariance_mean": "mean squared covariance of features",
}  # fmt: skip


def curves(records: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    """Loss terms against epochs (means over features, so that runs of different dim compare), and probe accuracies.

    Args:
        records: of finished runs.
        names: what to call each.

    Raises:
        InputError: matplotlib is not installed.
    """
    terms = [t for t in _NAMES if t != "loss" and any(t in r["curves"] for r in records)]
    plt = _matplotlib()
    figure: Figure
    with plt.rc_context(_style()):
        figure, axes = plt.subplots(
            1, len(terms) + 1, figsize=(4 * len(terms) + 4, 3.4 + 0.25 * len(records)), layout="constrained"
        )
        handles: dict[str, Any] = {}
        for index, (record, name) in enumerate(zip(records, names, strict=True)):
            colour, run = COLOURS[index % len(COLOURS)], record["curves"]
            for axis, term in zip(axes, terms, strict=False):
                if term in run:
                    (handles[name],) = axis.plot(run["epoch"], run[term], color=colour, marker="o", markersize=4)
        for axis, term in zip(axes, terms, strict=False):
            axis.set(title=_NAMES[term], xlabel="epoch", ylim=(0, None))
        _accuracies(axes[-1], records, names)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(records)))
    return figure


def _accuracies(axis: Any, records: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Bars: linear probes of each run, pale for the untrained backbone and raw pixels."""
    bars = [
        (f"{kind}" if len(records) == 1 else f"{name}: {kind}", record["probe"][kind]["linear"], index, kind)
        for index, (record, name) in enumerate(zip(records, names, strict=True))
        for kind in ("trained", "untrained", "pixels")
        if kind in record.get("probe", {})
    ]
    axis.set(title="linear probe, test images", xlabel="accuracy (%)")
    if not bars:
        axis.text(0.5, 0.5, "not yet measured:\nncssl probe RUN", ha="center", va="center", transform=axis.transAxes)
        axis.set(yticks=[])
        return
    for place, (_, value, index, kind) in enumerate(bars):
        trained = kind == "trained"
        axis.barh(place, value, color=COLOURS[index % len(COLOURS)], alpha=1.0 if trained else 0.35)
        axis.annotate(f"{value:.1f}", (value, place), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set(yticks=range(len(bars)), yticklabels=[b[0] for b in bars], xlim=(0, max(b[1] for b in bars) * 1.18))
    axis.invert_yaxis()
    axis.grid(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    write_atomically(path, lambda p: figure.savefig(p, format="png"))
    _matplotlib().close(figure)


def glue(name: str, value: object, form: str = "") -> None:
    """Name a value for the chapter's prose, where MyST's role `glue:text` puts it; elsewhere nothing is seen of it.

    Needs IPython.

    Args:
        name: one in the whole book.
        value: None and NaN are written as "not yet measured".
        form: how it is written, as in `format(value, form)`.
    """
    from IPython.display import display

    missing = value is None or (isinstance(value, float) and math.isnan(value))
    value = "not yet measured" if missing else format(value, form)

    prefix = "application/papermill.record/"
    display(
        {prefix + "text/plain": repr(str(value))},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
    )  # type: ignore[no-untyped-call]
