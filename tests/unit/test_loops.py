"""The loops of beyond/ take the very steps of a loop that is written out."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from rlhf_helpers import data, ppo, training
from rlhf_helpers.beyond import loops
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, disable_dropout, freeze
from rlhf_helpers.presets import load_preset
from rlhf_helpers.rollouts import sample_rollouts

ROWS = [[1, 2, 3, 0], [4, 5, 0], [6, 7, 8, 9, 0], [10, 0]]


@pytest.fixture
def preset():
    small = {"ppo_batch": 5, "ppo_minibatch": 2, "ppo_new_tokens": 6, "ppo_critic_updates": 1}
    return replace(load_preset("tiny"), **small)


def run_of(folder, model, steps, lr=1e-3, kind=torch.optim.Adam):
    optimizer = kind(model.parameters(), lr=lr)
    scheduler = training.linear_schedule(optimizer, steps)
    return training.Run(folder, model, optimizer, scheduler, steps=steps, seed=0, settings={})


def step_by_hand(run):
    def step(losses):
        run.optimizer.zero_grad()
        for loss in losses:
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0, error_if_nonfinite=True)
        run.optimizer.step()
        return norm.item()

    return step


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_fit(lm, tokenizer, preset, tmp_path):
    lm, batches = disable_dropout(lm), [ROWS[:2], ROWS[2:], ROWS]
    by_hand, start = copy.deepcopy(lm), copy.deepcopy(lm)

    def loss_of(batch, model=lm):
        ids, mask = data.pad(batch, tokenizer.pad_token_id)
        return model(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {"rows": len(batch)}

    theirs = run_of(tmp_path / "a", by_hand, 3)
    for step in theirs:
        loss, _ = loss_of(batches[step], by_hand)
        step_by_hand(theirs)([loss])
        theirs.scheduler.step()
        theirs.log(loss=loss)
    ours = run_of(tmp_path / "b", lm, 3)
    loops.fit(ours, preset, batches, loss_of, lambda: {"validation_loss": 1.0})
    assert same(lm, by_hand) and not same(lm, start)
    assert ours.metrics["loss"].equals(theirs.metrics["loss"])
    assert list(ours.metrics["rows"]) == [2, 2, 4] and (ours.metrics["validation_loss"] == 1).all()


def test_fit_accumulates_gradients(lm, tokenizer, preset, tmp_path):
    """Of a loss that is a mean over tokens, if it is told how many tokens the rows have."""
    models = {name: disable_dropout(copy.deepcopy(lm)) for name in ("whole", "parts", "by rows")}
    predicted = lambda rows: sum(len(row) - 1 for row in rows)  # noqa: E731

    def loss_of(batch, model):
        ids, mask = data.pad(batch, tokenizer.pad_token_id)
        return model(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {"tokens": mask.sum()}

    losses = {}
    for name, model in models.items():
        run = run_of(tmp_path / name, model, 1, 0.1, torch.optim.SGD)
        settings = replace(preset, rows_at_once=None if name == "whole" else 1)
        size = {} if name == "by rows" else {"size": predicted}
        loops.fit(run, settings, [ROWS], partial(loss_of, model=model), **size)
        losses[name] = run.metrics["loss"].item()
    whole, parts, by_rows = (parameters_to_vector(m.parameters()) for m in models.values())
    moved = (whole - parameters_to_vector(lm.parameters())).norm()
    assert (parts - whole).norm() < 1e-4 * moved < 1e-2 * moved < (by_rows - whole).norm()
    assert losses["parts"] == pytest.approx(losses["whole"]) != pytest.approx(losses["by rows"])


def test_align(lm, tokenizer, preset, prompts, reward_model, tmp_path):
    reference, start = freeze(copy.deepcopy(lm)), PolicyWithValueHead(copy.deepcopy(lm), critic=reward_model)
    by_hand, policy = copy.deepcopy(start), copy.deepcopy(start)
    theirs, ours = run_of(tmp_path / "a", by_hand, 3), run_of(tmp_path / "b", policy, 3)
    beta = preset.ppo_beta
    for update in theirs:
        batch = sample_rollouts(by_hand, prompts, tokenizer, 6)
        e = ppo.collect_experience(
            by_hand, reference, reward_model, batch, beta=beta, no_eos_score=-3.0, rows_at_once=2, gamma=1, lam=0.95
        )
        if update < 1:
            e.advantages.zero_()
        stats = ppo.ppo_update(by_hand, e, step_by_hand(theirs), **preset.ppo_update_settings())
        theirs.scheduler.step()
        theirs.log(**ppo.experience_stats(e), beta=beta, **stats)
    loops.align(ours, preset, policy, reference, reward_model, lambda update: prompts, tokenizer)
    assert same(policy, by_hand) and not same(policy, start)
    shared = [c for c in ours.metrics if c not in ("seconds", "tokens_per_second")]
    assert ours.metrics[shared].equals(theirs.metrics[shared])


def test_rewards_have_mean_0_and_standard_deviation_1_in_their_precision(lm, tokenizer, preset, prompts, reward_model):
    preset = replace(preset, precision="bf16")
    samples = [sample_rollouts(lm, prompts, tokenizer, 6) for _ in range(3)]
    reward = loops.normalised(reward_model, samples, preset)
    outside = torch.cat([reward(part.input_ids, part.attention_mask) for part in samples])
    with training.autocast(preset):
        inside = torch.cat([reward(part.input_ids, part.attention_mask) for part in samples])
    assert torch.equal(inside, outside)
    assert inside.mean().abs() < 1e-5 and (inside.std() - 1).abs() < 1e-5
    with pytest.raises(ValueError, match="all alike"):
        loops.normalised(freeze(RewardModel(copy.deepcopy(lm))), samples, preset)
