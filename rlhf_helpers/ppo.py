"""PPO on text: log-probabilities, KL-penalised rewards, GAE, whitening and the clipped loss.

Shapes: B rows, T response tokens, V words of the vocabulary. `mask` is (B, T), 1 on real
response tokens and 0 on padding; what stands at masked positions never changes a result.
Sources: PPO (arXiv 1707.06347), GAE (1506.02438), fine-tuning from preferences (1909.08593),
InstructGPT (2203.02155), "The N implementation details of RLHF with PPO" (2403.17031).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_helpers.checks import check_shapes
from rlhf_helpers.models import LanguageModel
from rlhf_helpers.rollouts import Rollouts, response_outputs


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the real tokens of the whole batch, a scalar; 0 if there are none."""
    return x.masked_fill(mask == 0, 0.0).sum() / mask.sum().clamp(min=1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log pi(token | what came before), (B, T), from logits (B, T, V) and tokens (B, T); any leading shape will do.

    `logits[:, t]` must be the prediction *of* `tokens[:, t]`: the logits one position earlier.
    """
    logits = logits.float()
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats, (B, T), from logits (B, T, V)."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> dict[str, Tensor]:
    """Schulman's sampled estimates of KL(policy || reference) per token, each (B, T).

    With x = log pi_ref - log pi at a token sampled from pi: k1 = -x is unbiased and can be negative; k2 = x^2 / 2 is
    biased and never is; k3 = e^x - 1 - x is unbiased and never is ("Approximating KL divergence", 2020).
    """
    x = ref_logprobs - logprobs
    return {"k1": -x, "k2": x.square() / 2, "k3": x.expm1() - x}


def kl_penalised_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Per-token rewards (B, T): -beta (log pi - log pi_ref), plus the score on the last token.

    `scores` is (B,), the others (B, T). A row without any token gets no reward. Summed over a
    response this is the objective of InstructGPT (equation 2) without its pretraining term.
    """
    check_shapes(logprobs, ref_logprobs, mask)
    check_shapes(scores, mask[:, 0])
    rewards = (-beta * (logprobs - ref_logprobs)).masked_fill(mask == 0, 0.0)
    columns = torch.arange(mask.shape[1], device=mask.device)
    is_last = columns == (mask * columns).argmax(1, keepdim=True)
    return rewards + scores[:, None] * (is_last & (mask == 1))


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`x` with standard deviation 1 over the real tokens, (B, T); mean 0, or its own if not `shift_mean`."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean)
    return whitened.masked_fill(mask == 0, 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T) and unwhitened, by generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t,    V = 0 after the last real token
        A_t     = delta_t + gamma lam A_{t+1},  G_t = A_t + V_t

    Source: arXiv 1506.02438, equations 11 to 16.
    """
    check_shapes(rewards, values, mask)
    rewards, values = rewards.masked_fill(mask == 0, 0.0), values.masked_fill(mask == 0, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # a padded column must hand on zeros: its value and reward are already 0
        advantages[:, t] = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


def ppo_loss(
    logprobs: Tensor, values: Tensor, old_logprobs: Tensor, old_values: Tensor,
    advantages: Tensor, returns: Tensor, mask: Tensor,
    *, clip: float = 0.2, value_clip: float = 0.2, value_coef: float = 0.1,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The clipped PPO loss, a scalar, and its statistics; every tensor is (B, T).

        ratio  = exp(log pi - log pi_old)
        policy = mean of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))
        value  = mean of max((V - G)^2, (V_old + clip(V - V_old, +-value_clip) - G)^2) / 2
        loss   = policy + value_coef * value

    Means are over the real tokens. `advantages` come in whitened. Source: arXiv 1707.06347,
    equation 7; value clipping from OpenAI's baselines. Statistics: `policy_loss`, `value_loss`,
    `approx_kl` (k3 of the update, nats per token), `clip_fraction`, `ratio`, `ratio_max`.
    """
    check_shapes(logprobs, values, old_logprobs, old_values, advantages, returns, mask)
    padding = mask == 0
    values, old_values, advantages, returns = (
        x.masked_fill(padding, 0.0) for x in (values, old_values, advantages, returns)
    )
    log_ratio = (logprobs - old_logprobs).masked_fill(padding, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    policy_loss = masked_mean(torch.max(unclipped, clipped), mask)

    clipped_values = old_values + (values - old_values).clamp(-value_clip, value_clip)
    value_errors = torch.max((values - returns).square(), (clipped_values - returns).square())
    value_loss = 0.5 * masked_mean(value_errors, mask)

    with torch.no_grad():
        stats = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "approx_kl": masked_mean(ratio - 1 - log_ratio, mask),
            "clip_fraction": masked_mean(((ratio - 1).abs() > clip).float(), mask),
            "ratio": masked_mean(ratio, mask),
            "ratio_max": ratio.max(),
        }
    return policy_loss + value_coef * value_loss, {name: x.item() for name, x in stats.items()}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(G - V) / Var(G) over real tokens: 1 is a perfect value head, 0 a constant one, or a constant G."""
    values, returns = values[mask == 1], returns[mask == 1]
    variance = returns.var(unbiased=False) if len(returns) else 0.0
    return (1 - (returns - values).var(unbiased=False) / variance).item() if variance > 0 else 0.0


@dataclass
class Experience:
    """What one update learns from, all taken before it; (B, T), `scores` (B,)."""

    rollouts: Rollouts
    scores: Tensor  # the reward of the whole response, in standard deviations of the SFT policy's
    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor  # unwhitened
    returns: Tensor


@torch.no_grad()
def collect_experience(
    policy: LanguageModel, reference: LanguageModel, reward: Callable[[Tensor, Tensor], Tensor], rollouts: Rollouts,
    *, beta: float, no_eos_score: float, rows_at_once: int, gamma: float = 1.0, lam: float = 0.95,
) -> Experience:  # fmt: skip
    """Scores rollouts and turns the scores into advantages and returns.

    `reward(input_ids, attention_mask)` gives one score per row, (B,); a response that never ended scores
    `no_eos_score` instead. `rows_at_once` bounds the memory that the logits take: give the size of the minibatches,
    and the first epoch of `ppo_update` computes the very same numbers, in bfloat16 too. Raises
    FloatingPointError if a score, value or log-probability is not finite.
    """
    mask = rollouts.response_mask
    logprobs, ref_logprobs, entropies, values = torch.zeros(4, *mask.shape, device=mask.device)
    for rows in torch.arange(len(mask), device=mask.device).split(rows_at_once):
        minibatch = rollouts[rows]
        logits, state_values, (row, column) = response_outputs(policy, minibatch)
        tokens, token_index = minibatch.response_ids[row, column], (rows[row], column)
        logprobs[token_index], entropies[token_index] = token_logprobs(logits, tokens), entropy(logits)
        values[token_index] = state_values
        logits, _, _ = response_outputs(reference, minibatch)
        ref_logprobs[token_index] = token_logprobs(logits, tokens)
    scores = torch.where(rollouts.ended, reward(rollouts.input_ids, rollouts.attention_mask), no_eos_score)
    found = {"policy logprob": logprobs, "reference logprob": ref_logprobs, "value": values, "score": scores}
    for name, x in found.items():
        if not x.isfinite().all():
            row = (~x.isfinite()).nonzero()[0, 0].item()
            raise FloatingPointError(f"the {name} of row {row} is not finite; nothing was learned from this batch.")
    rewards = kl_penalised_rewards(scores, logprobs, ref_logprobs, mask, beta)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    return Experience(rollouts, scores, logprobs, ref_logprobs, entropies, values, rewards, advantages, returns)


def ppo_update(
    policy: LanguageModel, experience: Experience, step: Callable[[Iterable[Tensor]], float],
    *, epochs: int, minibatch: int, max_kl: float, rows_at_once: int | None = None,
    clip: float = 0.2, value_clip: float = 0.2, value_coef: float = 0.1, outputs: Callable = response_outputs,
    whole_minibatch: Callable[[dict[str, float]], dict[str, float]] = lambda stats: stats,
) -> dict[str, float]:  # fmt: skip
    """Several epochs of minibatch steps on one batch of experience; the mean of their statistics.

    `step(losses)` does the backward pass of each loss and then one optimiser step. A minibatch has one for each
    `rows_at_once` of its rows (None: one for all); they add up to its mean over the tokens (gradient accumulation).
    No further epoch is begun once one moved the policy, on average, further than `max_kl` nats per token from where it
    sampled. The first epoch takes the rows in the groups in which they were scored, so that rounding is the same in
    both: `first_ratio` and `first_ratio_max`, the mean and the largest ratio of the first group, are 1 in bfloat16 as
    in fp32. The later epochs shuffle. On several processes `outputs(policy, rollouts)` computes a share of the rows,
    and `whole_minibatch(stats)` gives the statistics of all of them, so that they stop alike.
    """
    e, mask, history, norms = experience, experience.rollouts.response_mask, [], []
    recorded = (e.logprobs, e.values, whiten(e.advantages, mask), e.returns, mask)

    def loss_of(rows: Tensor, tokens: Tensor) -> Tensor:
        """What these rows add to the mean over the `tokens` of their minibatch."""
        part = e.rollouts[rows]
        logits, values, token_index = outputs(policy, part)
        logprobs = token_logprobs(logits, part.response_ids[token_index])
        old = (x[rows][token_index] for x in recorded)
        loss, stats = ppo_loss(logprobs, values, *old, clip=clip, value_clip=value_clip, value_coef=value_coef)
        history.append(whole_minibatch(stats))
        return loss * (mask[rows].sum() / tokens)

    for epoch in range(epochs):
        begin, order = len(history), torch.randperm(len(mask)) if epoch else torch.arange(len(mask))
        for minibatch_rows in order.to(mask.device).split(minibatch):
            # autocast keeps the bfloat16 weights it made: after a step they are the old ones, and
            # those made while sampling have no gradient before torch 2.11
            torch.clear_autocast_cache()
            parts, tokens = minibatch_rows.split(rows_at_once or minibatch), mask[minibatch_rows].sum()
            norms.append(step(loss_of(rows, tokens) for rows in parts))
        if sum(s["approx_kl"] for s in history[begin:]) / len(history[begin:]) > max_kl:
            break
    means = {name: sum(s[name] for s in history) / len(history) for name in history[0]}
    first = {"first_ratio": history[0]["ratio"], "first_ratio_max": history[0]["ratio_max"]}
    return means | {"grad_norm": sum(norms) / len(norms)} | first | {"epochs": epoch + 1}


def experience_stats(e: Experience) -> dict[str, float]:
    """What to log of a batch of experience: KL in nats per response, entropy in nats per token."""
    mask, kl = e.rollouts.response_mask, kl_estimates(e.logprobs, e.ref_logprobs)
    return {
        "kl_k1": kl["k1"].masked_fill(mask == 0, 0.0).sum(1).mean().item(),
        "kl_k3": kl["k3"].masked_fill(mask == 0, 0.0).sum(1).mean().item(),
        "score": e.scores.mean().item(),
        "entropy": masked_mean(e.entropy, mask).item(),
        "explained_variance": explained_variance(e.values, e.returns, mask),
        "length": mask.sum(1).float().mean().item(),
        "tokens": mask.sum().item(),
        "eos_rate": e.rollouts.ended.float().mean().item(),
    }
