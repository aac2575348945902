"""The three notebooks in a person's hands: a real JupyterLab, a real browser, its menus and its stop button."""

import json
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("playwright", reason="driving a browser needs Playwright: make .venv/browser")
from playwright.sync_api import expect

from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "artifacts" / "browser"
LOOP = re.compile(r"^(for \w+ in run:|train_ppo\(policy, run)", re.M)  # in the first cell that trains
MINUTES = 30  # for one notebook; it takes one or two on a quiet machine
LOOK = """cells => cells.map(cell => ({
    prompt: cell.querySelector('.jp-InputPrompt').textContent.trim(),
    text: cell.querySelector('.jp-OutputArea')?.textContent ?? '',
    bad: [...cell.querySelectorAll('[data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"]')]
        .map(output => output.textContent).join('\\n'),
    pictures: [...cell.querySelectorAll('.jp-OutputArea img')].map(image => [image.src, image.naturalWidth]),
}))"""


def counts(start: int, stop: int) -> list[str]:
    return [f"[{count}]:" for count in range(start, stop)]


class Notebook:
    """A notebook in JupyterLab, run by its menus. What it shows is read from the page."""

    def __init__(self, name: str, page, address: tuple[str, str]):
        self.stage = next(stage for stage, notebook in NOTEBOOKS.items() if notebook == name)
        cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
        self.written = [cell for cell in cells if cell["cell_type"] == "code"]
        self.training = next(i for i, cell in enumerate(self.written) if LOOP.search("".join(cell["source"])))
        self.page, self.lab, self.complaints = page, address[0], []
        page.on("pageerror", lambda error: self.complain(f"uncaught: {error}"))
        page.on("console", self.listen)
        page.goto(f"{address[0]}lab/tree/{name}?token={address[1]}")
        self.code = page.locator(".jp-Notebook .jp-CodeCell")
        expect(self.code).to_have_count(len(self.written), timeout=120_000)
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=120_000)

    def listen(self, message) -> None:
        """Keeps errors; of outside pictures (a badge) without a network only the network complains."""
        outside = "Failed to load resource" in message.text and not message.location["url"].startswith(self.lab)
        if message.type == "error" and not outside:
            self.complain(f"console: {message.text} ({message.location['url']})")

    def complain(self, error: str) -> None:
        """What JupyterLab had asked a kernel that is restarted goes unanswered; a cell that does so has no count."""
        if "Canceled future for" not in error:
            self.complaints.append(error)

    def look(self) -> list[dict]:
        return self.code.evaluate_all(LOOK)

    def choose(self, menu: str, item: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def restart_and_run_all(self) -> None:
        """Again, as a person would, if nothing ran for a minute.

        On a busy machine JupyterLab can lose what it sends while it connects to the restarted kernel anew ("Replacing
        stale connection" and "struct.error" in its log): the kernel is idle then, and all cells wait.
        """
        for attempt in range(3):
            self.choose("Kernel", "Restart Kernel and Run All Cells…")
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
            try:
                expect(self.code.first.locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=60_000)
                return
            except AssertionError:
                print(f"restart {attempt + 1}: nothing ran for a minute")
        pytest.fail(f"three restarts, and the first cell has not run\n{self.last_words(self.look())}")

    def run_from_training(self) -> None:
        self.code.nth(self.training).locator(".jp-InputPrompt").click()
        self.choose("Run", "Run Selected Cell and All Below")
        self.page.get_by_text("[*]:", exact=True).first.wait_for(timeout=120_000)

    def watch(self, at_bar=lambda done, of: False) -> list[tuple[int, int]]:
        """Looks on until nothing runs, or `at_bar` says stop: the states of the training's bar."""
        bars, deadline = [], time.time() + 60 * MINUTES
        while (cells := self.look()) and any(cell["prompt"] == "[*]:" for cell in cells):
            assert time.time() < deadline, f"still running after {MINUTES} minutes\n{self.last_words(cells)}"
            training = cells[self.training]
            if training["prompt"] == "[*]:" and (found := re.findall(r"(\d+)/(\d+) \[", training["text"])):
                done, of = map(int, found[-1])
                if (done, of) not in bars[-1:]:
                    bars.append((done, of))
                    if at_bar(done, of):
                        break
            self.page.wait_for_timeout(200)
        return bars

    def last_words(self, cells: list[dict]) -> str:
        said = [f"code cell {i + 1} {cell['prompt']} {cell['text'][-2000:]}" for i, cell in enumerate(cells)]
        return "\n".join([one for one, cell in zip(said, cells) if cell["text"]][-3:] + self.complaints)

    def check(self, expected: list[str]) -> None:
        """Each cell ran, in order; none failed or wrote to stderr; each figure of the repository's outputs is shown."""
        cells = self.look()
        words = self.last_words(cells)
        bad = {i + 1: cell["bad"] for i, cell in enumerate(cells) if cell["bad"]}
        assert not bad, f"errors or stderr, by code cell: {bad}\n{words}"
        assert [cell["prompt"] for cell in cells] == expected, words
        for i, (cell, written) in enumerate(zip(cells, self.written)):
            figures = sum("image/png" in output.get("data", {}) for output in written["outputs"])
            widths = [width for _, width in cell["pictures"]]
            assert len(widths) >= figures and all(widths), f"code cell {i + 1}: {figures} figures, seen {widths}"
        assert sum(len(cell["pictures"]) for cell in cells) >= 2
        assert not self.complaints, self.complaints

    def shoot(self, what: str) -> None:
        """A screenshot of the training cell's outputs."""
        self.code.nth(self.training).evaluate("cell => cell.scrollIntoView({block: 'end'})")
        self.page.screenshot(path=SHOTS / f"{self.stage}-{what}.png", timeout=120_000)


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_restart_and_run_all(stage, page, jupyterlab):
    shutil.rmtree(SHOTS / "run" / "tiny" / stage, ignore_errors=True)
    notebook = Notebook(NOTEBOOKS[stage], page, jupyterlab(SHOTS / "run"))
    notebook.restart_and_run_all()
    early = notebook.watch(lambda done, of: done > of // 3)
    notebook.shoot("training")
    late = notebook.watch()
    notebook.check(counts(1, len(notebook.written) + 1))
    done, of = zip(*early, *late) if early or late else ((), ())
    assert len(set(done)) >= 8 and list(done) == sorted(done) and len(set(of)) == 1, f"no bar moved: {early}, {late}"
    assert done[-1] - done[0] > of[0] / 2, f"the bar was seen on less than half of its way: {early}, {late}"


def metrics(folder: Path) -> pd.DataFrame:
    """Without what a clock measured."""
    frame = pd.read_csv(folder / "metrics.csv", float_precision="round_trip")
    return frame.drop(columns=["seconds", "tokens_per_second"], errors="ignore")


@pytest.mark.parametrize("stage", ["sft", "policy"])
def test_interrupted_it_continues(stage, page, jupyterlab):
    whole, artifacts = SHOTS / "run" / "tiny", SHOTS / "interrupted"
    assert (whole / stage / "model.safetensors").exists(), "compared with what test_restart_and_run_all leaves: run it"
    shutil.rmtree(artifacts, ignore_errors=True)
    if stage == "policy":
        for needed in ("sft", "reward_model"):
            shutil.copytree(whole / needed, artifacts / "tiny" / needed)
    notebook = Notebook(NOTEBOOKS[stage], page, jupyterlab(artifacts))
    notebook.restart_and_run_all()
    notebook.watch(lambda done, of: done > of // 2)
    notebook.choose("Kernel", "Interrupt Kernel")
    notebook.watch()
    cells, count = notebook.look(), notebook.training + 1
    assert "KeyboardInterrupt" in cells[notebook.training]["bad"], notebook.last_words(cells)
    below = len(cells) - count
    assert [cell["prompt"] for cell in cells] == counts(1, count + 1) + ["[ ]:"] * below, notebook.last_words(cells)
    notebook.shoot("interrupted")

    notebook.run_from_training()
    bars = notebook.watch(lambda done, of: done > of * 3 // 4)
    notebook.shoot("continued")
    notebook.watch()
    notebook.check(counts(1, count) + counts(count + 1, count + 2 + below))
    text = notebook.look()[notebook.training]["text"]
    found = re.search(r"stopped after (\d+) of (\d+) steps: continuing", text)
    assert found and 0 < int(found[1]) <= bars[0][0] < int(found[2]) == bars[0][1], f"{bars}\n{text}"
    left = artifacts / "tiny" / stage
    pd.testing.assert_frame_equal(metrics(left), metrics(whole / stage), check_exact=True)
    assert (left / "model.safetensors").read_bytes() == (whole / stage / "model.safetensors").read_bytes()
