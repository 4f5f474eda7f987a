"""Figures from records, in one style: colour-blind safe, legible at small sizes. Needs the extra `book`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncssl_core.base import InputError, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_STYLE: Any = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "lines.linewidth": 2.0, "legend.frameon": False, "figure.dpi": 110, "savefig.dpi": 150,
}  # fmt: skip
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
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise InputError("a picture wants matplotlib: pip install 'ncssl-core[book]'") from None

    terms = [t for t in _NAMES if t != "loss" and any(t in r["curves"] for r in records)]
    with plt.rc_context(_STYLE):
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
    import matplotlib.pyplot as plt

    write_atomically(path, lambda p: figure.savefig(p, format="png"))
    plt.close(figure)
