"""The book's sources, its notebooks' make-up, and two of its pages in a browser."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from site_checks import CHROMIUM, FLAGS, PHONE, Page, broken

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
CHAPTERS = sorted(p for p in BOOK.rglob("*.md") if "code-cell" in p.read_text() and "appendices" not in p.parts)
PARTS = ["The question", "For whom", "What you need", "Time", "## Exercises", "What to do in practice", "## Sources"]
sys.path.insert(0, str(BOOK / "_ext"))

import house  # noqa: E402
import notebooks  # noqa: E402


@pytest.fixture
def published(monkeypatch):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "Owner/name")
    monkeypatch.setenv("GITHUB_SHA", "abc")


@pytest.fixture
def unpublished(monkeypatch):
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_SHA", "NCSSL_SITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(house, "ROOT", Path("/"))  # no git remote


def cells(path):
    return re.findall(r"```\{code-cell\} ipython3\n(?::tags: \[(.*?)\]\n)?(.*?)\n```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_its_parts_and_a_slider_that_speaks(path):
    text = path.read_text()
    if path.stem != "preface":
        assert [part for part in PARTS if part not in text] == []
        assert text.count("```{exercise}") == text.count("```{solution-start}") >= 3
        assert text.count("Slider(") >= 1


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapters_code_is_clean_and_fits_the_page(path, tmp_path):
    found = cells(path)
    script = tmp_path / f"{path.stem}.py"
    script.write_text("\n\n".join(code for _, code in found) + "\n")
    checks = ["ruff", "check", "--isolated", "--select", "F,E7,E9,B,UP,NPY", "--ignore", "E702,B018", str(script)]
    result = subprocess.run([sys.executable, "-m", *checks], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    shown = [line for tags, code in found if not re.search("hide|remove", tags or "") for line in code.splitlines()]
    assert [line for line in shown if len(line) > 80] == []


def test_no_chapter_defines_in_a_removed_cell_what_others_use():
    for path in CHAPTERS:  # notebooks do not have these cells
        kept = "\n".join(code for tags, code in cells(path) if "remove-cell" not in (tags or ""))
        for tags, code in cells(path):
            for name in re.findall(r"^(\w+) =", code, re.MULTILINE) if "remove-cell" in (tags or "") else ():
                assert not re.search(rf"\b{name}\b", kept), f"{path.stem}: {name}"


def test_scripts_in_chapters_are_ones_that_a_shell_reads():
    scripts = [s for p in CHAPTERS for s in re.findall(r"```bash\n(.*?)```", p.read_text(), re.DOTALL)]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])}
    assert listed == {p.relative_to(ROOT).with_suffix("").as_posix() for p in BOOK.rglob("*.md")}


def test_the_address_is_the_workflows_or_the_remotes_or_none(published, monkeypatch, tmp_path):
    assert house.repository() == "https://github.com/Owner/name"
    assert house.site() == "https://owner.github.io/name/"
    assert house.colab("book/theory/views").endswith("/github/Owner/name/blob/gh-pages/notebooks/views.ipynb")
    monkeypatch.delenv("GITHUB_REPOSITORY")
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.repository() is None
    assert house.colab("book/theory/views") is None
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for remote, home in (
        ("git@github.com:a/b.git", "https://github.com/a/b"),
        ("https://user:secret@github.com/a/b.git", "https://github.com/a/b"),
        ("https://example.org/a/b/", "https://example.org/a/b"),
        ("/srv/a/b", None),
    ):
        subprocess.run(["git", "-C", tmp_path, "remote", "remove", "origin"], capture_output=True, check=False)
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True)
        assert house.repository() == home
    assert house.colab("x") is None  # on no host that Colab opens


def test_cells_run_again_when_package_records_or_requirements_change(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    keys = {house.inputs_key()}
    for name in ("ncssl_core/theory/a.py", "results/a.json", "experiments/a.yaml", "requirements.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
        keys.add(house.inputs_key())
        (tmp_path / name).write_text("2")
        keys.add(house.inputs_key())
    (tmp_path / "README.md").write_text("no input")
    assert {house.inputs_key()} < keys
    assert len(keys) == 9


def test_a_notebook_installs_on_colab_alone_what_was_published(published):
    cell = notebooks.install_cell()
    assert '    %pip install --quiet "ncssl-core[book] @ git+https://github.com/Owner/name@abc"' in cell
    assert 'if "google.colab" in sys.modules:' in cell


def test_without_an_address_a_notebook_says_so(unpublished):
    assert "has no address yet" in notebooks.install_cell()
    assert notebooks.tidy("see [that](../theory/views.ipynb#ch-views).", "bridge") == "see that."


def test_markdown_is_tidied(published):
    tidy = notebooks.tidy
    assert tidy("**Proof.**\n\nProof. As $ x $ is.", "theory") == "**Proof.** As $x$ is."
    assert tidy("##  (A fair coin)Exercise 1.1", "theory") == "### Exercise 1.1 (A fair coin)"
    assert tidy("# In this chapter", "theory") == "### In this chapter"
    site = "https://owner.github.io/name/book"
    assert (
        tidy("[[2023](../appendices/references.ipynb#id2)]", "theory")
        == f"[[2023]({site}/appendices/references.html#id2)]"
    )
    assert (
        tidy("[a](train.ipynb#x) [b](../preface.ipynb)", "bridge")
        == f"[a]({site}/bridge/train.html#x) [b]({site}/preface.html)"
    )


def test_a_broken_link_is_found(tmp_path):
    links = "".join(f'<a href="{to}">x</a>' for to in ("b.html#there", "#here", "c.html", "https://example.org"))
    (tmp_path / "a.html").write_text(f'<p id="here">{links}<script src="https://example.org/x.js"></script>')
    (tmp_path / "b.html").write_text("<p>")
    assert {wrong for _, _, wrong in broken(tmp_path)} == {"has no such anchor", "is missing", "loads from elsewhere"}
    assert len(broken(tmp_path)) == 3


@pytest.fixture(scope="module")
def two_pages(tmp_path_factory):
    """The first chapter, the notation page and the package's, built like the book."""
    if CHROMIUM is None:
        pytest.skip("no browser: chromium is not installed (Debian's package of that name)")
    out = tmp_path_factory.mktemp("site")
    toc = {
        "format": "jb-book",
        "root": "book/theory/views",
        "chapters": [{"file": f"book/appendices/{name}"} for name in ("notation", "api")],
    }
    (out / "_toc.yml").write_text(yaml.safe_dump(toc))
    command = [
        Path(sys.executable).parent / "jupyter-book",
        "build",
        ".",
        "--toc",
        out / "_toc.yml",
        "--path-output",
        out,
    ]
    env = {**os.environ, "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "Owner/name"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "docstring of" not in result.stdout + result.stderr  # a warning from one
    return out / "_build" / "html"


def test_a_published_chapter_opens_in_colab_and_leads_to_its_repository(two_pages):
    chapter, appendix = ((two_pages / f"book/{p}.html").read_text() for p in ("theory/views", "appendices/notation"))
    colab = 'href="https://colab.research.google.com/github/Owner/name/blob/gh-pages/notebooks/views.ipynb"'
    assert colab in chapter
    assert "colab.research" not in appendix
    assert 'href="../../notebooks/views.ipynb"' in chapter
    assert 'href="https://github.com/Owner/name"' in chapter


def test_two_pages_in_a_browser(two_pages):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, sliders in (("theory/views", 3), ("appendices/notation", 0)):
            page = Page(browser.new_page(viewport={"width": PHONE, "height": 800})).open(
                two_pages / f"book/{name}.html"
            )
            formulas, drawn, wrong = page.mathematics()
            assert formulas == drawn > 10
            assert wrong == 0
            assert page.cut_formulas() == []
            assert page.move_sliders() == ([], sliders)
            assert page.overflow() == [0, []]
            assert page.serious() == []
            assert page.errors == []
        search = Page(browser.new_page()).open(two_pages / "search.html", "?q=intraclass")
        search.page.wait_for_selector("#search-results li")
        assert search.errors == []
        browser.close()
