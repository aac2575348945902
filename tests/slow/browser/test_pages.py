"""The site of `make book` and the playground's page, in Chromium."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import playground
import pytest
import untrained

pytest.importorskip("playwright", reason="driving a browser needs Playwright: make .venv/browser")
from playwright.sync_api import expect

ROOT = Path(__file__).parents[3]
SITE = ROOT / "artifacts" / "book"
PAGES = [p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("*.html")) if "_static" not in p.parts]
READ = """() => ({
  formulas: [...document.querySelectorAll('math')].map(m => [m.textContent, m.getBoundingClientRect().width]),
  pictures: [...document.querySelectorAll('article img')].map(i => [i.alt, i.naturalWidth]),
  overflow: document.documentElement.scrollWidth - window.innerWidth,
})"""


@pytest.fixture(scope="module")
def site():
    if not PAGES:
        pytest.skip("artifacts/book is empty: make book")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("width", [1300, 390], ids=["desktop", "phone"])
def test_every_page_of_the_site_is_whole_and_asks_nothing_from_outside(width, chromium, site):
    page, trouble = chromium.new_page(viewport={"width": width, "height": 1000}), []
    page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("response", lambda r: trouble.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: None if r.url.startswith((site, "data:")) else trouble.append(r.url))
    for name in PAGES:
        page.goto(site + name, wait_until="networkidle")
        seen = page.evaluate(READ)
        # a command that the converter of formulas doesn't know is left as it is written
        assert all(drawn > 0 and "\\" not in text for text, drawn in seen["formulas"]), name
        assert all(drawn > 0 and len(alt) > 30 for alt, drawn in seen["pictures"]), name
        assert seen["overflow"] <= 0, name
    page.close()
    assert not trouble


def test_the_playground_shows_what_the_helpers_compute(page, tmp_path):
    pytest.importorskip("nicegui", reason="the playground's page needs NiceGUI (the extra play)")
    preset = untrained.make(tmp_path)
    play, prompt = playground.load(preset), "the film <b>is</b>"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_", "PYTEST_", "NICEGUI_"))}
    env |= {"RLHF_PRESET": "tiny", "RLHF_ARTIFACTS": str(preset.artifacts), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "beyond/playground.py"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as server:
        address = next(found[1] for line in server.stdout if (found := re.search(r"playground: (http://\S+)", line)))
        page.wait_for_timeout(2000)  # it prints its address, then listens
        page.goto(address)
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Complete").click()
        expect(page.locator("section")).to_have_count(3, timeout=60_000)
        results = playground.complete(play, playground.read_prompt(prompt, play), seed=1)
        expect(page.locator("section .whole")).to_have_text([result["text"] for result in results.values()])
        for column, result in zip(page.locator("section").all(), results.values()):
            expect(column).to_contain_text(f"Score {result['score']:+.2f}")
            expect(column).to_contain_text(f"Judge: {result['verdict']}")
        assert page.locator("section b").count() == 0, "what is typed is text"
        page.get_by_label("Prompt", exact=True).fill(" ")
        page.get_by_role("button", name="Complete").click()
        expect(page.get_by_role("alert").filter(has_text="is empty")).to_be_visible()
        server.terminate()
