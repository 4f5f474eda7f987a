"""Sliders that live twice: a widget where a kernel runs, a plain page's slider where none does.

    Slider(draw, values=[0, 0.1, 0.2], label="flip probability q", says=lambda q: f"...")

`draw(value)` makes a figure in the book's style (or several, side by side) and `says(value)` the sentence that goes
with it: shown under the picture, read out in its place, and printed. Every position is drawn when the slider is shown,
a few tenths of a second each, so that it answers at once. Needs the extra `book`.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ncssl_core.base import InputError
from ncssl_core.figures import Picture

if TYPE_CHECKING:
    from ipywidgets import VBox
    from matplotlib.figure import Figure

_MOVE = (
    "(f=>{const s=f.querySelector('input'),o=f.querySelector('output'),p=[...f.querySelectorAll('[data-value]')];"
    "s.parentNode.parentNode.hidden=false;s.oninput=()=>{p.forEach((d,i)=>d.hidden=i!=s.value);"
    "o.textContent=p[s.value].dataset.value;s.setAttribute('aria-valuetext',o.textContent)};s.oninput()"
    "})(document.currentScript.closest('figure'))"
)


class Slider:
    """A picture that depends on one parameter, under a slider.

    In a notebook `.widget` is an ipywidgets box: first the slider (a `SelectionSlider`, its `value` one of `values`),
    then the picture. With `NCSSL_STATIC` set, as when the book is built, it shows as HTML that needs no kernel and no
    library; the keyboard moves it, and paper shows the position it is at, at first `start`.

    Args:
        draw: makes the figure, or a list of them, for a value.
        values: positions of the slider, in order.
        label: what is varied, with its unit.
        says: the sentence for a value; it states what is seen, with numbers where they matter.
        start: the value shown first; the middle one if not given.
        show: how a value is written.

    Raises:
        InputError: no value, or a start that is none of them.
    """

    def __init__(
        self,
        draw: Callable[[Any], Figure | Sequence[Figure]],
        values: Sequence[Any],
        label: str,
        says: Callable[[Any], str],
        start: Any = None,
        show: Callable[[Any], str] = "{:g}".format,
    ) -> None:
        self.draw, self.values, self.label, self.says, self.show = draw, list(values), label, says, show
        if not self.values:
            raise InputError(f"slider {label!r}: wanted at least one value; given none")
        self.start = self.values[len(self.values) // 2] if start is None else start
        if self.start not in self.values:
            raise InputError(f"slider {label!r}: start is one of {self.values}; given {start!r}")
        self._drawn: dict[int, str] = {}

    def frame(self, value: Any) -> str:
        """The picture and its sentence for one value, as HTML."""
        place = self.values.index(value)
        if place not in self._drawn:
            says = self.says(value)
            self._drawn[place] = f"{Picture(self.draw(value), says).html}<p>{html.escape(says)}</p>"
        return self._drawn[place]

    def static(self) -> str:
        """All positions as one HTML figure, moved by mouse, finger or keyboard, without a kernel."""
        start = self.values.index(self.start)
        frames = "".join(
            f'<div data-value="{html.escape(self.show(value))}"{"" if value == self.start else " hidden"}>'
            f"{self.frame(value)}</div>"
            for value in self.values
        )
        return (
            f'<figure class="ncssl-slider"><div class="ncssl-control" hidden><label>{html.escape(self.label)}: '
            f'<output>{html.escape(self.show(self.start))}</output> <input type="range" min="0" '
            f'max="{len(self.values) - 1}" value="{start}"></label></div>{frames}<script>{_MOVE}</script></figure>'
        )

    @cached_property
    def widget(self) -> VBox:
        """The ipywidgets control.

        Raises:
            InputError: ipywidgets is not installed.
        """
        try:
            from ipywidgets import HTML, Layout, SelectionSlider, VBox
        except ImportError:
            raise InputError("a slider wants ipywidgets: pip install 'ncssl-core[book]'") from None

        control = SelectionSlider(
            options=[(self.show(value), value) for value in self.values], value=self.start, description=self.label,
            style={"description_width": "initial"}, layout=Layout(width="min(100%, 34em)"),
        )  # fmt: skip
        for value in self.values:
            self.frame(value)
        picture = HTML(self.frame(self.start))

        def move(change: dict[str, Any]) -> None:
            picture.value = self.frame(change["new"])

        control.observe(move, "value")
        return VBox([control, picture])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        if os.environ.get("NCSSL_STATIC"):
            return {"text/html": self.static(), "text/plain": repr(self)}
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<slider: {self.label}, {len(self.values)} positions>"
