"""What a person meets first: the committed notebooks, the runner and the set-up."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from rlhf_helpers import environment
from rlhf_helpers.__main__ import execute
from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[1]
PATHS = [ROOT / name for name in NOTEBOOKS.values()] + sorted((ROOT / "beyond").glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_committed_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata, "GitHub refuses widget metadata"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not one clean run"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code:
        assert len(cell.source.splitlines()) <= 15, cell.source
        assert not re.search(r"^\s*[!%]", cell.source, re.M), "a shell escape or magic"
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", output
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|/work/|/root/|/home/", text), "a token or a private path"
    headings = re.findall(r"^(#+) ", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    assert headings.count("#") == 1 and headings[0] == "#"
    assert all(len(b) <= len(a) + 1 for a, b in zip(headings, headings[1:]))


def test_links_between_notebooks_and_files_resolve():
    for path in [*PATHS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not link.startswith("http") and "\\" not in link:
                assert (path.parent / link.replace("%20", " ")).exists(), f"{path.name}: {link}"


def test_dependencies_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["lab"] + extras["test"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), line
    assert pins["torch"] == "2.13.0"
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert packages == ["python=3.11", "pip", {"pip": ["-c constraints.txt", "-e .[lab,test]"]}]


def test_set_up_installs_only_what_is_missing(monkeypatch, capsys):
    calls = []

    def run(command, **kwargs):
        calls.append((command, Path(command[command.index("-c") + 1]).read_text()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environment.subprocess, "run", run)
    monkeypatch.setattr(environment, "requirements", lambda: [Requirement("torch>=2"), Requirement("not-there>=1")])
    environment.install_missing()
    ((command, pins),) = calls
    assert command[-1] == "not-there>=1" and not any("torch" in part for part in command)
    assert re.search(r"^torch==\d", pins, re.M) and re.search(r"^numpy==\d", pins, re.M)
    assert "torch" in capsys.readouterr().out


def test_set_up_replaces_nothing_out_of_range(monkeypatch):
    monkeypatch.setattr(environment, "requirements", lambda: [Requirement("torch>=99")])
    monkeypatch.setattr(environment.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    with pytest.raises(RuntimeError, match="torch .* is here, >=99 is needed"):
        environment.install_missing()


def test_requirements_are_read_from_the_project():
    assert {"torch", "transformers", "datasets"} <= {r.name for r in environment.requirements()}


def notebook_of(tmp_path, *sources):
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_markdown_cell("## A section")]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def test_runner_streams_and_keeps_the_copy(tmp_path, capsys):
    execute(notebook_of(tmp_path, "print('hello')", "1 + 1"), tmp_path / "out" / "toy.ipynb")
    printed = capsys.readouterr().out
    assert "A section" in printed and "hello" in printed and "done in" in printed
    code = [c for c in nbformat.read(tmp_path / "out" / "toy.ipynb", 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [1, 2] and not any("execution" in c.metadata for c in code)


def test_runner_names_section_and_error(tmp_path):
    with pytest.raises(SystemExit, match=r"toy.ipynb failed in section 'A section': ValueError: no good"):
        execute(notebook_of(tmp_path, "raise ValueError('no good')"), tmp_path / "out.ipynb")
    assert json.loads((tmp_path / "out.ipynb").read_text())["cells"]


def test_runner_needs_the_notebooks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_helpers", "sft"], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "RLHF_PRESET": "tiny"},
    )  # fmt: skip
    assert done.returncode == 1 and "is not here" in done.stderr
