"""The loops of beyond/ take the very steps that the loops in notebooks 1 and 3 take."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from rlhf_helpers import data, evaluation, health, ppo, rollouts, training
from rlhf_helpers.beyond import loops
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, disable_dropout, freeze
from rlhf_helpers.presets import NOTEBOOKS, load_preset

ROOT = Path(__file__).parents[2]
ROWS = [[1, 2, 3, 0], [4, 5, 0], [6, 7, 8, 9, 0], [10, 0]]


@pytest.fixture
def preset(monkeypatch):
    for name in ("SEED", "MODEL", "DATASET", "ARTIFACTS"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)
    small = {"ppo_batch": 5, "ppo_minibatch": 2, "ppo_new_tokens": 6, "ppo_target_kl": 1.0, "ppo_critic_updates": 1}
    return replace(load_preset("tiny"), **small)


def notebook_cell(stage, pattern):
    """The source of a notebook's code cell."""
    cells = nbformat.read(ROOT / NOTEBOOKS[stage], as_version=4).cells
    (source,) = [c.source for c in cells if c.cell_type == "code" and re.search(pattern, c.source)]
    return source


def run_of(folder, model, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return training.Run(
        folder, model, optimizer, training.linear_schedule(optimizer, steps), steps=steps, seed=0, settings={}
    )


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_fit_takes_the_steps_of_notebook_1(lm, tokenizer, preset, tmp_path):
    lm, batches = disable_dropout(lm), [ROWS[:2], ROWS[2:], ROWS]
    by_hand, start = copy.deepcopy(lm), copy.deepcopy(lm)
    names = {"lm": by_hand, "run": run_of(tmp_path / "a", by_hand, 3), "validation": ROWS, "batches": batches}
    exec(
        notebook_cell("sft", r"^for step in run"),
        names
        | {"preset": preset, "data": data, "training": training, "evaluation": evaluation, "tokenizer": tokenizer},
    )

    def loss_of(batch):
        ids, mask = data.pad(batch, tokenizer.pad_token_id)
        return lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {"rows": len(batch)}

    run = run_of(tmp_path / "b", lm, 3)
    loops.fit(run, preset, batches, loss_of, lambda: {"validation_loss": 1.0})
    assert same(lm, by_hand) and not same(lm, start)
    assert run.metrics["loss"].equals(names["run"].metrics["loss"])
    assert list(run.metrics["rows"]) == [2, 2, 4] and (run.metrics["validation_loss"] == 1).all()


def test_align_takes_the_steps_of_notebook_3(lm, tokenizer, preset, prompts, tmp_path):
    reward_model = freeze(RewardModel(copy.deepcopy(lm)))
    torch.nn.init.normal_(reward_model.model.score.weight)
    reference, start = freeze(copy.deepcopy(lm)), PolicyWithValueHead(copy.deepcopy(lm), critic=reward_model)
    by_hand, policy = copy.deepcopy(start), copy.deepcopy(start)

    def reward(batch):
        return reward_model(batch.input_ids, batch.attention_mask)

    collect = {"beta": 0.1, "no_eos_score": preset.ppo_no_eos_score, "rows_at_once": preset.ppo_minibatch}
    collect |= {"gamma": preset.ppo_gamma, "lam": preset.ppo_lam}
    names = {
        "preset": preset, "data": data, "training": training, "rollouts": rollouts, "ppo": ppo, "health": health,
        "tokenizer": tokenizer, "reference": reference, "reward": reward, "collect": collect,
        "judge": lambda texts: pd.Series([1.0]), "ppo_rows": [[*p, 3, 4, 0] for p in prompts],
    }  # fmt: skip
    exec(notebook_cell("policy", r"^def train_ppo"), names)
    theirs, ours = run_of(tmp_path / "a", by_hand, 3), run_of(tmp_path / "b", policy, 3)
    names["train_ppo"](by_hand, theirs, preset.ppo_beta)

    def prompts_of(update):
        seed = preset.seed * 99991 + update
        return data.sample_prompts(names["ppo_rows"], preset.ppo_batch, preset.ppo_prompt_tokens, seed)

    loops.align(ours, preset, policy, reference, reward, prompts_of, tokenizer)
    assert same(policy, by_hand) and not same(policy, start)
    shared = [c for c in ours.metrics if c not in ("seconds", "tokens_per_second")]
    assert "beta" in shared and ours.metrics[shared].equals(theirs.metrics[shared])


def test_normalised_is_the_reward_of_notebook_3(lm, tokenizer, preset, prompts):
    reward_model = freeze(RewardModel(copy.deepcopy(lm)))
    torch.nn.init.normal_(reward_model.model.score.weight)
    names = {
        "torch": torch, "preset": preset, "data": data, "rollouts": rollouts, "training": training,
        "tokenizer": tokenizer,
        "reference": lm, "reward_model": reward_model, "ppo_rows": [[*p, 3, 4, 0] for p in prompts],
    }  # fmt: skip
    exec(notebook_cell("policy", r"mean, deviation = raw"), names)
    reward = loops.normalised(reward_model, names["parts"], preset)
    assert torch.equal(reward(names["parts"][0]), names["reward"](names["parts"][0]))
    scored = torch.cat([reward(part) for part in names["parts"]])
    assert scored.mean().abs() < 1e-5 and (scored.std() - 1).abs() < 1e-5
    with pytest.raises(ValueError, match="all alike"):
        loops.normalised(freeze(RewardModel(copy.deepcopy(lm))), names["parts"], preset)
