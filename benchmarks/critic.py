"""How well does a critic forecast the return, by where it starts? After notebooks 1 and 2.

    RLHF_PRESET=tiny python benchmarks/critic.py     # a minute on one core

The SFT policy stands still, so this is the easiest case that a critic can have. It learns from 1,024 responses, once,
at its own rate, and forecasts 256 others: the variance of their returns that it explains, at the start and after each
quarter. `ablations.py` has the same critics beside a policy that learns.
"""

import torch
from trained import notebook_3, start_as_reward_model

from rlhf_helpers import models, ppo
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import load_preset
from rlhf_helpers.rollouts import response_outputs
from rlhf_helpers.training import autocast

prepare()
preset = load_preset()
run = notebook_3(preset)
batches = [batch[i : i + 32] for batch in run.sample(run.reference, 1280) for i in range(0, 128, 32)]
TRUNKS = {
    "head on the policy's trunk": None,  # only the head learns
    "trunk from SFT": models.RewardModel(run.sft),
    "trunk from the reward model": run.reward_model,
    "starts as the reward model": run.reward_model,
}


def forecasts(policy, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Values before its N response tokens and the returns from there on, (N,): without a KL, the response's score."""
    score = torch.where(batch.ended, run.reward(batch.input_ids, batch.attention_mask), preset.ppo_no_eos_score)
    with autocast(preset):
        _, values, (row, _) = response_outputs(policy, batch)
    return values, score[row]


@torch.no_grad()
def explained(policy) -> float:
    values, returns = map(torch.cat, zip(*[forecasts(policy, batch) for batch in batches[:8]]))
    return ppo.explained_variance(values, returns, torch.ones_like(values))


for name, trunk in TRUNKS.items():
    policy = models.PolicyWithValueHead(run.sft, critic=trunk).to(preset.device)
    policy.lm.requires_grad_(False)
    if name == "starts as the reward model":
        start_as_reward_model(policy, run.reward_model, run.mean, run.std)
    optimizer = torch.optim.Adam(policy.parameter_groups(0, preset.ppo_value_lr)[1:], eps=1e-5)
    found = [explained(policy)]
    for i, batch in enumerate(batches[8:], 1):
        values, returns = forecasts(policy, batch)
        optimizer.zero_grad()
        (values - returns).square().mean().backward()
        optimizer.step()
        found += [explained(policy)] if i % 8 == 0 else []
    print(f"{name:>27}:", *(f"{x:6.2f}" for x in found), flush=True)
