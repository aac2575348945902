"""Copies the notebooks with each exercise's solution as a cell at the end: `python tools/with_solutions.py FOLDER`.

`make test` executes the copies, so a solution runs once, in the kernel that has run its notebook. Before each one the
notebook's own names are put back: a solution may use them, and nothing that another solution has left.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parents[1]
KEEP = "_of_the_notebook = dict(globals())"
PUT_BACK = """for _name in [n for n in globals() if n not in _of_the_notebook and not n.startswith("_")]:
    del globals()[_name]
globals().update(_of_the_notebook)"""


def exercises(notebook: nbformat.NotebookNode) -> tuple[str, list[str]]:
    """The text of a notebook's exercises, and the code of their folded solutions."""
    (text,) = [c.source for c in notebook.cells if c.cell_type == "markdown" and "## Exercises" in c.source]
    text = text.split("## Exercises")[1].split("## References")[0]
    folded = re.findall(r"^<details><summary>solution</summary>\n\n(.*?)\n\n</details>$", text, re.M | re.S)
    return text, [code for solution in folded for code in re.findall(r"^```python\n(.*?)\n```$", solution, re.M | re.S)]


def copy_all(root: Path, folder: Path) -> list[Path]:
    """The notebooks of `root` with their solutions, and what stands beside those of beyond/, in `folder`."""
    copies = []
    shutil.copytree(root / "beyond", folder / "beyond", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb"))
    for path in sorted([*root.glob("*.ipynb"), *root.glob("beyond/*.ipynb")]):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(new_code_cell(KEEP))
        for solution in exercises(notebook)[1]:
            notebook.cells += [new_code_cell(PUT_BACK), new_code_cell(solution)]
        copies.append(folder / path.relative_to(root))
        nbformat.write(notebook, copies[-1])
    return copies


if __name__ == "__main__":
    copy_all(ROOT, Path(sys.argv[1]))
