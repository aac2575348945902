"""Starts a further notebook: `.venv/bin/python tools/new_notebook.py 5-Length` writes beyond/5-Length.ipynb.

What it writes runs and passes the checks; you put your idea in its place.
"""

import sys
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
TITLE = """# Beyond {number} · {name}

{badges}

What you will have at the end, in two or three sentences.

**You are here:** `[ 1 SFT ]` → `[ 2 reward model ]` → `[ 3 PPO ]` → **`[ {name} ]`**

*Prerequisites:* notebooks 1 to 3, to have read; nothing that they saved is used.

| preset | what runs | time | memory |
|---|---|---|---|
| `tiny` | say what | not measured here | not measured here |
| `gpt2` (`RLHF_PRESET=gpt2 make beyond`) | say what | not measured here | not measured here |

**Contents:** [Set-up](#Set-up) · [A question](#A-question) · [Recap](#Recap)"""
CONFIGURATION = """import os
from dataclasses import replace

if os.path.exists("../3-RLHF.ipynb"):
    os.chdir("..")  # the artifacts of notebooks 1 to 3 are there
from rlhf_helpers.presets import load_preset

preset = load_preset()  # preset = replace(preset, ppo_lr=1e-4)"""
IMPORTS = """import torch

from rlhf_helpers import data

torch.manual_seed(preset.seed)
tokenizer = data.load_tokenizer(preset.model)"""
QUESTION = """## A question
Ask it, write the equation, and have the reader guess before the cell runs: how many tokens has a sentence?"""
CELL = """ids = data.encode(["the plot is clever ."], tokenizer, preset.max_tokens)[0]
print(len(ids), "tokens:", [tokenizer.decode([i]) for i in ids])"""
READING = """Say what the output shows, plainly. Then check it, with a hint for the one whose check fails."""
CHECK = """assert ids[-1] == tokenizer.eos_token_id, "no end-of-text: was this encoded by data.encode?\""""
RECAP = """## Recap
- What was shown, and on what.

**Pitfalls.** What goes wrong most often, and how it looks.

## Exercises
1. *(easy, 5 min)* A question that one line answers. <details><summary>solution</summary>In a sentence.</details>

## References
Ouyang et al., *InstructGPT*, [arXiv 2203.02155](https://arxiv.org/abs/2203.02155)

**Next:** back to the [README](../README.md)."""


def write(name: str, root: Path = ROOT) -> Path:
    """A runnable notebook beyond/<name>.ipynb, its set-up cell that of the others, and badges that open it."""
    path = root / "beyond" / f"{name}.ipynb"
    number, _, words = name.partition("-")
    if not (number.isdecimal() and words):
        raise ValueError(f"{name!r} is no number and name, like 5-Length")
    if path.exists():
        raise ValueError(f"{path} is there already")
    beside = min(path.parent.glob("*.ipynb"))
    other = nbformat.read(beside, as_version=4)
    badges = other.cells[0].source.splitlines()[2].replace(quote(beside.name), quote(path.name))
    set_up = next(cell.source for cell in other.cells if cell.cell_type == "code")
    title = TITLE.format(number=number, name=words, badges=badges)
    cells = [new_markdown_cell(title), new_markdown_cell("## Set-up")]
    cells += [new_code_cell(source) for source in (set_up, CONFIGURATION, IMPORTS)]
    cells += [new_markdown_cell(QUESTION), new_code_cell(CELL), new_markdown_cell(READING), new_code_cell(CHECK)]
    nbformat.write(new_notebook(cells=[*cells, new_markdown_cell(RECAP)], metadata=other.metadata), path)
    return path


if __name__ == "__main__":
    try:
        print("wrote", write(" ".join(sys.argv[1:])))
    except ValueError as error:
        sys.exit(str(error))
