"""The whole book: built as the README says, read in a browser, run as notebooks from the wheel."""

import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pytest
from conftest import install, python_of
from nbclient import NotebookClient
from site_checks import CHROMIUM, FLAGS, PHONE, Page, broken

from ncssl_core import claims, records

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]
MOVE_EVERY_SLIDER = """
def move_every_slider():  # a function, so as not to overwrite the chapter's own names
    import gc, time
    from ncssl_core.sliders import Slider
    slowest, found = 0, [s for s in gc.get_objects() if type(s) is Slider]
    for slider in found:
        control, shown = slider.widget.children
        seen = {shown.value}
        for value in slider.values:
            started = time.perf_counter()
            control.value = value
            slowest = max(slowest, time.perf_counter() - started)
            seen.add(shown.value)
        assert len(seen) == len(slider.values), slider
    print(len(found), slowest)
move_every_slider()
"""


def make_book(where, out):
    words = ["make", "book", f"OUT={out}", f"PYTHON={sys.executable}"]
    return subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)


def build(out):
    """`make book`; what it printed, and how many seconds it took."""
    started = time.perf_counter()
    result = make_book(ROOT, out)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout + result.stderr, time.perf_counter() - started


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    out = tmp_path_factory.mktemp("book")
    return out, *build(out)


def test_the_book_builds_in_time_and_at_once_when_nothing_changed(book):
    out, said, seconds = book
    chapters = dict(re.findall(r"(\S+)\.md: Executed notebook in ([\d.]+) seconds", said))
    print(f"cold {seconds:.0f} s", chapters)
    assert len(chapters) == len(list((ROOT / "book").rglob("*.md"))) - 3  # notation, package, references
    assert max(map(float, chapters.values())) <= 400  # other long checks run beside; alone it is a third of that
    assert seconds <= 35 * 60
    said, seconds = build(out)
    print(f"unchanged {seconds:.0f} s")
    assert "Executed notebook" not in said
    assert seconds < 120


@pytest.mark.parametrize(
    ("bad", "builds"),
    [("See {prf:ref}`thm-nowhere`.", 2), ("```{code-cell} ipython3\n1 / 0\n```", 1)],
    ids=["reference", "cell"],
)
def test_a_bad_chapter_fails_this_build_and_the_next(book, tmp_path, bad, builds):
    ignored = shutil.ignore_patterns(".venv", "_build", ".git", "runs", "*_cache")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(book[0] / "_build" / ".jupyter_cache", copy / "_build" / ".jupyter_cache")
    chapter = copy / "book" / "theory" / "views.md"
    chapter.write_text(f"{chapter.read_text()}\n{bad}\n")
    assert [make_book(copy, ".").returncode for _ in range(builds)] == [2] * builds


def test_no_link_of_the_book_is_broken_and_nothing_is_loaded_from_elsewhere(book):
    site = book[0] / "_build" / "html"
    assert broken(site) == []
    assert (site / "_static/vendor/mathjax/tex-svg-full.js").exists()
    assert (site / "_static/vendor/mathjax/LICENSE").exists()


def test_the_pages_say_what_the_records_say(book):
    from bs4 import BeautifulSoup

    site, runs = book[0] / "_build" / "html" / "book", records.read_all(ROOT / "results")
    shown = {
        name: " ".join(BeautifulSoup((site / f"{name}.html").read_text(), "html.parser").get_text().split())
        for name in ("preface", "experiments/holds", "experiments/more-views", "experiments/less-data")
    }
    verdicts = [v for v in claims.ledger(runs) if v.runs]
    assert verdicts
    for v in verdicts:
        assert v.says in shown["experiments/holds"], v
        page = {"C3": "experiments/more-views", "C4": "experiments/less-data"}.get(v.claim)
        if page:
            assert v.says in shown[page], v
    for page in shown.values():
        assert "glue:text" not in page


def look(page):
    """What is wrong with a page, wide and light, then dark, then on a phone; and how many sliders it has."""
    formulas, drawn, wrong = page.mathematics()
    still, sliders = page.move_sliders()
    found = {"formulas": [formulas - drawn, wrong], "sliders": still, "axe": page.serious(), "errors": page.errors}
    found["cut pictures"] = page.cut_pictures()
    page.page.emulate_media(color_scheme="dark")
    page.page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    found["axe, dark"] = page.serious(("color-contrast",))
    page.page.set_viewport_size({"width": PHONE, "height": 800})
    for scheme in ("dark", "light"):
        page.page.emulate_media(color_scheme=scheme)
        found |= {f"cut, {scheme}": page.cut_formulas(), f"overflow, {scheme}": page.overflow()}
    return {what: is_so for what, is_so in found.items() if is_so not in ([], [0, 0], [0, []])}, sliders


def test_every_page_in_a_browser(book):
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "the long checks want Debian's chromium"
    site, sliders, wrong = book[0] / "_build" / "html", 0, {}
    pages = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts and p != site / "index.html"]
    assert len(pages) > 25
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for path in pages:
            page = Page(browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")).open(path)
            found, moved = look(page)
            wrong |= {path.name: found} if found else {}
            sliders += moved
            page.page.close()
        first = browser.new_page()
        first.goto((site / "index.html").as_uri())
        first.wait_for_url("**/book/preface.html")
        browser.close()
    assert wrong == {}
    assert sliders >= 30


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """A kernel that has the wheel with its extra `book`, and ipykernel; nothing else."""
    folder = tmp_path_factory.mktemp("colab")
    command = ["pip", "wheel", "-qq", "--no-deps", "-w", folder, ROOT]
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
    (wheel,) = folder.glob("*.whl")
    python = python_of(folder / "venv")
    install(python, f"{wheel}[book]", "ipykernel")
    kernel = folder / "share" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    return folder / "share"


def run_notebook(path, folder):
    """Run a notebook in an empty folder and move all its sliders; (its name, seconds, sliders, slowest answer)."""
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert not re.search(r"\{[a-z:]+\}`|^:::|^```\{|\.ipynb", prose, re.MULTILINE), path.name
    notebook.cells.append(nbformat.v4.new_code_cell(MOVE_EVERY_SLIDER))
    client = NotebookClient(notebook, timeout=300, kernel_name="colab", resources={"metadata": {"path": folder}})
    started = time.perf_counter()
    client.execute()
    said = "".join(o.text for o in notebook.cells[-1].outputs if o.get("name") == "stdout")  # may come in pieces
    sliders, slowest = said.split()
    return path.stem, time.perf_counter() - started, int(sliders), float(slowest)


def test_notebooks_run_from_an_empty_folder_and_their_widgets_answer(book, colab, tmp_path, monkeypatch):
    """All are there; run are those of Part IV, which lean on other packages, and every third of the others."""
    monkeypatch.setenv("JUPYTER_PATH", str(colab))
    for name in ("NCSSL_STATIC", "PYTHONPATH", "NCSSL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    notebooks = sorted((book[0] / "_build/html/notebooks").glob("*.ipynb"))
    chapters = [
        p for p in (ROOT / "book").rglob("*.md") if "code-cell" in p.read_text() and "appendices" not in p.parts
    ]
    assert {p.stem for p in notebooks} == {p.stem for p in chapters}
    practice = {p.stem for p in (ROOT / "book" / "practice").glob("*.md")}
    others = [p for p in notebooks if p.stem not in practice]
    tried = [*others[::3], *(p for p in notebooks if p.stem in practice)]
    # in processes: nbclient leaves loops and sockets open, of which pytest would hear at its very end
    with ProcessPoolExecutor(2, get_context("spawn")) as both:
        for name, seconds, sliders, slowest in both.map(run_notebook, tried, (tmp_path / p.stem for p in tried)):
            print(f"{name}: {seconds:.0f} s, {sliders} sliders, slowest answer {slowest:.2f} s")
            assert sliders >= 1
