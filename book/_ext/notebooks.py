"""Chapters as notebooks for Colab and Jupyter: what sphinx-tojupyter made of them, tidied.

python book/_ext/notebooks.py _build/jupyter/book _build/html/notebooks
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from posixpath import normpath

import nbformat
from house import commit, repository, site
from nbformat.v4 import new_code_cell, new_markdown_cell

INSTALL = """\
# On Colab this installs the book's package, which takes less than a minute; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "ncssl-core[book] @ git+{home}{at}"
"""
NO_ADDRESS = """\
# This notebook was made from a copy of the project that has no address yet. If this cell fails,
# install the package from the project's folder: pip install ".[book]"
import ncssl_core
"""
TIDY = [
    (r"\*\*Proof\.\*\*\s+Proof\. ", "**Proof.** "),
    (r"^## +\((?P<title>.*)\)(?P<number>Exercise [\d.]+)$", r"### \g<number> (\g<title>)"),
    (r"^## Solution$", "**Solution.**"),
    (r"^# (In this chapter|What to do in practice)$", r"### \1"),
    (r"\$ (.+?) \$", r"$\1$"),
]
LABEL = r"\[((?:[^\[\]]|\[[^\]]*\])*)\]"
LINK_HERE = re.compile(LABEL + r"\(#([^)]*)\)")
LINK_AWAY = re.compile(LABEL + r"\(([\w/.-]+)\.ipynb(#[^)]*)?\)")


def install_cell() -> str:
    """The first code cell."""
    home, at = repository(), commit()
    return INSTALL.format(home=home, at=f"@{at}" if at else "") if home else NO_ADDRESS


def tidy(text: str, folder: str) -> str:
    """Markdown as a notebook wants it; links to other pages lead to the published book, or to nowhere without one."""
    for pattern, new in TIDY:
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    home = site()

    def away(link: re.Match[str]) -> str:
        page = normpath(f"book/{folder}/{link[2]}")
        return f"[{link[1]}]({home}{page}.html{link[3] or ''})" if home else link[1]

    return LINK_AWAY.sub(away, text).strip()


def convert(source: Path, folder: str, target: Path) -> None:
    """One chapter's notebook, the same bytes for the same chapter; `folder` is the chapter's, inside the book."""
    made = nbformat.read(source, as_version=4)
    cells = []
    for cell in made.cells:
        text = tidy(cell.source, folder) if cell.cell_type == "markdown" else cell.source.strip()
        if text:
            cells.append(new_markdown_cell(text) if cell.cell_type == "markdown" else new_code_cell(text))
    cells.insert(next(i for i, c in enumerate(cells) if c.cell_type == "code"), new_code_cell(install_cell().strip()))
    anchors = {name for c in cells for name in re.findall(r"<a id='([^']*)'>", c.source)}
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "markdown":
            cell.source = LINK_HERE.sub(lambda m: m[0] if m[2] in anchors else m[1], cell.source)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(notebook)
    nbformat.write(notebook, target)


def main(source: Path, target: Path) -> None:
    """Every chapter: a page outside the appendices that has code."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*.ipynb")):
        code = any(c.cell_type == "code" for c in nbformat.read(path, as_version=4).cells)
        if code and "appendices" not in path.parts:
            convert(path, path.parent.relative_to(source).as_posix(), target / path.name)
            print(f"notebook: {target / path.name}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
