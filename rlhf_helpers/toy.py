"""A toy problem with a known answer: does PPO find the policy that the objective asks for?"""

import torch

from rlhf_helpers.ppo import gae, kl_penalised_rewards, ppo_loss, token_logprobs, whiten


def optimal_policy(ref: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """pi* proportional to pi_ref exp(r / beta), (V,): the maximum of E[r] - beta KL(pi || pi_ref).

    Source: e.g. Rafailov et al., arXiv 2305.18290, equation 4.
    """
    return (ref.log() + reward / beta).softmax(-1)


def train_toy_policy(
    ref: torch.Tensor, reward: torch.Tensor, beta: float, updates: int = 300, batch: int = 512, seed: int = 0
) -> list[float]:
    """PPO on one-token responses over V words; the total variation to pi* after each update.

    `ref` (V,) is the reference's distribution and `reward` (V,) each word's score. The policy is a
    table of V logits and a value. Every step goes through the functions that train the language
    model: penalised rewards, GAE, whitening, clipped loss.
    """
    torch.manual_seed(seed)
    logits, value = ref.log().clone().requires_grad_(), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.05, eps=1e-5)
    best, mask, history = optimal_policy(ref, reward, beta), torch.ones(batch, 1), []
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        tokens = torch.multinomial(logits.detach().softmax(-1), batch, replacement=True)[:, None]
        old = token_logprobs(logits.detach().expand(batch, 1, -1), tokens)
        ref_logprobs = token_logprobs(ref.log().expand(batch, 1, -1), tokens)
        old_values = value.detach().expand(batch, 1)
        rewards = kl_penalised_rewards(reward[tokens[:, 0]], old, ref_logprobs, mask, beta)
        advantages, returns = gae(rewards, old_values, mask)
        for _ in range(4):
            new = token_logprobs(logits.expand(batch, 1, -1), tokens)
            loss, _ = ppo_loss(new, value.expand(batch, 1), old, old_values, whiten(advantages, mask), returns, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        history.append(0.5 * (logits.detach().softmax(-1) - best).abs().sum().item())
    return history
