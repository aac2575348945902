"""health.py: PPO is made to go wrong by training it wrongly, and each time the run says what happened."""

import copy
import re
from dataclasses import replace

import pytest
from test_loops import run_of

from rlhf_helpers import health
from rlhf_helpers.beyond import loops
from rlhf_helpers.models import PolicyWithValueHead, freeze
from rlhf_helpers.presets import load_preset

GOOD = 7  # the word "good" of conftest's tokenizer


def mentions(input_ids, attention_mask):
    """How often each row says "good"."""
    return ((input_ids == GOOD) & (attention_mask == 1)).sum(1).float()


@pytest.fixture
def train(lm, tokenizer, prompts, tmp_path):
    """Trains a policy by the loop of beyond/; its run, which has `stopped` with the reason if it was."""

    def train(reward, steps=20, lr=1e-2, ppo_beta=0.0, ppo_no_eos_score=-1.0):
        small = dict(ppo_batch=60, ppo_minibatch=30, ppo_new_tokens=8, ppo_beta=ppo_beta)
        # this policy has no critic of its own: the trunk feels the value loss
        small |= dict(ppo_value_coef=0.1, ppo_no_eos_score=ppo_no_eos_score)
        reference, policy = freeze(copy.deepcopy(lm)), PolicyWithValueHead(lm)
        run = run_of(tmp_path, policy, steps, lr)
        preset = replace(load_preset("tiny"), **small)
        try:
            loops.align(run, preset, policy, reference, reward, lambda update: prompts * 12, tokenizer)
        except RuntimeError as stopped:
            run.stopped = str(stopped)
        return run

    return train


def test_a_healthy_run_is_left_alone(train, capsys):
    run = train(lambda *batch: (mentions(*batch) > 0).float() * 2, lr=2e-3, ppo_beta=0.4)
    assert run.metrics["score"].tail(3).mean() > run.metrics["score"][0] + 0.3, "it did not even learn"
    assert "Warning" not in capsys.readouterr().out and not list(health.findings(run.metrics))


def test_a_kl_past_its_bound_stops(train):
    run = train(mentions, lr=0.1, ppo_beta=0.15, ppo_no_eos_score=0.0)  # a rate thirty times too high
    assert re.search(r"KL past its bound at update \d+ .*kl_k1 .* at the start.*ppo_lr", run.stopped)
    assert 0 < len(run.metrics) < 19 and run.row["beta"] * run.row["kl_k1"] > 3


def test_entropy_collapse_warns_once(train, capsys):
    run = train(mentions)  # one word is all that is paid for
    printed = capsys.readouterr().out
    ((name, row, figures),) = health.findings(run.metrics)
    assert name == "entropy collapse" and figures in printed and len(run.metrics) == 20
    assert printed.count("Warning: ") == 1 and f"Warning: entropy collapse at update {row} of" in printed


def test_responses_of_length_zero_stop(train):
    run = train(lambda ids, mask: -mask.sum(1).float(), steps=40, ppo_no_eos_score=-20.0)
    assert re.search(r"empty responses at update \d+ .*length .* 1 now; eos_rate .* 1 now", run.stopped)
    assert len(run.metrics) > 1 and run.metrics["length"][0] > 3, "it was not trained to end"


def test_a_score_that_rises_while_the_judge_falls_is_reward_hacking(train):
    metrics = train(mentions, steps=8, lr=5e-3).metrics
    assert "reward hacking" not in [name for name, _, _ in health.findings(metrics)], "there is no judge"
    judged = metrics.assign(judge=[0.5] * 3 + [0.9] + [0.0] * 4, score=range(8))
    assert "reward hacking" in [name for name, _, _ in health.findings(judged)]
