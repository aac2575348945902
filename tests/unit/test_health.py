"""health.py: PPO is made to go wrong by training it wrongly, and each time the run says what happened."""

import copy
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_loops import notebook_cell

from rlhf_helpers import data, health, ppo, rollouts, training
from rlhf_helpers.beyond import loops
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, freeze
from rlhf_helpers.presets import load_preset

GOOD = 7  # the word "good" of conftest's tokenizer


@pytest.fixture
def preset(monkeypatch):
    for name in ("SEED", "MODEL", "DATASET", "ARTIFACTS"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)
    small = {
        "ppo_batch": 60,
        "ppo_minibatch": 30,
        "ppo_new_tokens": 8,
        "ppo_beta": 0.0,
        "ppo_no_eos_score": -1.0,
        "ppo_critic_updates": 0,
    }
    return replace(load_preset("tiny"), **small)


@pytest.fixture
def new_run(lm, tmp_path):
    def new_run(steps=20, lr=1e-2):
        policy = PolicyWithValueHead(copy.deepcopy(lm))
        optimizer = torch.optim.Adam(policy.parameters(), lr=lr, eps=1e-5)
        return training.Run(
            tmp_path / "run",
            policy,
            optimizer,
            training.linear_schedule(optimizer, steps),
            steps=steps,
            seed=0,
            settings={},
        )

    return new_run


@pytest.fixture
def align(lm, tokenizer, prompts):
    """Trains the policy of a run by the loop of beyond/."""
    before = freeze(copy.deepcopy(lm))

    def align(run, preset, reward, reference=before):
        loops.align(run, preset, run.model, reference, reward, lambda update: prompts * 12, tokenizer)

    return align


def mentions(batch):
    """How often each response says "good"."""
    return (batch.response_ids == GOOD).sum(1).float()


def test_a_healthy_run_is_left_alone(new_run, align, preset, capsys):
    run = new_run(lr=2e-3)
    align(run, replace(preset, ppo_beta=0.4), lambda batch: (mentions(batch) > 0).float() * 2)
    assert run.metrics["score"].tail(3).mean() > run.metrics["score"][0] + 0.5, "it did not even learn"
    assert "Warning" not in capsys.readouterr().out and not list(health.findings(run.metrics))


def test_the_runs_of_the_notebooks_are_healthy():
    if not os.environ.get("RLHF_ARTIFACTS"):
        pytest.skip("RLHF_ARTIFACTS names no folder of the notebooks' runs; make test sets it")
    folder = Path(__file__).parents[2] / os.environ["RLHF_ARTIFACTS"] / "tiny"
    runs = {path.parent.name: pd.read_csv(path) for path in folder.glob("**/metrics.csv")}
    found = {name: [x[0] for x in health.findings(runs[name])] for name in runs if "kl_k1" in runs[name]}
    assert len(found) >= 5 and set(found.pop("beta_0")) <= {"reward hacking", "entropy collapse"}
    assert not any(found.values()), found


def test_a_kl_past_its_bound_stops(new_run, align, preset):
    run = new_run(lr=0.1)  # thirty times too high
    with pytest.raises(RuntimeError, match=r"KL past its bound at update \d+ .*kl_k1 0 at the start.*ppo_lr"):
        align(run, replace(preset, ppo_beta=0.15, ppo_no_eos_score=0.0), mentions)
    assert 0 < len(run.metrics) < 19
    row = run.row  # it stopped at once: no earlier update was past the bound
    assert row["beta"] * row["kl_k1"] > 3 and (0.15 * run.metrics["kl_k1"] < 3 + run.metrics["score"].max()).all()


def test_entropy_collapse_warns_once(new_run, align, preset, capsys):
    run = new_run()
    align(run, preset, mentions)  # one word is all that is paid for
    printed = capsys.readouterr().out
    assert printed.count("Warning: entropy collapse at update") == 1 and len(run.metrics) == 20
    ((name, row, figures),) = health.findings(run.metrics)
    assert name == "entropy collapse" and f"at update {row} of" in printed and figures in printed
    low = run.metrics["entropy"] < run.metrics["entropy"][0] / 4
    assert low[row] and not low[:row].any() and f"{run.metrics['entropy'][row]:.3g} now" in figures


def test_a_warning_is_not_repeated_after_a_resume(new_run, align, preset, capsys):
    class Interrupted(Exception): ...

    def until(update):
        def reward(batch):
            if run.row["step"] == update:
                raise Interrupted
            return mentions(batch)

        return reward

    run = new_run()
    with pytest.raises(Interrupted):
        align(run, preset, until(16))
    assert capsys.readouterr().out.count("Warning") == 1
    run = new_run()
    align(run, preset, until(None))
    assert "continuing" in (printed := capsys.readouterr().out) and "Warning" not in printed


def test_responses_of_length_zero_stop(new_run, align, preset):
    run, settings = new_run(), replace(preset, ppo_no_eos_score=-20.0)
    with pytest.raises(RuntimeError, match=r"empty responses at update \d+ .*length .* 1 now; eos_rate .* 1 now"):
        align(run, settings, lambda batch: -batch.response_mask.sum(1).float())
    assert len(run.metrics) > 1 and run.metrics["length"][0] > 3, "it was not trained to end"


def test_reward_that_runs_away_while_the_judge_falls(new_run, lm, tokenizer, prompts, preset, capsys):
    """In notebook 3's own loop: a judge wants "good" once or twice, the reward is paid each time."""
    run = new_run(steps=30, lr=3e-3)
    judge = lambda texts: np.array([text.split().count("good") in (1, 2) for text in texts], float)  # noqa: E731
    names = {
        "preset": preset, "data": data, "training": training, "rollouts": rollouts, "ppo": ppo, "health": health,
        "reference": freeze(copy.deepcopy(lm)), "reward": mentions, "judge": judge, "tokenizer": tokenizer,
        "collect": {"beta": 0.0, "no_eos_score": preset.ppo_no_eos_score, "rows_at_once": 30},
        "ppo_rows": [[*p, 3, 4, 0] for p in prompts],
    }  # fmt: skip
    exec(notebook_cell("policy", r"^def train_ppo"), names)
    names["train_ppo"](run.model, run, 0.0)
    printed, metrics = capsys.readouterr().out, run.metrics
    assert printed.count("Warning: reward hacking at update") == 1 and len(metrics) == 30, "it must run to its end"
    (row,) = [row for name, row, _ in health.findings(metrics) if name == "reward hacking"]
    verdicts = metrics["judge"].rolling(5).mean()
    assert verdicts[row] < verdicts[:row].max() - 0.1 and metrics["score"][row] > metrics["score"][verdicts.idxmax()]
    assert f"judge {metrics['judge'][0]:.3g} at the start, {metrics['judge'][: row + 1].max():.3g} at most" in printed


def test_without_a_judge_there_is_no_hacking_to_be_seen(new_run, align, preset):
    run = new_run(steps=8, lr=5e-3)  # the entropy falls, but does not collapse
    align(run, preset, mentions)
    assert [name for name, _, _ in health.findings(run.metrics.assign(judge=[0.5] * 3 + [0.9] + [0.0] * 4))] == [
        "reward hacking"
    ]
    assert not list(health.findings(run.metrics))


def spoil(model, value):
    with torch.no_grad():
        next(model.parameters()).fill_(value)
    return model


@pytest.mark.parametrize(
    "culprit, message",
    [
        ("reward", r"score: nan in 60 of 60 responses"),
        ("one response", r"score: inf in 1 of 60 responses, the first is row 7"),
        ("value head", r"value: -inf in 60 of 60 responses"),
        ("reference", r"reference logprob: nan in 60 of 60 responses"),
        ("policy", r"the policy's logits are nan"),
    ],
)
def test_what_is_not_finite_is_named_before_it_is_learned_from(new_run, align, preset, lm, culprit, message):
    run, reference = new_run(steps=4), freeze(copy.deepcopy(lm))
    run.every = 4  # no checkpoint before the next update: it would be refused
    reward_model = freeze(RewardModel(copy.deepcopy(lm)))
    weights, policy = [], run.model

    def reward(batch):
        scores = reward_model(batch.input_ids, batch.attention_mask) + mentions(batch)
        if run.row["step"] == 1:
            weights.extend(p.clone() for p in policy.parameters())
            if culprit == "reward":
                scores = spoil(reward_model, math.nan)(batch.input_ids, batch.attention_mask)
                batch.ended[:] = True  # a response that never ended gets another score
            if culprit == "one response":
                scores[7], batch.ended[7] = math.inf, True
        elif run.row["step"] == 0 and culprit == "reference":
            spoil(reference, math.nan)  # for the update after this one
        return scores

    original = run.log

    def log(**metrics):  # at the end of the first update
        original(**metrics)
        if culprit == "value head":
            policy.value_head.bias.data.fill_(-math.inf)
        if culprit == "policy":
            spoil(policy, math.nan)

    run.log = log
    with pytest.raises(FloatingPointError, match=message):
        align(run, preset, reward, reference)
    assert run.row["step"] == 1 and len(run.metrics) == 1
    if weights:
        assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), weights))


def test_a_logged_value_that_is_not_finite_is_named(new_run, align, preset):
    run = new_run(steps=3)
    for _ in run:
        run.log(judge=np.nan, score=1.0, explained_variance=np.nan)  # no verdict, and no variance to explain
        with pytest.raises(FloatingPointError, match=r"^judge is nan at update 0 of .*run\."):
            health.watch(run)
        break
