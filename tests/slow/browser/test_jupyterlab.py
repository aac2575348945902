"""The three notebooks in a person's hands: a real JupyterLab, a real browser, its menus and its stop button."""

import json
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="driving a browser needs Playwright: make .venv/browser")
from playwright.sync_api import expect
from test_nothing_lost import same

from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[3]
RUN = ROOT / "artifacts" / "browser" / "run"
LOOP = re.compile(r"^(for \w+ in run:|train_ppo\(policy, run)", re.M)  # in the first cell that trains
MINUTES = 30  # for one notebook; it takes one or two on a quiet machine
LOOK = """cells => cells.map(cell => ({
    prompt: cell.querySelector('.jp-InputPrompt').textContent.trim(),
    text: cell.querySelector('.jp-OutputArea')?.textContent ?? '',
    bad: [...cell.querySelectorAll('[data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"]')]
        .map(output => output.textContent).join('\\n'),
    widths: [...cell.querySelectorAll('.jp-OutputArea img')].map(image => image.naturalWidth),
}))"""


class Notebook:
    """A notebook in JupyterLab, run by its menus. What it shows is read from the page."""

    def __init__(self, stage, page, address):
        cells = json.loads((ROOT / NOTEBOOKS[stage]).read_text(encoding="utf-8"))["cells"]
        self.written = [cell for cell in cells if cell["cell_type"] == "code"]
        self.training = next(i for i, cell in enumerate(self.written) if LOOP.search("".join(cell["source"])))
        self.page = page
        page.goto(f"{address[0]}/lab/tree/{NOTEBOOKS[stage]}?{address[1]}")
        self.code = page.locator(".jp-Notebook .jp-CodeCell")
        expect(self.code).to_have_count(len(self.written), timeout=120_000)
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=120_000)

    def look(self):
        return self.code.evaluate_all(LOOK)

    def choose(self, menu, item):
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def restart_and_run_all(self):
        """Again if nothing ran for a minute: a busy JupyterLab can lose what it sends to a restarted kernel."""
        for _ in range(3):
            self.choose("Kernel", "Restart Kernel and Run All Cells…")
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
            with suppress(AssertionError):
                return expect(self.code.first.locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=60_000)
        return pytest.fail("three restarts, and the first cell has not run")

    def run_from_training(self):
        self.code.nth(self.training).locator(".jp-InputPrompt").click()
        self.choose("Run", "Run Selected Cell and All Below")
        self.page.get_by_text("[*]:", exact=True).first.wait_for(timeout=120_000)

    def watch(self, stop=lambda done, of: False):
        """The states (done, of) of the training's bar, until nothing runs or `stop` says so."""
        bars, deadline = [], time.time() + 60 * MINUTES
        while (cells := self.look()) and any(cell["prompt"] == "[*]:" for cell in cells):
            assert time.time() < deadline, f"still running after {MINUTES} minutes"
            training = cells[self.training]
            bar = re.findall(r"(\d+)/(\d+) \[", training["text"]) if training["prompt"] == "[*]:" else []
            if bar and (state := tuple(map(int, bar[-1]))) not in bars:
                bars.append(state)
                if stop(*state):
                    break
            self.page.wait_for_timeout(200)
        return bars

    def check(self, counts):
        """Each cell ran, in order, without error or stderr, and shows the figures of the repository's outputs."""
        cells = self.look()
        assert not [cell["bad"] for cell in cells if cell["bad"]]
        assert [cell["prompt"] for cell in cells] == [f"[{count}]:" for count in counts]
        for cell, written in zip(cells, self.written):
            figures = sum("image/png" in output.get("data", {}) for output in written["outputs"])
            assert len(cell["widths"]) >= figures and all(cell["widths"]), "".join(written["source"])


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_restart_and_run_all(stage, page, jupyterlab):
    shutil.rmtree(RUN / "tiny" / stage, ignore_errors=True)
    notebook = Notebook(stage, page, jupyterlab(RUN))
    notebook.restart_and_run_all()
    bars = notebook.watch()
    notebook.check(range(1, len(notebook.written) + 1))
    assert len(bars) >= 8 and bars == sorted(bars), f"no bar moved: {bars}"


@pytest.mark.parametrize("stage", ["sft", "policy"])
def test_interrupted_it_continues(stage, page, jupyterlab):
    whole, interrupted = RUN / "tiny", RUN.with_name("interrupted")
    assert (whole / stage / "model.safetensors").exists(), "compared with what test_restart_and_run_all leaves: run it"
    shutil.rmtree(interrupted, ignore_errors=True)
    for needed in ("sft", "reward_model") if stage == "policy" else ():
        shutil.copytree(whole / needed, interrupted / "tiny" / needed)
    notebook = Notebook(stage, page, jupyterlab(interrupted))
    notebook.restart_and_run_all()
    notebook.watch(lambda done, of: done > of // 2)
    notebook.choose("Kernel", "Interrupt Kernel")
    notebook.watch()
    count, cells = notebook.training + 1, notebook.look()
    assert "KeyboardInterrupt" in cells[notebook.training]["bad"] and cells[count]["prompt"] == "[ ]:"

    notebook.run_from_training()
    bars = notebook.watch()
    notebook.check([*range(1, count), *range(count + 1, len(cells) + 2)])
    found = re.search(r"stopped after step (\d+): continuing", notebook.look()[notebook.training]["text"])
    assert found and 0 < int(found[1]) <= bars[0][0], bars
    left = interrupted / "tiny" / stage
    same(left, whole / stage)
    assert (left / "model.safetensors").read_bytes() == (whole / stage / "model.safetensors").read_bytes()
