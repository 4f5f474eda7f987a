"""What this book's build adds to Jupyter Book: where it is published, when it runs its cells again, a cleaner page."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
INPUTS = (
    "ncssl_core/**/*.py", "experiments/*.yaml", "results/**/*.json", "benchmarks/results/*.json", "requirements.txt",
)  # fmt: skip
PAGES = "gh-pages"  # the branch that holds the published site with its notebooks


def repository() -> str | None:
    """Where the project lives, `https://host/owner/name`: the publishing workflow's word, else the git remote's."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if server and name:
        return f"{server}/{name}"
    remote = subprocess.run(["git", "-C", ROOT, "remote", "get-url", "origin"], capture_output=True, text=True)  # noqa: PLW1510
    ssh = re.fullmatch(r"git@([^:]+):(.+?)(?:\.git)?/?", remote.stdout.strip())
    if ssh:
        return f"https://{ssh[1]}/{ssh[2]}"
    address = urlsplit(remote.stdout.strip())
    if address.scheme in ("http", "https") and address.hostname:
        return f"https://{address.hostname}{address.path.removesuffix('/').removesuffix('.git')}"
    return None


def site() -> str | None:
    """Where the book is published, with a slash at the end: GitHub Pages of the repository, or `NCSSL_SITE`."""
    if os.environ.get("NCSSL_SITE"):
        return os.environ["NCSSL_SITE"].rstrip("/") + "/"
    home = urlsplit(repository() or "")
    if home.hostname != "github.com":
        return None
    owner, name = home.path.strip("/").split("/")[:2]
    return f"https://{owner.lower()}.github.io/{name}/"


def commit() -> str | None:
    """The commit that is published, if the workflow names one."""
    return os.environ.get("GITHUB_SHA")


def colab(page: str) -> str | None:
    """Colab's address for a page's notebook; it opens only what is on GitHub."""
    home = repository()
    if home is None or urlsplit(home).hostname != "github.com":
        return None
    return (
        f"https://colab.research.google.com/github{urlsplit(home).path}/blob/{PAGES}/notebooks/{Path(page).name}.ipynb"
    )


def inputs_key() -> str:
    """A hash of what the cells depend on beside their own text: a change to any of it runs them all again."""
    digest = hashlib.sha256()
    for pattern in INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _configure(app: Any, config: Any) -> None:
    caches = Path(app.outdir).parent / ".jupyter_cache"
    cache = caches / inputs_key()
    for old in caches.iterdir() if caches.is_dir() else ():
        if old != cache:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    config.nb_execution_cache_path = str(cache)
    home = repository()
    if home:
        more = {"repository_url": home, "use_repository_button": True, "use_issues_button": True}
        config.html_theme_options = {**config.html_theme_options, **more}


def _is_chapter(app: Any, page: str) -> bool:
    data = getattr(app.env, "nb_metadata", {}).get(page, {})
    return bool(data.get("exec_data"))


def _page(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Buttons for the page's notebook; one script where the theme names it twice; a list of sources that is none."""
    context["body"] = context.get("body", "").replace('role="list" class="citation-list"', 'class="citation-list"')
    buttons = context.get("header_buttons")
    if buttons is not None and _is_chapter(app, page) and "appendices" not in page:
        name = f"notebooks/{Path(page).name}.ipynb"
        links = [("Open in Colab", "fas fa-rocket", colab(page)),
                 ("Download as a notebook", "fas fa-file-code", context["pathto"](name, 1))]  # fmt: skip
        buttons[:0] = [
            {"type": "link", "url": url, "text": "", "icon": icon, "tooltip": tooltip, "label": tooltip}
            for tooltip, icon, url in links if url
        ]  # fmt: skip
    bodies, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if not body or body not in bodies:
            kept.append(script)
        bodies.add(body)
    context["script_files"] = kept


def _docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """An indented block after a blank line in a module's docstring is code."""
    if what == "module":
        text = re.sub(r"\n\n(?=    \S)", "\n\n.. code-block:: python\n\n", "\n".join(lines))
        lines[:] = text.split("\n")


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's entry point."""
    os.environ["NCSSL_STATIC"] = "1"  # kernels inherit it: sliders draw every position, bars stay quiet
    app.connect("config-inited", _configure, priority=900)
    app.connect("html-page-context", _page, priority=900)
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
