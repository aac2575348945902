"""The site of `make book` and the playground's page, in a headless Chromium; without one they are skipped."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import playground
import pytest
import torch
import untrained

from rlhf_helpers import evaluation, ppo
from rlhf_helpers.data import load_tokenizer
from rlhf_helpers.models import load_lm
from rlhf_helpers.presets import NOTEBOOKS, load_preset
from rlhf_helpers.rollouts import sample_rollouts

pytest.importorskip("playwright", reason="driving a browser needs Playwright: make .venv/browser")
from playwright.sync_api import Error, expect, sync_playwright

ROOT = Path(__file__).parents[2]
SITE, SHOTS = ROOT / "artifacts" / "book", ROOT / "artifacts" / "browser"
PAGES = [p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("*.html")) if "_static" not in p.parts]
READ = """() => ({
  formulas: [...document.querySelectorAll('math')].map(m => [m.textContent, m.getBoundingClientRect().width]),
  pictures: [...document.querySelectorAll('article img')].map(i => [i.alt, i.naturalWidth]),
  overflow: document.documentElement.scrollWidth - window.innerWidth,
})"""


@pytest.fixture(scope="module")
def chromium():
    """A Chromium or Chrome of the system, else Playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        root = os.name == "posix" and os.geteuid() == 0
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        except Error:
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install --with-deps chromium")
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, request):
    """An empty page; what it shows last is kept as a picture, whether the test passes or fails."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    yield page
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{request.node.name}-last.png")
    page.close()


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


def outputs_of(cell):
    """What a cell of notebook 3 has printed, as committed."""
    cells = json.loads((ROOT / "3-RLHF.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = next(c["outputs"] for c in cells if c["id"] == cell)
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_the_page_to_explore_computes_what_the_helpers_compute(page, site):
    page.goto(site + "docs/explore/explore.html")
    found = page.evaluate("data.response")
    rewards, values = (torch.tensor([found[name]]) for name in ("rewards", "values"))
    for lam in (0.0, 0.5, 1.0):
        here = page.evaluate("lam => gae(data.response.rewards, data.response.values, 1, lam).slice(0, 2)", lam)
        helpers = ppo.gae(rewards, values, torch.ones_like(values), 1.0, lam)
        assert torch.allclose(torch.tensor(here), torch.cat(helpers), atol=1e-5)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    for ratio, A in itertools.product((0.5, 0.85, 1.0, 1.15, 1.7), (1.0, -1.0)):
        loss, _ = ppo.ppo_loss(math.log(ratio) * one, zero, zero, zero, A * one, zero, one, clip=0.2)
        here = page.evaluate("x => clippedObjective(...x)", [ratio, A, 0.2])
        assert here == pytest.approx(-loss.item(), abs=1e-6)

    optimum, kl = page.evaluate("(pi => [pi, exactKL(pi, SIX.ref)])(optimum(SIX.ref, SIX.reward, 1))")
    pi, ref, reward = (torch.tensor(x).double() for x in (optimum, *page.evaluate("[SIX.ref, SIX.reward]")))
    assert torch.allclose(pi, (ref.log() + reward).softmax(0))
    here = page.evaluate("([p, q]) => klEstimates(Math.log(p), Math.log(q))", [optimum[4], ref[4].item()])
    assert here == pytest.approx({k: x.item() for k, x in ppo.kl_estimates(pi[4].log(), ref[4].log()).items()})
    for word, p in zip(page.evaluate("SIX.words"), optimum):
        assert f"'{word}': {round(p, 3)}" in outputs_of("8e212e75"), "notebook 3 prints another optimum"
    sampled = page.evaluate("sampledKL(optimum(SIX.ref, SIX.reward, 1), SIX.ref, 100000, 1)")
    off = {name: abs(mean - kl) / error for name, (mean, error, *_) in sampled.items()}
    assert off["k1"] < 4 and off["k3"] < 4 < off["k2"], "k2 is biased, the others are not"
    best = page.evaluate("[bestOfNKL(16), sum(data.drawn.map(s => expectedBest(s, 16))) / 64]")
    assert best[0] == pytest.approx(evaluation.best_of_n_kl(16))
    assert f"best of 16: reward {best[1]:.2f}" in outputs_of("01d75b32")
    assert f"score {found['score']:.2f}" in outputs_of("dissect0"), "another response than notebook 3's"


def test_sliders_answer_to_keys_and_the_gallery_to_words(page, site):
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(site + "docs/explore/explore.html")
    for slider in page.get_by_role("slider").all():
        widget = slider.locator("xpath=ancestor::div[1]")
        says = widget.inner_text()
        slider.press("ArrowLeft")
        assert widget.inner_text() != says
    page.locator("[name=A][value='-1']").press("Space")
    expect(page.locator("#clip-says")).to_contain_text("still moves")
    table = page.locator("#kl-table").inner_text()
    page.get_by_role("button", name="Draw other samples").press("Enter")
    assert page.locator("#kl-table").inner_text() != table
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0

    page.goto(site + "docs/explore/gallery.html")
    expect(page.locator("article article")).to_have_count(40)
    page.locator("#search").fill("Wonderful")
    shown = page.locator("article article:visible")
    assert 0 < shown.count() < 40 and all("wonderful" in text.lower() for text in shown.all_inner_texts())
    expect(page.locator("#found")).to_have_text(f"{shown.count()} of 40 prompts")
    page.get_by_label("figures under the tokens").press("Space")
    expect(page.locator("#responses")).to_have_class("gallery numbers")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


@contextmanager
def playground_page(page, artifacts, **env):
    """Starts the playground and opens it; records how many tokens the page shows whenever it changes."""
    pytest.importorskip("nicegui", reason="the playground's page needs NiceGUI (the extra play)")
    env |= {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_", "PYTEST_", "NICEGUI_"))}
    env |= {"RLHF_ARTIFACTS": str(artifacts), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "beyond/playground.py"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as server:
        address = next(found[1] for line in server.stdout if (found := re.search(r"playground: (http://\S+)", line)))
        page.wait_for_timeout(2000)  # it prints its address, then listens
        page.goto(address)
        page.evaluate("""() => { window.tokens = []; new MutationObserver(() => window.tokens.push(
            document.querySelectorAll('.token').length)).observe(document.body, {childList: true, subtree: true}) }""")
        try:
            yield
        finally:
            server.terminate()


def complete(page, prompt: str, policies: int) -> None:
    """Types a prompt and waits until every policy has completed it, token by token."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.locator("section[aria-busy=false]")).to_have_count(policies, timeout=300_000)
    assert len(set(page.evaluate("window.tokens"))) > 2 * policies, "tokens do not appear as they are sampled"


def test_the_playground_shows_what_the_helpers_compute(page, tmp_path):
    preset = untrained.make(tmp_path)
    play, prompt = playground.load(preset), "the film <b>is</b>"
    with playground_page(page, preset.artifacts):
        complete(page, prompt, policies=3)
        ids = playground.read_prompt(prompt, play)
        results = [playground.complete(play, name, ids, seed=1) for name in play.policies]
        expect(page.locator("section .whole")).to_have_text([result["text"] for result in results])
        for column, result in zip(page.locator("section").all(), results):
            expect(column.locator(".number")).to_have_text([f"{score:+.2f}" for _, score in result["tokens"]])
            for line in (f"Score {result['score']:+.2f}", *result["verdicts"]):
                expect(column).to_contain_text(line)
        assert page.locator("section b").count() == 0, "what is typed is text"
        expect(page.get_by_text("Preset tiny (finished in")).to_be_visible()
        expect(page.get_by_text("To see PPO without a price on the KL")).to_be_visible()
        page.get_by_label("Prompt", exact=True).fill(" ")
        page.get_by_role("button", name="Complete").click()
        expect(page.get_by_role("alert").filter(has_text="is empty")).to_be_visible()
        for width, scheme in itertools.product((1400, 360), ("light", "dark")):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(path=SHOTS / f"playground-{width}-{scheme}.png", full_page=True)


def test_the_playground_with_a_real_model(page):
    """Four policies, judges and likelihood; a picture is kept in artifacts/browser."""
    preset = load_preset("smollm2")
    if not all((preset.folder(stage) / "artifact.json").exists() for stage in NOTEBOOKS):
        pytest.skip("artifacts/smollm2 is not there: make smollm2, then RLHF_PRESET=smollm2 make tutorial")
    sft, free = preset.folder("sft"), playground.free_policy(preset)
    policies = {"SFT": load_lm(str(sft))} | ({} if free is None else {"PPO, beta 0": free})
    tokenizer = load_tokenizer(str(sft))
    ids = tokenizer("the film is")["input_ids"]
    with playground_page(page, preset.artifacts.resolve(), RLHF_PRESET="smollm2"):
        complete(page, "the film is", policies=2 + len(policies))
        for name, policy in policies.items():
            generator = torch.Generator().manual_seed(1)
            rollout = sample_rollouts(policy, [ids], tokenizer, preset.ppo_new_tokens, generator)
            column = page.get_by_role("region", name=name, exact=True)
            expect(column.locator(".whole")).to_have_text(rollout.texts(tokenizer)[0])
            for line in ("VADER: ", "nats per token, and 95 % of its own are below"):
                expect(column).to_contain_text(line)
