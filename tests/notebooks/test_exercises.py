"""Each exercise has a solution to unfold; `make test` runs them, in the copies that tools/with_solutions.py makes."""

import re

import nbformat
import pytest
from test_project import PATHS, ROOT
from with_solutions import KEEP, PUT_BACK, copy_all, exercises


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_every_exercise_has_a_folded_solution_that_can_be_run(path):
    text, solutions = exercises(nbformat.read(path, as_version=4))
    questions = re.findall(r"^(\d+)\. \*\((?:easy|medium|hard), \d+ min\)\*", text, re.M)
    assert list(map(int, questions)) == list(range(1, len(questions) + 1)) and len(questions) >= 3
    assert len(solutions) == text.count("<details>") == text.count("```python") == len(questions)
    for code in solutions:
        assert len(code.splitlines()) <= 15 and max(map(len, code.splitlines())) <= 120, code
        assert re.search(r"^assert ", code, re.M), f"nothing is asserted:\n{code}"


def test_the_copies_hold_each_solution_once_and_in_order(tmp_path):
    copies = copy_all(ROOT, tmp_path)
    assert [c.relative_to(tmp_path) for c in copies] == sorted(path.relative_to(ROOT) for path in PATHS)
    for copy in copies:
        original = nbformat.read(ROOT / copy.relative_to(tmp_path), as_version=4)
        added = nbformat.read(copy, as_version=4).cells[len(original.cells) :]
        assert [cell.source for cell in added[2::2]] == exercises(original)[1]


def test_a_solution_does_not_see_what_another_one_left():
    names = {"__name__": "notebook", "x": 1}
    for source in (KEEP, PUT_BACK, "x, y = 2, 3", PUT_BACK):
        exec(source, names)
    assert names["x"] == 1 and "y" not in names
