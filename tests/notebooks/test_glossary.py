"""docs/glossary.md documents what is logged: all of it, and nothing else."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ARTIFACTS = os.environ.get("RLHF_ARTIFACTS", "")


def documented(part):
    """The names in the first column of the tables whose heading ends in `part`."""
    sections = [s for s in GLOSSARY.split("\n## ")[1:] if s.splitlines()[0].endswith(part)]
    names = [n for s in sections for row in re.findall(r"^\| (`.*?) \| ", s, re.M) for n in re.findall(r"`(.+?)`", row)]
    assert len(names) == len(set(names)) > 0, "a name stands twice"
    return set(names)


def evaluated(values):
    """Names of figures in an evaluation.json: those of each model, or of the one that it is about."""
    for name, value in values.items():
        if isinstance(value, dict) and name != "intervals":
            yield from evaluated(value)
        else:
            yield re.sub(r"_(before|after)$", "", name)


def test_every_row_says_what_is_healthy_and_what_to_do():
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| `(?!step`).*", GLOSSARY, re.M)]
    assert len(rows) > 40 and all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)


def test_the_glossary_and_the_logs_hold_the_same_names():
    folder = ROOT / ARTIFACTS / "tiny"
    if not ARTIFACTS or not (folder / "beyond-3").exists():
        pytest.skip("the notebooks have not been run into RLHF_ARTIFACTS: make test does it first")
    logged = {name for path in folder.rglob("metrics.csv") for name in pd.read_csv(path, nrows=0).columns}
    assert logged == documented("metrics.csv")
    figures = {x for path in folder.rglob("evaluation.json") for x in evaluated(json.loads(path.read_text()))}
    both = {"loss", "accuracy", "length", "eos_rate"}  # explained where they are logged
    assert figures - both == documented("evaluation.json") and both <= figures & logged
