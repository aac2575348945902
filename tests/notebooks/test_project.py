"""What a person meets first: the committed notebooks, the runner and the set-up."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from rlhf_helpers.__main__ import execute, main
from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[2]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
PATHS = [ROOT / name for name in NOTEBOOKS.values()] + sorted((ROOT / "beyond").glob("*.ipynb"))
SET_UP = {"notebooks 1 to 3": "rlhf-in-notebooks", "beyond": "rlhf-in-notebooks[beyond]"}  # what pip is asked for


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_committed_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata, "GitHub refuses widget metadata"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not one clean run"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code:
        assert len(cell.source.splitlines()) <= 20, cell.source
        assert cell is code[0] or not re.search(r"^\s*[!%]", cell.source, re.M), "a shell escape or magic"
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", output
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
            if "image/png" in output.get("data", {}):  # what a figure shows, for who can't see it, and for make book
                assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) > 30, cell.source
    wanted = SET_UP["beyond" if path.parent.name == "beyond" else "notebooks 1 to 3"]
    assert re.findall(r"^\s*[!%].*", code[0].source, re.M) == [f'    %pip install -q "{wanted} @ git+{ADDRESS}"']
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|/work/|/root/|/home/", text), "a token or a private path"
    headings = re.findall(r"^(#+) ", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    assert headings.count("#") == 1 and headings[0] == "#"
    assert all(len(b) <= len(a) + 1 for a, b in pairwise(headings))


def test_conda_installs_what_make_does():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert packages == ["python=3.11", "pip", {"pip": ["-c constraints.txt", "-e .[lab,beyond,test]"]}]


def notebook_of(tmp_path, *sources):
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_markdown_cell("## A section")]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def test_runner_streams_and_keeps_text_and_pictures(tmp_path, capsys):
    html = "display({'text/plain': 'x', 'text/html': '<b>x</b>'}, raw=True)"
    execute(notebook_of(tmp_path, "print('hello')", html), tmp_path / "out" / "toy.ipynb")
    printed = capsys.readouterr().out
    assert "A section" in printed and "hello" in printed and "done in" in printed
    code = [c for c in nbformat.read(tmp_path / "out" / "toy.ipynb", 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [1, 2] and not any("execution" in c.metadata for c in code)
    assert code[1].outputs[0].data == {"text/plain": "x"}


@pytest.mark.parametrize("source, why", [
    ("raise ValueError('no good')", "failed in section 'A section': ValueError: no good"),
    ("import os; os._exit(1)", "the kernel died in section 'A section'"),
])  # fmt: skip
def test_runner_names_section_and_error_and_keeps_no_earlier_output(tmp_path, source, why):
    path = notebook_of(tmp_path, source, "print('later')")
    notebook = nbformat.read(path, 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="from an earlier run")]
    nbformat.write(notebook, path)
    with pytest.raises(SystemExit, match=why):
        execute(path, tmp_path / "out.ipynb")
    assert not nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs


def run_main(monkeypatch, folder, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    monkeypatch.setenv("RLHF_ARTIFACTS", "out")
    monkeypatch.setattr("sys.argv", ["rlhf_helpers", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return str(ended.value)


def test_in_place_waits_for_all(tmp_path, monkeypatch):
    assert "is not here" in run_main(monkeypatch, tmp_path, "sft")
    for name, source in {"1-SFT.ipynb": "1", "2-RM Training.ipynb": "1 / 0"}.items():
        notebook_of(tmp_path, source).rename(tmp_path / name)
    before = (tmp_path / "1-SFT.ipynb").read_text()
    assert "ZeroDivisionError" in run_main(monkeypatch, tmp_path, "--in-place", "sft", "rm")
    assert (tmp_path / "1-SFT.ipynb").read_text() == before
    assert (tmp_path / "out" / "tiny" / "1-SFT.ipynb").exists()


def test_the_tables_of_the_pages_are_those_of_their_runs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ablations
    import grpo
    import noise
    import speed

    results, pages = (ROOT / "docs" / "results.md").read_text(), (ROOT / "docs" / "speed.md").read_text()
    beyond_5 = [cell.source for cell in nbformat.read(ROOT / "beyond" / "5-GRPO.ipynb", as_version=4).cells]
    assert ablations.table(pd.read_csv(ablations.RESULTS)) in results
    assert noise.table(pd.read_csv(noise.RESULTS)) in results
    assert any(grpo.table(pd.read_csv(grpo.RESULTS)) in text for text in beyond_5)
    assert speed.gains(pd.read_csv(speed.GAINS)) in pages
    runs = pd.read_csv(speed.SPEED)
    assert (runs.groupby(["machine", "stage", "contender"]).size() >= 5).all(), "too few runs for a median"
    assert speed.tables(runs) in pages
