"""The whole book: built as the README says, read in a browser, run as notebooks from the wheel, at the lower bounds."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from site_checks import CHROMIUM, FLAGS, PHONE, Page, broken

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]
MODES = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (PHONE, "light"), "dark phone": (PHONE, "dark")}
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
    assert max(map(float, chapters.values())) <= 150
    assert seconds <= 25 * 60
    said, seconds = build(out)
    print(f"unchanged {seconds:.0f} s")
    assert "Executed notebook" not in said
    assert seconds < 60


@pytest.mark.parametrize(
    "bad", ["See {prf:ref}`thm-nowhere`.", "```{code-cell} ipython3\n1 / 0\n```"], ids=["reference", "cell"]
)
def test_a_bad_chapter_fails_this_build_and_the_next(book, tmp_path, bad):
    ignored = shutil.ignore_patterns(".venv", "_build", ".git", "runs", "*_cache")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(book[0] / "_build" / ".jupyter_cache", copy / "_build" / ".jupyter_cache")
    chapter = copy / "book" / "theory" / "views.md"
    chapter.write_text(f"{chapter.read_text()}\n{bad}\n")
    assert [make_book(copy, ".").returncode for _ in range(2)] == [2, 2]


def test_no_link_of_the_book_is_broken_and_nothing_is_loaded_from_elsewhere(book):
    site = book[0] / "_build" / "html"
    assert broken(site) == []
    assert (site / "_static/vendor/mathjax/tex-svg-full.js").exists()
    assert (site / "_static/vendor/mathjax/LICENSE").exists()


@pytest.mark.parametrize("mode", MODES)
def test_every_page_in_a_browser(book, mode):
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "the long checks want Debian's chromium"
    site, (width, scheme), sliders = book[0] / "_build" / "html", MODES[mode], 0
    pages = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts and p != site / "index.html"]
    assert len(pages) > 16
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for path in pages:
            page = Page(browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)).open(path)
            formulas, drawn, wrong = page.mathematics()
            still, moved = page.move_sliders() if scheme == "light" else ([], 0)  # colours move no slider
            rules = {"light": ((),), "dark": (("color-contrast",),)}.get(mode, ())  # the others do not see colours
            serious = [found for names in rules for found in page.serious(names)]
            found = {
                "formulas not drawn": formulas - drawn, "formulas wrong": wrong, "formulas cut": page.cut_formulas(),
                "sliders": still, "overflow": page.overflow(), "axe": serious, "errors": page.errors,
            }  # fmt: skip
            assert found.pop("overflow") == [0, []], path.name
            assert not any(found.values()), (path.name, found)
            sliders += moved
            page.page.close()
        first = browser.new_page()
        first.goto((site / "index.html").as_uri())
        first.wait_for_url("**/book/preface.html")
        browser.close()
    assert scheme == "dark" or sliders >= 20


def python_of(folder):
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def pip(python, *words):
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words], check=True)


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """A kernel that has the wheel with its extra `book`, and ipykernel; nothing else."""
    folder = tmp_path_factory.mktemp("colab")
    command = ["pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
    (wheel,) = folder.glob("*.whl")
    python = python_of(folder / "venv")
    pip(python, f"{wheel}[book]", "ipykernel")
    kernel = folder / "share" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    return folder / "share"


def test_every_notebook_runs_from_an_empty_folder_and_its_widgets_answer(book, colab, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(colab))
    for name in ("NCSSL_STATIC", "PYTHONPATH", "NCSSL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    notebooks = sorted((book[0] / "_build/html/notebooks").glob("*.ipynb"))
    chapters = [
        p for p in (ROOT / "book").rglob("*.md") if "code-cell" in p.read_text() and "appendices" not in p.parts
    ]
    assert {p.stem for p in notebooks} == {p.stem for p in chapters}
    for path in notebooks:
        folder = tmp_path / path.stem
        folder.mkdir()
        notebook = nbformat.read(path, as_version=4)
        prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        assert not re.search(r"\{[a-z:]+\}`|^:::|^```\{|\.ipynb", prose, re.MULTILINE), path.name
        notebook.cells.append(nbformat.v4.new_code_cell(MOVE_EVERY_SLIDER))
        client = NotebookClient(notebook, timeout=300, kernel_name="colab", resources={"metadata": {"path": folder}})
        started = time.perf_counter()
        client.execute()
        sliders, slowest = notebook.cells[-1].outputs[0].text.split()
        took = time.perf_counter() - started
        print(f"{path.stem}: {took:.0f} s, {sliders} sliders, slowest answer {float(slowest):.2f} s")
        assert int(sliders) >= 1


def test_the_package_passes_its_tests_at_its_lower_bounds(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = (
        project["dependencies"] + extras["book"] + [d for d in extras["test"] if re.match("pytest|hypothesis|timm", d)]
    )
    python = python_of(tmp_path / "venv")
    pip(python, *(d.replace(">=", "==") for d in wanted))
    words = ["-m", "pytest", "-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider",
             "--ignore=tests/test_book.py", "--ignore=tests/test_site.py"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([python, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    print(result.stdout[-300:])
    assert result.returncode == 0, result.stdout[-4000:]
