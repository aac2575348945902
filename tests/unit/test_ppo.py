"""ppo.py against loops written from the equations, autograd and transformers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers import ppo
from rlhf_helpers.models import PolicyWithValueHead, RewardModel
from rlhf_helpers.rollouts import sample_rollouts


def ragged(seed, rows, columns):
    """Random numbers (rows, columns) and a mask of random lengths, at least one token each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    mask = (torch.arange(columns) < lengths).long()
    return [torch.randn(rows, columns, generator=generator) for _ in range(6)], mask


shapes = given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), columns=st.integers(1, 7))


@pytest.mark.parametrize(
    "broken, name", [("reward", "score of row 1"), ("policy", "policy logprob"), ("reference", "reference logprob")]
)
def test_what_is_not_finite_is_named_before_it_is_learned_from(lm, tokenizer, prompts, broken, name):
    policy, e = collected(lm, tokenizer, prompts)
    reference = type(lm)(lm.config).eval()
    e.rollouts.ended[1] = True
    scores = torch.tensor([0.0, math.nan if broken == "reward" else 0.0, 0.0, 0.0, 0.0])
    if broken != "reward":
        torch.nn.init.constant_({"policy": policy.lm, "reference": reference}[broken].transformer.ln_f.weight, math.nan)
    with pytest.raises(FloatingPointError, match=name):
        ppo.collect_experience(
            policy, reference, lambda ids, mask: scores, e.rollouts, beta=0.1, no_eos_score=-3.0, rows_at_once=2
        )


@pytest.mark.parametrize("score", [torch.zeros(5, 1), torch.zeros(4)], ids=["a column", "one too few"])
def test_scores_that_would_be_broadcast_are_refused(score):
    with pytest.raises(ValueError, match="of one shape"):
        ppo.kl_penalised_rewards(score, *[torch.zeros(5, 2)] * 2, torch.ones(5, 2), 0.1)


def test_token_logprobs_are_the_loss_of_transformers(lm):
    ids = torch.randint(0, 19, (3, 9))
    out = lm(input_ids=ids, labels=ids)
    assert torch.isclose(-ppo.token_logprobs(out.logits[:, :-1], ids[:, 1:]).mean(), out.loss, atol=1e-5)


@shapes
@settings(max_examples=40, deadline=None)
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


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 0, 0, 1]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    advantages, _ = ppo.gae(rewards, values, torch.ones(1, 4))
    assert torch.allclose(advantages, torch.tensor([[0.7997, 0.7365, 0.67, 0.6]]), atol=1e-4)


@shapes
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=20, deadline=None)
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
    k, exact = ppo.kl_estimates(lp, ref_lp), ppo.exact_kl(logits, ref).item()
    assert abs(k["k1"].mean() - exact) < 0.01 and abs(k["k3"].mean() - exact) < 0.02
    assert (k["k3"] >= -1e-6).all() and (k["k2"] >= 0).all() and (k["k1"] < 0).any() and exact > 0


def collected(lm, tokenizer, prompts, score=1.0):
    policy = PolicyWithValueHead(lm)
    torch.nn.init.normal_(policy.value_head.weight)  # zero values would hide how returns are made
    torch.manual_seed(0)
    rollouts = sample_rollouts(policy, prompts, tokenizer, 6)
    reward = lambda ids, mask: torch.linspace(-score, score, len(ids))  # noqa: E731
    settings = dict(beta=0.1, no_eos_score=-3.0, rows_at_once=2)
    torch.manual_seed(1)
    reference = type(lm)(lm.config).eval()
    return policy, ppo.collect_experience(policy, reference, reward, rollouts, **settings)


def step_of(optimizer):
    """What `ppo_update` calls with each loss."""

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return 0.0

    return step


def test_returns_come_from_unwhitened_advantages(lm, tokenizer, prompts):
    _, e = collected(lm, tokenizer, prompts)
    mask = e.rollouts.response_mask
    advantages, _ = ppo.gae(e.rewards, e.values, mask)
    assert torch.allclose(e.advantages, advantages)
    assert torch.allclose(e.returns, (advantages + e.values).masked_fill(mask == 0, 0.0), atol=1e-6)
    assert (e.scores[~e.rollouts.ended] == -3.0).all()


def test_an_update_starts_at_ratio_one_and_uses_the_last_partial_minibatch(lm, tokenizer, prompts):
    policy, e = collected(lm, tokenizer, prompts)
    policy.train()  # dropout must stay off even so
    seen, losses = [], []
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)

    learn = step_of(optimizer)

    def step(loss):
        losses.append(loss.item())
        return learn(loss)

    def outputs(model, some):
        seen.append(len(some))
        return ppo.response_outputs(model, some)

    stats = ppo.ppo_update(policy, e, step, epochs=2, minibatch=2, max_kl=1e9, outputs=outputs)
    assert seen == [2, 2, 1] * 2 and len(losses) == 6
    assert abs(stats["first_ratio_max"] - 1) < 1e-4


def test_an_update_takes_the_mean_out_of_the_advantages(lm, tokenizer, prompts):
    policy, e = collected(lm, tokenizer, prompts)
    mask = e.rollouts.response_mask
    assert abs(ppo.masked_mean(e.advantages, mask)) > 0.01
    # at ratio 1 the policy's loss over all rows is minus the mean advantage
    stats = ppo.ppo_update(policy, e, lambda loss: 0.0, epochs=1, minibatch=len(mask), max_kl=1e9)
    assert abs(stats["policy_loss"]) < 1e-5


def test_an_update_stops_past_its_kl_bound(lm, tokenizer, prompts):
    policy, e = collected(lm, tokenizer, prompts)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    assert ppo.ppo_update(policy, e, step_of(optimizer), epochs=9, minibatch=2, max_kl=1e-3)["epochs"] < 9


def test_the_epochs_stop_by_the_mean_kl_of_an_epoch(lm, tokenizer, prompts):
    """Neither the first minibatch alone nor the last decides."""
    policy, e = collected(lm, tokenizer, prompts)

    def epochs_with(kls, max_kl):
        """ppo_update where the minibatches report these KLs, one after the other."""
        left = iter(kls)

        def whole_minibatch(stats):
            return stats | {"approx_kl": next(left)}

        settings = {"epochs": 3, "minibatch": 2, "max_kl": max_kl, "whole_minibatch": whole_minibatch}
        return ppo.ppo_update(policy, e, lambda loss: 0.0, **settings)["epochs"]

    assert epochs_with([0.0, 0.0, 0.09] + [0.0] * 6, max_kl=0.04) == 3, "the last minibatch alone is past the bound"
    assert epochs_with([0.09, 0.09, 0.0] + [0.0] * 6, max_kl=0.04) == 1, "the epoch is past it, its last minibatch not"


def test_gamma_and_lambda_reach_the_advantages(lm, tokenizer, prompts):
    _, e = collected(lm, tokenizer, prompts)
    reward = lambda ids, mask: torch.linspace(-1, 1, len(ids))  # noqa: E731
    policy, settings = PolicyWithValueHead(lm), dict(beta=0.1, no_eos_score=-3.0, rows_at_once=2, gamma=0.9, lam=0.5)
    other = ppo.collect_experience(policy, type(lm)(lm.config).eval(), reward, e.rollouts, **settings)
    expected, _ = ppo.gae(other.rewards, other.values, e.rollouts.response_mask, gamma=0.9, lam=0.5)
    assert torch.equal(other.advantages, expected) and not torch.equal(other.advantages, e.advantages)


def test_without_advantages_only_the_critic_learns(lm, tokenizer, prompts):
    """What the first updates of notebook 3 do: the policy stays bit for bit where it was."""
    _, e = collected(lm, tokenizer, prompts)
    reward_model = RewardModel(copy.deepcopy(lm))
    kept, policy = copy.deepcopy(reward_model), PolicyWithValueHead(lm, critic=reward_model)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    e.advantages.zero_()
    optimizer = torch.optim.Adam(policy.parameter_groups(lr=1e-2, value_lr=1e-2))
    ppo.ppo_update(policy, e, step_of(optimizer), epochs=2, minibatch=2, max_kl=1e9)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"value_head.weight", "value_head.bias"} < moved and not any(name.startswith("lm.") for name in moved)
    assert any(name.startswith("critic.") for name in moved)
    same = [torch.equal(p, q) for p, q in zip(reward_model.parameters(), kept.parameters())]
    assert all(same), "the critic is no copy of the reward model"


def test_every_pass_of_a_bf16_update_uses_the_weights_of_the_last_step(lm, tokenizer, prompts):
    """autocast keeps its bfloat16 weights while it is open, and it stays open over sampling and update."""

    def updated(cache_enabled):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled):
            policy, e = collected(copy.deepcopy(lm), tokenizer, prompts)
            optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
            stats = ppo.ppo_update(policy, e, step_of(optimizer), epochs=3, minibatch=2, max_kl=1e9)
        return stats, policy

    stats, policy = updated(cache_enabled=True)
    expected_stats, expected = updated(cache_enabled=False)
    assert stats == expected_stats and stats["ratio_max"] > 1.01 and abs(stats["first_ratio_max"] - 1) < 1e-3
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), expected.parameters()))


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2, 3, 9]]), torch.tensor([[1, 1, 1, 0]])
    assert ppo.explained_variance(returns, returns, mask) == 1
    assert ppo.explained_variance(torch.full_like(returns, 2), returns, mask) == pytest.approx(0)


def test_ppo_reaches_the_known_optimum():
    """pi* proportional to pi_ref exp(r / beta) (arXiv 2305.18290, equation 4), on responses of one token."""
    ref, reward = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03]), torch.tensor([0.0, 1, -1, 0.5, 2, -0.5])
    logits, batch = ref.log().requires_grad_(), 512
    optimizer, mask = torch.optim.Adam([logits], lr=0.05, eps=1e-5), torch.ones(512, 1)
    torch.manual_seed(0)
    for update in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / 200)
        tokens = torch.multinomial(logits.detach().softmax(-1), batch, replacement=True)[:, None]
        old, ref_logprobs = (ppo.token_logprobs(x.detach().expand(batch, 1, -1), tokens) for x in (logits, ref.log()))
        rewards = ppo.kl_penalised_rewards(reward[tokens[:, 0]], old, ref_logprobs, mask, beta=1.0)
        values = torch.zeros(batch, 1)
        advantages, returns = ppo.gae(rewards, values, mask)
        for _ in range(4):
            new = ppo.token_logprobs(logits.expand(batch, 1, -1), tokens)
            loss, _ = ppo.ppo_loss(new, values, old, values, ppo.whiten(advantages, mask), returns, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert (logits.softmax(-1) - (ref.log() + reward).softmax(-1)).abs().sum() / 2 < 0.05
