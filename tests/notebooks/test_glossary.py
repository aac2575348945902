"""docs/glossary.md documents what is logged: all of it, and nothing else."""

import copy
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from rlhf_helpers import data
from rlhf_helpers.beyond import loops, preferences
from rlhf_helpers.models import PolicyWithValueHead, freeze
from rlhf_helpers.presets import load_preset

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


def test_what_the_helpers_log_is_documented(lm, tokenizer, prompts, tmp_path):
    """Without the notebooks: a step of each loop."""
    preset, sft, reference = replace(load_preset("tiny"), ppo_new_tokens=6), copy.deepcopy(lm), copy.deepcopy(lm)
    policy = PolicyWithValueHead(lm)
    ppo_run = loops.new_run(tmp_path / "ppo", policy, preset, "policy", steps=1, lr=1e-3)
    sft_run = loops.new_run(tmp_path / "sft", sft, preset, "sft", steps=1, lr=1e-3)
    reward = lambda input_ids, attention_mask: torch.ones(len(input_ids))  # noqa: E731
    loops.align(ppo_run, preset, policy, freeze(reference), reward, lambda _: prompts, tokenizer)

    def loss_of(batch):
        ids, mask = data.pad(batch, tokenizer.pad_token_id)
        loss = sft(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss
        return loss, preferences.dpo_loss(*torch.zeros(4, 2), beta=0.1)[1]

    loops.fit(sft_run, preset, [[[1, 2, 3, 0], [4, 5, 0]]], loss_of)
    logged = set(ppo_run.metrics) | set(sft_run.metrics)
    only_notebooks_log = {"judge", "validation_loss", "rouge"}
    assert logged | only_notebooks_log == documented("metrics.csv")
