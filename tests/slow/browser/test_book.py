"""The static site of `make book`, every page of it, in Chromium."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[3]
SITE = ROOT / "artifacts" / "book"
SHOTS = ROOT / "artifacts" / "browser"
PAGES = [p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("*.html")) if "_static" not in p.parts]
LOOKS = {"desktop": (1300, "light"), "dark": (1300, "dark"), "phone": (390, "light"), "dark phone": (390, "dark")}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): ...


@pytest.fixture(scope="module")
def address():
    if not PAGES:
        pytest.fail("artifacts/book is empty: make book")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def visited(chromium, address):
    """What each page shows in each look: its links, anchors, pictures, text, width, and what went wrong."""
    found = {}
    for look, (width, scheme) in LOOKS.items():
        context = chromium.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        for name in PAGES:
            page, wrong = context.new_page(), []
            page.on("console", lambda m, w=wrong: w.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda e, w=wrong: w.append(str(e)))
            page.on("response", lambda r, w=wrong: w.append(f"{r.status} {r.url}") if r.status >= 400 else None)
            page.on("request", lambda r, w=wrong: None if r.url.startswith((address, "data:")) else w.append(r.url))
            page.goto(address + name, wait_until="networkidle")
            found[look, name] = page.evaluate(READ) | {"wrong": wrong}
            if name in ("index.html", "3-RLHF.html"):
                SHOTS.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=SHOTS / f"book-{name.removesuffix('.html')}-{look.replace(' ', '-')}.png")
            page.close()
        context.close()
    return found


READ = """() => {
  for (const d of document.querySelectorAll('details')) d.open = true;
  const prose = document.querySelector('article').cloneNode(true);
  prose.querySelectorAll('pre, code, math').forEach(x => x.remove());
  return {
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    anchors: [...document.querySelectorAll('[id]')].map(x => x.id),
    pictures: [...document.querySelectorAll('article img')].map(i => [i.alt, i.naturalWidth]),
    prose: prose.textContent,
    formulas: [...document.querySelectorAll('math')].map(m => [m.textContent, m.getBoundingClientRect().width]),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
  }
}"""


def test_nothing_goes_wrong_and_nothing_is_asked_from_outside(visited):
    assert not {key: seen["wrong"] for key, seen in visited.items() if seen["wrong"]}


def test_every_link_and_anchor_resolves(visited, address):
    anchors = {name: set(visited["desktop", name]["anchors"]) for name in PAGES}
    dead = set()
    for name in PAGES:
        for link in visited["desktop", name]["links"]:
            if link.startswith(address):
                path, anchor = urldefrag(link)
                target = unquote(urlsplit(path).path).lstrip("/") or "index.html"
                exists = (SITE / target).is_file()
                if not exists or (anchor and target in anchors and unquote(anchor) not in anchors[target] | {"top"}):
                    dead.add((name, link))
    assert not dead
    assert sum(link.startswith(address) for link in visited["desktop", "index.html"]["links"]) > 10


def test_formulas_are_drawn(visited):
    for name in PAGES:
        seen = visited["desktop", name]
        assert all(text.strip() and width > 0 for text, width in seen["formulas"]), name
        # a command that the converter doesn't know is left as it is written
        assert not [text for text, _ in seen["formulas"] if "\\" in text], name
        assert "$" not in seen["prose"] and "\\frac" not in seen["prose"], name
    assert len(visited["desktop", "3-RLHF.html"]["formulas"]) > 20


def test_pictures_are_there_and_described(visited):
    for name in PAGES:
        for alt, width in visited["desktop", name]["pictures"]:
            assert width > 0 and len(alt) > 30 and not alt.endswith(".png"), (name, alt)
    assert len(visited["desktop", "2-RM Training.html"]["pictures"]) >= 6


def test_a_phone_shows_the_page_whole_and_dark_is_dark(visited):
    assert not {key: seen["overflow"] for key, seen in visited.items() if seen["overflow"] > 0}
    for name in PAGES:
        assert visited["desktop", name]["background"] != visited["dark", name]["background"]
