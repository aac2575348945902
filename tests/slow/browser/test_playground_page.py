"""The playground's page in a browser: `make play` on models that nobody trained."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="the playground's page needs NiceGUI (the extra play)")
pytest.importorskip("playwright", reason="driving a browser needs Playwright")
import playground
import psutil
import untrained
from playwright.sync_api import expect

ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "artifacts" / "browser"
HTML = ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "**bold** {{ 7 * 7 }}"]

# python beyond/playground.py, which fails where two completions overlap
ALONE = """
import runpy, threading
from rlhf_helpers import rollouts

sample, busy = rollouts.sample_rollouts, threading.Lock()

def alone(*args, **kwargs):
    assert busy.acquire(blocking=False), "two at once"
    try:
        return sample(*args, **kwargs)
    finally:
        busy.release()

rollouts.sample_rollouts = alone
runpy.run_path("beyond/playground.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return untrained.make(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def play(preset):
    """What the page should show, computed here."""
    return playground.load(preset)


@pytest.fixture(scope="module")
def server(preset):
    command = [sys.executable, "-c", ALONE]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_", "PYTEST_", "NICEGUI_"))}
    env |= {"RLHF_PRESET": "tiny", "RLHF_ARTIFACTS": str(preset.artifacts)}
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed = ""
    while not (address := re.search(r"The playground: (http://127\.0\.0\.1:\d+) ", printed)):
        line = server.stdout.readline()
        assert line, f"it ended before it served:\n{printed}"
        printed += line
    server.address = address[1]
    for _ in range(100):  # it prints its address, then listens
        try:
            socket.create_connection(("127.0.0.1", int(address[1].split(":")[-1]))).close()
            break
        except OSError:
            time.sleep(0.1)
    yield server
    server.terminate()
    assert "Traceback" not in server.communicate(timeout=60)[0]


@pytest.fixture
def opened(chromium, server, request):
    """The page, at any width; it asked for nothing elsewhere, opened no dialog and logged no error."""
    trouble, contexts = [], []

    def open_page(**settings):
        contexts.append(context := chromium.new_context(**settings))
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith(tell) or trouble.append(r.url))
        page.on("response", lambda r: r.status < 400 or trouble.append(f"{r.status} {r.url}"))
        page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
        page.on("pageerror", lambda e: trouble.append(str(e)))
        page.on("dialog", lambda d: (trouble.append(f"dialog: {d.message}"), d.dismiss()))
        page.goto(server.address)
        expect(page.get_by_role("heading", level=1)).to_have_text("One prompt, three models")
        return page

    tell = (server.address, server.address.replace("http", "ws"), "data:", "blob:")
    yield open_page
    for context in contexts:
        context.close()
    assert not trouble


def complete(page, prompt, seed=1):
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Complete").click()
    expect(page.get_by_role("button", name="Complete")).to_be_enabled(timeout=60_000)


def shown(page):
    """Of each column: its name -> whole text, (token, number, colour) and all that it says."""
    expect(page.locator("section")).to_have_count(3, timeout=60_000)
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('section')].map(column => [column.ariaLabel, {
            whole: column.querySelector('.whole').textContent,
            tokens: [...column.querySelectorAll('.token')].map(token => [
                token.querySelector('.text').textContent, token.querySelector('.number').textContent,
                getComputedStyle(token).backgroundColor, token.classList.contains('prompt')]),
            says: column.textContent}]))"""
    )


def check_columns(columns, play, prompt, seed=1):
    """All that is shown is what the helpers compute."""
    ids = playground.read_prompt(prompt, play)
    expected = playground.complete(play, ids, seed)
    assert list(columns) == list(expected) == ["base", "SFT", "PPO"]
    for name, result in expected.items():
        column = columns[name]
        assert column["whole"] == result["text"]
        assert [text for text, *_ in column["tokens"]] == [text for text, _ in result["tokens"]]
        assert [is_prompt for *_, is_prompt in column["tokens"]] == [i < len(ids) for i in range(len(column["tokens"]))]
        for (_, number, background, _), (_, score) in zip(column["tokens"], result["tokens"]):
            assert float(number) == pytest.approx(score, abs=0.011) and number[0] in "+-"
            parts = [float(x) for x in re.findall(r"[\d.]+", background)]
            hexadecimal = playground.colour(score)
            rgb, alpha = [int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)], int(hexadecimal[7:], 16) / 255
            assert (parts[3] if len(parts) == 4 else 1) == pytest.approx(alpha, abs=0.01)
            assert alpha < 0.01 or parts[:3] == rgb, f"{number} on {background}"
        score, judge = re.search(r"Score ([+-][\d.]+).*Judge: (.*)", column["says"]).groups()
        assert float(score) == pytest.approx(result["score"], abs=0.011) and judge == result["verdict"]
        assert ("without an end-of-text" in column["says"]) == (not result["ended"])


def test_three_columns_as_the_helpers_compute_them(opened, play, server):
    assert {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
    page = opened(viewport={"width": 1400, "height": 1000})
    complete(page, play.examples[0], seed=2)
    columns = shown(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "playground-columns.png", full_page=True)
    check_columns(columns, play, play.examples[0], seed=2)
    expect(page.get_by_role("status")).to_be_empty()
    left = [box["x"] for box in map(lambda s: s.bounding_box(), page.locator("section").all())]
    assert left == sorted(left) and len(set(left)) == 3, "not side by side"
    complete(page, play.examples[0], seed=2)
    assert shown(page) == columns, "the same seed, another text"


@pytest.mark.parametrize("text", HTML)
def test_markup_is_shown_as_text(opened, play, text):
    page = opened()
    complete(page, text)
    check_columns(shown(page), play, text)
    assert all(column["whole"].startswith(text) for column in shown(page).values())
    assert page.locator("section :is(img, script, b, strong)").count() == 0
    page.wait_for_timeout(300)  # an onerror would come now


@pytest.mark.parametrize("prompt, seed, says", [
    ("", 1, "The prompt is empty"),
    ("   ", 1, "The prompt is empty"),
    ("a" * 301, 1, "longer than 300 characters"),
    ("the film " * 12, 1, "24 tokens, and there is room for 23"),
    ("the\x07film", 1, "control character U+0007"),
    ("the film", "", "The seed must be a whole number"),
    ("the film", -1, "The seed must be a whole number"),
])  # fmt: skip
def test_what_will_not_do_is_said(opened, prompt, seed, says):
    page = opened()
    complete(page, prompt, seed)
    expect(page.get_by_role("alert").filter(has_text=says)).to_be_visible()
    expect(page.locator("section")).to_have_count(0)
    complete(page, "the film", 1)
    expect(page.locator("section")).to_have_count(3, timeout=60_000)
    expect(page.locator(".alert")).to_be_empty()


def test_end_of_text_and_unseen_words_are_named(opened, play):
    page = opened()
    complete(page, "the spaceship <|endoftext|>")
    expect(page.get_by_role("status").filter(has_text="The training sentences never use: ")).to_have_text(
        "The training sentences never use: spaceship  <  |  endoftext  >"
    )
    check_columns(shown(page), play, "the spaceship <|endoftext|>")


def test_by_keyboard_in_the_dark_on_a_phone(opened, play):
    page = opened(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    prompt = "antidisestablishmentarianism"
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(prompt)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # while the first one runs: it is no second one
    check_columns(shown(page), play, prompt)
    expect(page.get_by_role("button", name="Complete")).to_be_enabled()
    assert "body--dark" in page.locator("body").get_attribute("class")
    page.screenshot(path=SHOTS / "playground-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = "e => [...e.querySelectorAll('*')].filter(x => x.getBoundingClientRect().right > 390).map(x => x.outerHTML)"
    assert page.locator(".nicegui-content").evaluate(wide) == []
    focused = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        focused.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert {"Seed", "Complete", *play.examples} <= focused


def test_two_visitors_take_turns(opened, play):
    pages = [opened(), opened()]
    for i, page in enumerate(pages):
        page.get_by_label("Prompt", exact=True).fill(play.examples[i])
        page.get_by_role("button", name="Complete").click()
    for i, page in enumerate(pages):
        check_columns(shown(page), play, play.examples[i])
