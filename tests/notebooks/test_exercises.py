"""The exercises' solutions are run: each as a reader would, in a new cell at the end of its notebook."""

import dis
import os
import re

import nbformat
import pytest
from matplotlib import pyplot
from test_project import PATHS, ROOT

ARTIFACTS = os.environ.get("RLHF_ARTIFACTS", "")
# the first cell that is not run: from there on there are slow trainings, and nothing that a solution needs
UNTIL = {"3-RLHF.ipynb": "panel = display(", "1-DPO.ipynb": "def with_best_of(", "4-Scaling.ipynb": "def run(*command)"}


def exercises(path):
    """The text of a notebook's exercises, and the code of their solutions."""
    (text,) = [c.source for c in nbformat.read(path, as_version=4).cells if "## Exercises" in c.source]
    text = text.split("## Exercises")[1].split("## References")[0]
    folded = re.findall(r"^<details><summary>solution</summary>\n\n(.*?)\n\n</details>$", text, re.M | re.S)
    return text, [code for solution in folded for code in re.findall(r"^```python\n(.*?)^```$", solution, re.M | re.S)]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_every_exercise_has_a_folded_solution_that_can_be_run(path):
    text, solutions = exercises(path)
    questions = re.findall(r"^(\d+)\. \*\((?:easy|medium|hard), \d+ min\)\*", text, re.M)
    assert list(map(int, questions)) == list(range(1, len(questions) + 1)) and len(questions) >= 3
    assert len(solutions) == text.count("<details>") == text.count("```python") == len(questions)
    for code in solutions:
        assert len(code.splitlines()) <= 15 and max(map(len, code.splitlines())) <= 120, code
        assert re.search(r"^assert ", code, re.M), f"nothing is asserted:\n{code}"


def names_in(code, *operations):
    """The names that code, and the functions in it, loads or stores so."""
    names = {x.argval for x in dis.get_instructions(code) if x.opname in operations}
    return names.union(*(names_in(x, *operations) for x in code.co_consts if hasattr(x, "co_code")))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_solutions_run_after_their_notebook(path, monkeypatch):
    folder = ROOT / ARTIFACTS
    if not ARTIFACTS or not (folder / "tiny" / "beyond-3").exists():
        pytest.skip("the notebooks have not been run into RLHF_ARTIFACTS: make test does it first")
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    monkeypatch.chdir(ROOT)
    cells = nbformat.read(path, as_version=4).cells
    until = next(i for i, cell in enumerate(cells) if UNTIL.get(path.name, "## Recap") in cell.source)
    names, codes = (
        {"__name__": "__main__"},
        [compile(c.source, path.name, "exec") for c in cells if c.cell_type == "code"],
    )
    run = sum(cell.cell_type == "code" for cell in cells[:until])
    for code in codes[:run]:
        exec(code, names)
        pyplot.close("all")
    later = set().union(*(names_in(code, "STORE_NAME") for code in codes[run:]))
    later -= {"preset"}  # notebook 3 changes it for one run, and back
    left, kept = files(folder), dict(names)
    for number, text in enumerate(exercises(path)[1], 1):
        code = compile(text, f"{path.name}, solution {number}", "exec")
        taken = names_in(code, "LOAD_NAME", "LOAD_GLOBAL") - names_in(code, "STORE_NAME")
        assert not taken & later, f"solution {number}: at the end of the notebook these hold something else"
        exec(code, names)
        names.clear()
        names.update(kept)  # each stands by itself
    assert files(folder) == left, "a solution wrote into the notebooks' artifacts"
