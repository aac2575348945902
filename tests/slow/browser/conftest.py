"""A JupyterLab server of our own and a headless Chromium; without one these tests are skipped."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "artifacts" / "browser"
SETTINGS = {  # every cell in the page, not only those in view; no questions about news
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="session")
def chromium():
    """A Chromium or Chrome of the system, else Playwright's own."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: make .venv/browser"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright_api.sync_playwright() as playwright:
        root = os.name == "posix" and os.geteuid() == 0
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        except playwright_api.Error:
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


@pytest.fixture
def jupyterlab(tmp_path):
    """Starts JupyterLab on a copy of the notebooks, without their outputs: `start(artifacts)` gives its address.

    Its configuration, workspace and kernels are its own; nothing of yours is read or changed.
    """
    work, home, log = tmp_path / "work", tmp_path / "home", tmp_path / "jupyterlab.log"
    shutil.copytree(ROOT / "rlhf_helpers", work / "rlhf_helpers")
    shutil.copy(ROOT / "pyproject.toml", work)
    for path in ROOT.glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
        (work / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    for name, settings in SETTINGS.items():
        file = home / "CONFIG" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    own = {f"JUPYTER_{name}_DIR": home / name for name in ("CONFIG", "DATA", "RUNTIME")} | {"IPYTHONDIR": home}
    own |= {"JUPYTER_PATH": Path(sys.prefix) / "share" / "jupyter", "JUPYTER_PREFER_ENV_PATH": "1"}
    servers = []

    def start(artifacts):
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={work}"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
        env |= {name: str(value) for name, value in own.items()}
        env |= {"RLHF_PRESET": "tiny", "RLHF_ARTIFACTS": str(artifacts)}
        with log.open("w") as file:
            servers.append(subprocess.Popen(command, cwd=work, stdout=file, stderr=file, env=env))
        for _ in range(600):
            assert servers[-1].poll() is None, f"JupyterLab ended:\n{log.read_text()[-2000:]}"
            if address := re.search(r"(http://127\S+)/lab\?(token=\w+)", log.read_text()):
                return address.groups()
            time.sleep(0.2)
        pytest.fail(f"JupyterLab did not come up in 2 minutes:\n{log.read_text()[-2000:]}")

    yield start
    for server in servers:
        server.terminate()  # it ends its kernels first
        server.wait(60)
