"""health.py: PPO is made to go wrong by training it wrongly, and each time the run says what happened."""

import copy
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
def preset():
    small = {"ppo_batch": 60, "ppo_minibatch": 30, "ppo_new_tokens": 8, "ppo_critic_updates": 0}
    small["ppo_value_coef"] = 0.1  # these policies have no critic of their own: the trunk feels the value loss
    return replace(load_preset("tiny"), **small, ppo_beta=0.0, ppo_no_eos_score=-1.0)


@pytest.fixture
def new_run(lm, tmp_path):
    def new_run(steps=20, lr=1e-2):
        run = run_of(tmp_path / "run", PolicyWithValueHead(copy.deepcopy(lm)), steps)
        run.scheduler.base_lrs = [lr]
        run.optimizer.param_groups[0]["lr"] = lr
        return run

    return new_run


@pytest.fixture
def align(lm, tokenizer, prompts):
    """Trains the policy of a run by the loop of beyond/."""
    reference = freeze(copy.deepcopy(lm))
    return lambda run, preset, reward: loops.align(
        run, preset, run.model, reference, reward, lambda update: prompts * 12, tokenizer
    )


def test_a_healthy_run_is_left_alone(new_run, align, preset, capsys):
    run = new_run(lr=2e-3)
    align(run, replace(preset, ppo_beta=0.4), lambda *batch: (mentions(*batch) > 0).float() * 2)
    assert run.metrics["score"].tail(3).mean() > run.metrics["score"][0] + 0.3, "it did not even learn"
    assert "Warning" not in capsys.readouterr().out and not list(health.findings(run.metrics))


def test_a_kl_past_its_bound_stops(new_run, align, preset):
    run = new_run(lr=0.1)  # thirty times too high
    with pytest.raises(RuntimeError, match=r"KL past its bound at update \d+ .*kl_k1 .* at the start.*ppo_lr"):
        align(run, replace(preset, ppo_beta=0.15, ppo_no_eos_score=0.0), mentions)
    assert 0 < len(run.metrics) < 19 and run.row["beta"] * run.row["kl_k1"] > 3


def test_entropy_collapse_warns_once(new_run, align, preset, capsys):
    run = new_run()
    align(run, preset, mentions)  # one word is all that is paid for
    printed = capsys.readouterr().out
    ((name, row, figures),) = health.findings(run.metrics)
    assert name == "entropy collapse" and figures in printed and len(run.metrics) == 20
    assert printed.count("Warning: ") == 1 and f"Warning: entropy collapse at update {row} of" in printed


def test_responses_of_length_zero_stop(new_run, align, preset):
    run = new_run()
    with pytest.raises(RuntimeError, match=r"empty responses at update \d+ .*length .* 1 now; eos_rate .* 1 now"):
        align(run, replace(preset, ppo_no_eos_score=-20.0), lambda ids, mask: -mask.sum(1).float())
    assert len(run.metrics) > 1 and run.metrics["length"][0] > 3, "it was not trained to end"


def test_a_score_that_rises_while_the_judge_falls_is_reward_hacking(new_run, align, preset):
    run = new_run(steps=8, lr=5e-3)
    align(run, preset, mentions)
    assert "reward hacking" not in [name for name, _, _ in health.findings(run.metrics)], "there is no judge"
    judged = run.metrics.assign(judge=[0.5] * 3 + [0.9] + [0.0] * 4, score=range(8))
    assert "reward hacking" in [name for name, _, _ in health.findings(judged)]
