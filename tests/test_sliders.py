"""The same slider with and without a kernel."""

import re
from html.parser import HTMLParser

import matplotlib as mpl
import pytest

from ncssl_core import figures
from ncssl_core.base import InputError
from ncssl_core.sliders import Slider

mpl.use("Agg")


def plot(value):
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    axis.plot([0, value], color=figures.COLOURS[1])
    axis.set(title=f"up to {value}")
    return figure


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context():
        figures.use()
        yield


@pytest.fixture
def slider():
    return Slider(plot, [0.0, 0.5, 1.0], "end <of line>", says=lambda v: f'It ends at "{v}".', start=0.5)


class Parts(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [v for k, v in attributes if k == "id"]


def test_numbers_in_a_picture_keep_their_digits():
    figure = plot(1)
    figure.axes[0].set(title="0.00123", xlabel="12.3456")
    html = figures.Picture(figure, "digits").html
    assert ">0.00123<" in html
    assert ">12.3456<" in html
    assert not re.search(r" d=\"[^\"]*\d\.\d\d\d", html)


def test_the_static_slider_holds_every_position_and_shows_the_first_one(slider):
    tags = Parts(slider.static()).tags
    frames = [a for _, a in tags if "data-value" in a]
    assert [a["data-value"] for a in frames] == ["0", "0.5", "1"]
    assert ["hidden" in a for a in frames] == [True, False, True]
    assert [a["aria-label"] for _, a in tags if a.get("role") == "img"] == [f'It ends at "{v}".' for v in slider.values]
    (control,) = [a for tag, a in tags if tag == "input"]
    assert (control["type"], control["max"], control["value"]) == ("range", "2", "1")
    assert "end &lt;of line&gt;" in slider.static()


def test_no_two_pictures_of_a_page_share_an_inner_name(slider):
    ids = Parts(slider.static() + figures.Picture(plot(7), "seven").html).ids
    assert len(ids) > 8
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(#|href="#)([^")]+)', slider.static())
    assert set(references) <= set(ids)


def test_a_picture_takes_ink_and_colours_from_its_page_and_nothing_from_elsewhere(slider):
    svg = figures.Picture(plot(1), "one").html
    assert "currentColor" in svg
    assert "var(--ncssl-1, #D55E00)" in svg
    assert not re.search(r"#1a1b1c|#000000|black|white|DejaVu|<style|<metadata|\n", svg)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"]


def test_the_same_slider_gives_the_same_page(slider):
    assert slider.static() == Slider(plot, slider.values, slider.label, slider.says, start=0.5).static()


def test_the_widget_answers_when_its_value_is_set(slider, monkeypatch):
    monkeypatch.delenv("NCSSL_STATIC")
    control, picture = slider.widget.children
    assert "ends at &quot;0.5&quot;" in picture.value
    monkeypatch.setattr(slider, "draw", None)  # all is drawn: it answers at once
    control.value = 1.0
    assert "ends at &quot;1.0&quot;" in picture.value
    assert "up to 1.0" in picture.value
    assert "application/vnd.jupyter.widget-view+json" in slider._repr_mimebundle_()
    monkeypatch.setenv("NCSSL_STATIC", "1")
    assert slider._repr_mimebundle_()["text/html"].startswith("<figure")


def test_panels_stand_side_by_side():
    html = figures.Picture([plot(1), plot(2)], "one and two").html
    assert html.count("<svg") == 2
    assert html.count("role=") == 1


def test_a_drawn_figure_is_closed():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.Picture(plot(1), "one")
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("values", "start"), [([], None), ([1, 2], 3)])
def test_a_slider_without_a_position_is_refused(values, start):
    with pytest.raises(InputError, match="wanted at least one|start is one of"):
        Slider(plot, values, "x", str, start=start)


def test_what_is_missing_names_the_command_that_makes_it():
    picture = figures.missing("ncssl sweep cpu-views")
    assert "ncssl sweep cpu-views" in picture.html
    assert picture.says == "Not yet measured; ncssl sweep cpu-views does."
