"""What a reader's browser finds on a built site; nothing outside the site is ever asked for."""

import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PHONE = 375


class _Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.anchors |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag in ("script", "img", "iframe", "source", "video") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link" and a.get("href") and set((a.get("rel") or "").split()) & {"stylesheet", "icon", "preload"}:
            self.loads.append(a["href"])


def broken(root):
    """(page, address, what is wrong) of every link, anchor or asset of a site that leads nowhere or away."""
    pages = {p.resolve(): _Links(p.read_text("utf-8")) for p in root.rglob("*.html") if "_static" not in p.parts}
    found = []
    for page, parsed in pages.items():
        for address in [*parsed.links, *parsed.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                away = parts.scheme in ("http", "https", "") and address in parsed.loads
                found += [(page.name, address, "loads from elsewhere")] if away else []
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                found.append((page.name, address, "is missing"))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append((page.name, address, "has no such anchor"))
    return found


@dataclass
class Page:
    """A page in the browser, and what went wrong on it."""

    page: object
    errors: list = field(default_factory=list)

    def open(self, path, query=""):
        """Load a file of the site; every request that is not for one is refused and noted."""
        self.page.on("pageerror", lambda error: self.errors.append(f"script: {error}"))
        self.page.on("console", lambda m: self.errors.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.route("http*://**", lambda route: route.abort())
        self.page.goto(path.as_uri() + query)
        self.page.add_style_tag(content="* { animation: none !important; transition: none !important }")
        self.page.evaluate("() => window.MathJax ? MathJax.startup.promise.then(() => 0) : 0")
        return self

    def mathematics(self):
        """How many formulas there are, how many were drawn, how many of them as errors."""
        return self.page.evaluate(
            "() => ['.math', '.math mjx-container', 'mjx-merror, [data-mjx-error]'].map("
            "s => document.querySelectorAll(s).length)"
        )

    def cut_formulas(self):
        """Formulas in a line that are wider than the line."""
        return self.page.evaluate(
            "() => { document.querySelectorAll('details').forEach(d => d.open = true); const cut = []; "
            "for (const m of window.MathJax?.startup.document.math ?? []) { "
            "const box = m.typesetRoot, line = box.closest('p, li'); "
            "if (!m.display && line && box.getBoundingClientRect().width > line.clientWidth + 1) cut.push(m.math) }"
            "return cut }"
        )

    def cut_pictures(self):
        """Words of pictures, every frame of a slider among them, that stick out or lie on another word."""
        return self.page.evaluate(
            "() => { document.querySelectorAll('details').forEach(d => d.open = true); const wrong = []; "
            "const hidden = [...document.querySelectorAll('.ncssl-slider [data-value][hidden]')]; "
            "hidden.forEach(f => f.hidden = false); "
            "for (const svg of document.querySelectorAll('.ncssl-picture svg')) { "
            "const b = svg.getBoundingClientRect(), near = b.width / 150, boxes = []; "
            "for (const t of svg.querySelectorAll('text')) { "
            "const r = t.getBoundingClientRect(); if (!r.width || !t.textContent.trim()) continue; "
            "if (Math.min(r.left - b.left, b.right - r.right, r.top - b.top, b.bottom - r.bottom) < -near) "
            "wrong.push(t.textContent); "
            "for (const [q, s] of boxes) { const w = Math.min(q.right, r.right) - Math.max(q.left, r.left), "
            "h = Math.min(q.bottom, r.bottom) - Math.max(q.top, r.top); "
            "if (w > near && h > 0.4 * Math.min(q.height, r.height)) wrong.push(s + ' on ' + t.textContent) } "
            "boxes.push([r, t.textContent]) } } "
            "hidden.forEach(f => f.hidden = true); return [...new Set(wrong)] }"
        )

    def move_sliders(self):
        """Move every slider by keyboard to each end and back; what did not follow, and how many there are."""
        wrong, sliders = [], self.page.locator(".ncssl-slider")
        for place in range(sliders.count()):
            slider = sliders.nth(place)
            slider.evaluate(
                "s => { for (let e = s; e; e = e.parentElement) if (e.tagName == 'DETAILS') e.open = true }"
            )
            control, shown = slider.locator("input"), slider.locator("[data-value]:visible")
            control.focus()
            seen = set()
            for key in ("Home", "ArrowRight", "End", "ArrowLeft"):
                self.page.keyboard.press(key)
                value = shown.get_attribute("data-value")  # raises if not exactly one is visible
                told = {slider.locator("output").inner_text(), control.get_attribute("aria-valuetext")}
                if told != {value}:
                    wrong.append(f"slider {place}: shows {value}, says {told}")
                seen.add((value, shown.inner_html()))
            if len(seen) < min(4, int(control.get_attribute("max")) + 1):
                wrong.append(f"slider {place}: only {len(seen)} different pictures")
        return wrong, sliders.count()

    def serious(self, rules=()):
        """What axe finds that is serious or critical; by these rules alone if any are named."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"preload": False, "resultTypes": ["violations"]}  # preloading would fetch style sheets
        if rules:
            options["runOnly"] = list(rules)
        found = Axe().run(self.page, options=options).response["violations"]
        return [
            (v["id"], [n["target"] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")
        ]

    def overflow(self):
        """Pixels by which the page is wider than its window, and what sticks out."""
        return self.page.evaluate(
            "() => { const w = document.documentElement.clientWidth; return [document.documentElement.scrollWidth - w, "
            "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > w + 1 && "
            "![...function*(p){while(p = p.parentElement) yield p}(e)].some(p => "
            "['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)))"
            ".slice(0, 5).map(e => e.tagName + '.' + e.className)] }"
        )
