"""The chapters of Part III follow the records: with all of them, with half, and with none."""

import ast
import json
import re
from pathlib import Path

import IPython.display
import pytest

from ncssl_core import claims, figures, records

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "book" / "experiments").glob("*.md"))
TRAINS = re.compile(r"\b(compare|pretrain|seconds_per_step|untrained_backbone)\(")


def cells(path):
    return re.findall(r"```\{code-cell\} ipython3\n(?::tags:.*?\n)?(.*?)\n```", path.read_text(), re.DOTALL)


def text_of(shown):
    """What a reader sees of an object."""
    if hasattr(shown, "static"):  # a slider, with all its positions
        return shown.static()
    for name in ("html", "data"):
        if isinstance(getattr(shown, name, None), str):
            return getattr(shown, name)
    return shown._repr_html_() if hasattr(shown, "_repr_html_") else repr(shown)


def run(code, names, displayed):
    """Run a cell; all that it shows, as text."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    displayed.clear()
    exec(compile(tree, "cell", "exec"), names)
    if last:
        displayed.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return "".join(text_of(shown) for shown in displayed if shown is not None)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_follows_the_records_and_stands_without_them(path, monkeypatch):
    every, glued, displayed = records.read_all(), {}, []
    monkeypatch.setattr(IPython.display, "display", lambda *shown, **_: displayed.extend(shown))
    monkeypatch.setattr(figures, "glue", lambda name, value, form="": glued.update({name: (value, form)}))
    half = dict(list(every.items())[::2])
    names = {"__name__": "chapter", "runs": {}}
    seen = []
    for kept in (every, half, {}):
        monkeypatch.setattr(records, "read_all", lambda *_, kept=kept: json.loads(json.dumps(kept)))
        names["runs"] = records.read_all()  # what a training cell also does
        shown = [
            "" if kept is not every and TRAINS.search(code) else run(code, names, displayed)  # trained once is enough
            for code in cells(path)
        ]
        seen.append((shown, dict(glued)))
    (all_shown, all_glued), (half_shown, half_glued), (_, none_glued) = seen
    if path.stem != "96px" or any(r["data"]["name"] in ("STL-10", "Imagenette-96") for r in every.values()):
        pictures = [i for i, text in enumerate(all_shown) if "<svg" in text]
        assert any(half_shown[i] not in ("", all_shown[i]) for i in pictures), "no picture changed"
        assert all_glued != half_glued or all_shown != half_shown
    assert all_glued.keys() == half_glued.keys() == none_glued.keys()
    assert not [k for k, (v, form) in none_glued.items() if str(v) == "nan" and not form.endswith("f")]


def test_a_verdict_follows_its_records():
    every = records.read_all()
    before = {(v.claim, v.data, v.backbone, v.loss): v for v in claims.ledger(every)}
    for cell, verdict in before.items():
        for name in verdict.runs[:1]:
            fewer = {n: r for n, r in every.items() if n != name}
            after = next(v for v in claims.ledger(fewer) if (v.claim, v.data, v.backbone, v.loss) == cell)
            assert after != verdict
