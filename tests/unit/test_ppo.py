"""ppo.py against loops written from the equations, autograd and transformers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers import ppo
from rlhf_helpers.models import PolicyWithValueHead


def ragged(seed, rows, columns):
    """Random numbers (rows, columns) and a mask of random lengths, at least one token each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    mask = (torch.arange(columns) < lengths).long()
    return [torch.randn(rows, columns, generator=generator) for _ in range(6)], mask


def shapes(test):
    """Forty batches of any shape."""
    given_shapes = given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), columns=st.integers(1, 7))
    return settings(max_examples=40, deadline=None)(given_shapes(test))


@shapes
def test_gae_is_the_plain_loop(seed, rows, columns):
    (rewards, values, *_), mask = ragged(seed, rows, columns)
    advantages, returns = ppo.gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for b in range(rows):
        n = int(mask[b].sum())
        for t in range(n):
            deltas = [
                rewards[b, k] + (0.9 * values[b, k + 1] if k + 1 < n else 0.0) - values[b, k] for k in range(t, n)
            ]
            expected = sum((0.9 * 0.8) ** i * delta for i, delta in enumerate(deltas))
            assert torch.isclose(advantages[b, t], expected, atol=1e-4)
            assert torch.isclose(returns[b, t], expected + values[b, t], atol=1e-4)
        assert (advantages[b, n:] == 0).all() and (returns[b, n:] == 0).all()


@shapes
def test_whiten(seed, rows, columns):
    (x, *_), mask = ragged(seed, rows, columns)
    real = x[mask == 1]
    white = ppo.whiten(x, mask)
    if len(real) > 1:
        assert abs(white[mask == 1].mean()) < 1e-4
        assert abs(white[mask == 1].std(unbiased=False) - 1) < 1e-2
    kept = ppo.whiten(x, mask, shift_mean=False)
    assert torch.isclose(kept[mask == 1].mean(), real.mean(), atol=1e-4)
    assert (white[mask == 0] == 0).all() and (kept[mask == 0] == 0).all()


@shapes
def test_rewards_sum_to_score_minus_the_price(seed, rows, columns):
    (logprobs, ref, *_), mask = ragged(seed, rows, columns)
    scores = torch.arange(rows) + 100.0
    rewards = ppo.kl_penalised_rewards(scores, logprobs, ref, mask, beta=0.3)
    for b in range(rows):
        n = int(mask[b].sum())
        price = 0.3 * (logprobs - ref)[b, :n]
        assert torch.isclose(rewards[b].sum(), scores[b] - price.sum(), atol=1e-3)
        assert rewards[b, n - 1] > 50, "the score is not on the last real token"
        assert torch.allclose(rewards[b, : n - 1], -price[:-1], atol=1e-5), "the sign of the KL"
        assert (rewards[b, n:] == 0).all()


def written_out(new, values, old, old_values, advantages, returns, mask):
    """The loss of the docstring, token by token."""
    total = 0.0
    for b, t in mask.nonzero().tolist():
        ratio = (new[b, t] - old[b, t]).exp()
        policy = torch.max(-advantages[b, t] * ratio, -advantages[b, t] * ratio.clamp(0.8, 1.2))
        near = old_values[b, t] + (values[b, t] - old_values[b, t]).clamp(-0.2, 0.2)
        errors = torch.stack([(values[b, t] - returns[b, t]) ** 2, (near - returns[b, t]) ** 2])
        total = total + policy + 0.1 * 0.5 * errors.max()
    return total / mask.sum()


@shapes
def test_ppo_loss_and_gradient(seed, rows, columns):
    (new, values, old, *rest), mask = ragged(seed, rows, columns)
    gradients = []
    for loss_of in (written_out, lambda *a: ppo.ppo_loss(*a)[0]):
        a, b = new.clone().requires_grad_(), values.clone().requires_grad_()
        loss = loss_of(a, b, old, *rest, mask)
        loss.backward()
        gradients.append((loss.detach(), a.grad, b.grad))
    for expected, ours in zip(*gradients):
        assert torch.allclose(expected, ours, atol=1e-5)


@shapes
def test_garbage_in_padding_changes_nothing(seed, rows, columns):
    tensors, mask = ragged(seed, rows, columns)
    results = []
    for garbage in (0.0, 1e9, math.nan):
        some = [x.masked_fill(mask == 0, garbage).requires_grad_(i < 2) for i, x in enumerate(tensors)]
        loss, _ = ppo.ppo_loss(*some, mask)
        loss.backward()
        rewards = ppo.kl_penalised_rewards(torch.ones(rows), *(x.detach() for x in some[2:4]), mask, 0.1)
        advantages = ppo.gae(some[4].detach(), some[5].detach(), mask)
        results.append([loss.detach(), some[0].grad, some[1].grad, *advantages, ppo.whiten(some[4], mask), rewards])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_kl_estimates_by_sampling():
    torch.manual_seed(0)
    logits, ref = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    tokens = torch.multinomial(logits[0].softmax(-1), 200_000, replacement=True).T
    lp, ref_lp = (ppo.token_logprobs(x[0].expand(200_000, 1, 8), tokens) for x in (logits, ref))
    k, (every, ref_every) = ppo.kl_estimates(lp, ref_lp), (x.log_softmax(-1) for x in (logits, ref))
    exact = (every.exp() * (every - ref_every)).sum().item()
    assert abs(k["k1"].mean() - exact) < 0.01 and abs(k["k3"].mean() - exact) < 0.02
    assert (k["k3"] >= -1e-6).all() and (k["k2"] >= 0).all() and (k["k1"] < 0).any() and exact > 0


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2, 3, 9]]), torch.tensor([[1, 1, 1, 0]])
    assert ppo.explained_variance(returns, returns, mask) == 1
    assert ppo.explained_variance(torch.full_like(returns, 2), returns, mask) == pytest.approx(0)


def test_what_is_not_finite_is_named_before_it_is_learned_from(policy, collected):
    broken = copy.deepcopy(policy.lm)
    torch.nn.init.constant_(broken.transformer.ln_f.weight, math.nan)
    with pytest.raises(FloatingPointError, match="reference logprob of row 0"):
        collected(policy, reference=broken)
    with pytest.raises(FloatingPointError, match=r"score of row \d"):
        collected(policy, reward=lambda input_ids, attention_mask: torch.full((len(input_ids),), math.nan))
    torch.nn.init.constant_(policy.value_head.weight, math.nan)
    with pytest.raises(FloatingPointError, match="value of row 0"):
        collected(policy)


def test_returns_come_from_unwhitened_advantages(policy, collected):
    e = collected(policy, gamma=0.9, lam=0.5)
    mask = e.rollouts.response_mask
    advantages, _ = ppo.gae(e.rewards, e.values, mask, gamma=0.9, lam=0.5)
    assert torch.allclose(e.advantages, advantages)
    assert torch.allclose(e.returns, (advantages + e.values).masked_fill(mask == 0, 0.0), atol=1e-6)
    assert (e.scores[~e.rollouts.ended] == -3.0).all()


def test_an_update_starts_at_ratio_one_and_uses_the_last_partial_minibatch(policy, collected, step_of):
    e, seen = collected(policy), []
    policy.train()  # dropout must stay off even so

    def outputs(model, minibatch):
        seen.append(len(minibatch))
        return ppo.response_outputs(model, minibatch)

    step = step_of(torch.optim.Adam(policy.parameters(), lr=1e-3))
    stats = ppo.ppo_update(policy, e, step, epochs=2, minibatch=2, max_kl=1e9, outputs=outputs)
    assert seen == [2, 2, 1] * 2
    assert abs(stats["first_ratio_max"] - 1) < 1e-4 and stats["approx_kl"] > 0


def test_accumulated_gradients_are_those_of_the_minibatch(policy, collected, step_of):
    """Though the parts have different numbers of tokens, and the last minibatch is smaller."""
    e, start = collected(policy), copy.deepcopy(policy)

    def updated(rows_at_once):
        learner, seen = copy.deepcopy(start), []
        outputs = lambda model, part: seen.append(len(part)) or ppo.response_outputs(model, part)  # noqa: E731
        torch.manual_seed(0)
        step = step_of(torch.optim.SGD(learner.parameters(), lr=0.1))
        settings = {"epochs": 2, "minibatch": 3, "max_kl": 1e9, "rows_at_once": rows_at_once, "outputs": outputs}
        assert abs(ppo.ppo_update(learner, e, step, **settings)["first_ratio_max"] - 1) < 1e-4
        return torch.nn.utils.parameters_to_vector(learner.parameters()).detach(), seen

    whole, seen = updated(None)
    moved = (whole - torch.nn.utils.parameters_to_vector(start.parameters())).norm()
    assert seen == [3, 2] * 2 and len(set(e.rollouts.response_mask.sum(1).tolist())) > 1
    for rows_at_once, sizes in ((2, [2, 1, 2]), (1, [1] * 5)):
        parts, seen = updated(rows_at_once)
        assert seen == sizes * 2 and (parts - whole).norm() < 1e-4 * moved


def test_an_update_takes_the_mean_out_of_the_advantages(policy, collected):
    e = collected(policy)
    mask = e.rollouts.response_mask
    assert abs(ppo.masked_mean(e.advantages, mask)) > 0.01
    # at ratio 1 the policy's loss over all rows is minus the mean advantage
    stats = ppo.ppo_update(policy, e, lambda losses: sum(losses).item(), epochs=1, minibatch=len(mask), max_kl=1e9)
    assert abs(stats["policy_loss"]) < 1e-5


@pytest.mark.parametrize(
    "first_epoch, epochs", [([0.0, 0.0, 0.09], 3), ([0.09, 0.09, 0.0], 1)], ids=["last minibatch", "mean"]
)
def test_the_epochs_stop_by_the_mean_kl_of_an_epoch(policy, collected, first_epoch, epochs):
    """Where the minibatches report these KLs one after the other, and the bound is 0.04."""
    kls = iter(first_epoch + [0.0] * 6)
    stats = ppo.ppo_update(
        policy, collected(policy), lambda losses: sum(losses).item(), epochs=3, minibatch=2, max_kl=0.04,
        whole_minibatch=lambda stats: stats | {"approx_kl": next(kls)},
    )  # fmt: skip
    assert stats["epochs"] == epochs


def test_without_advantages_only_the_critic_learns(policy, reward_model, collected, step_of):
    """What the first updates of notebook 3 do: the policy stays bit for bit where it was."""
    e, kept = collected(policy), copy.deepcopy(reward_model)
    policy = PolicyWithValueHead(policy.lm, critic=reward_model)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    e.advantages.zero_()
    of_policy, of_critic = policy.parameter_groups(lr=1e-2, value_lr=1e-2)
    assert len(of_policy["params"]) == len([*policy.lm.parameters()])
    step = step_of(torch.optim.Adam([of_policy, of_critic]))
    ppo.ppo_update(policy, e, step, epochs=2, minibatch=2, max_kl=1e9)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"value_head.weight", "value_head.bias"} < moved and not any(name.startswith("lm.") for name in moved)
    assert any(name.startswith("critic.") for name in moved)
    same = [torch.equal(p, q) for p, q in zip(reward_model.parameters(), kept.parameters())]
    assert all(same), "the critic is no copy of the reward model"


def test_every_pass_of_a_bf16_update_uses_the_weights_of_the_last_step(policy, collected, step_of):
    """autocast keeps its bfloat16 weights while it is open, and it stays open over sampling and update."""
    results = []
    for cache_enabled in (True, False):
        updated = copy.deepcopy(policy)
        step = step_of(torch.optim.SGD(updated.parameters(), lr=0.01))
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled):
            stats = ppo.ppo_update(updated, collected(updated), step, epochs=3, minibatch=2, max_kl=1e9)
        results.append((stats, [*updated.parameters()]))
    (stats, weights), (expected_stats, expected) = results
    assert stats == expected_stats and stats["ratio_max"] > 1.01
    assert all(torch.equal(a, b) for a, b in zip(weights, expected))
