"""The loops of notebooks 1 and 3 as functions: a notebook in beyond/ changes their data and loss."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_helpers.checks import check
from rlhf_helpers.health import watch
from rlhf_helpers.models import LanguageModel, PolicyWithValueHead, checkpoint_layers
from rlhf_helpers.ppo import Experience, collect_experience, experience_stats, ppo_update
from rlhf_helpers.presets import Preset
from rlhf_helpers.rollouts import Rollouts, sample_rollouts
from rlhf_helpers.training import Run, autocast, linear_schedule

Reward = Callable[[Tensor, Tensor], Tensor]  # input_ids and attention_mask, (B, T) -> (B,)


def new_run(
    folder: Path, model: nn.Module, preset: Preset, stage: str,
    *, steps: int, lr: float, made_from: tuple[str, ...] = (), **settings,
) -> Run:  # fmt: skip
    """A `Run` with Adam on the weights of `model` that are to be trained, a critic's at its own rate.

    Its settings are the preset's of `stage`, and yours; `made_from` names the stages whose models it starts from.
    """
    if preset.gradient_checkpointing:
        checkpoint_layers(model)
    if isinstance(model, PolicyWithValueHead):
        groups = model.parameter_groups(lr, preset.ppo_value_lr if model.critic is not None else lr)
    else:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    optimizer = torch.optim.Adam(groups, lr=lr, eps=1e-5, fused=True)
    settings = preset.settings(stage, made_from) | {"lr": lr} | settings
    scheduler = linear_schedule(optimizer, steps)
    return Run(folder, model, optimizer, scheduler, steps=steps, seed=preset.seed, settings=settings)


def fit(
    run: Run, preset: Preset, batches: Sequence, loss_of: Callable[[Any], tuple[Tensor, dict[str, float]]],
    validate: Callable[[], dict[str, float]] = dict, size: Callable[[Any], float] = len,
) -> None:  # fmt: skip
    """Notebook 1's loop: one step of `run` for each batch.

    `loss_of(batch)` gives the loss, a scalar, and statistics to log beside it. What `validate()` gives is logged before
    each checkpoint; what it leaves in `run.state` is saved with it. With `preset.rows_at_once` gradients are
    accumulated: `loss_of` is asked for so many rows at a time, weighted by their `size(rows)`: how many they are, or
    how many tokens they have where the loss is a mean over tokens.
    """

    def share_of(rows: Any, weight: float) -> Tensor:
        with autocast(preset):
            loss, stats = loss_of(rows)
        for name, x in ({"loss": loss.item()} | stats).items():
            means[name] += weight * float(x)
        return weight * loss

    for step in run:
        run.model.train()
        batch, means = batches[step], defaultdict(float)
        n = preset.rows_at_once or len(batch)
        parts = [batch[i : i + n] for i in range(0, len(batch), n)]
        sizes = [size(rows) for rows in parts] if len(parts) > 1 else [1]
        run.step(share_of(rows, part / sum(sizes)) for rows, part in zip(parts, sizes))
        run.scheduler.step()
        run.log(**means)
        if (step + 1) % run.every == 0:
            run.log(**validate())
    run.model.eval()


def normalised(reward_model: nn.Module, samples: Sequence[Rollouts], preset: Preset) -> Reward:
    """The reward, in the preset's precision: mean 0 and standard deviation 1 over `samples`, of the SFT policy."""

    @torch.no_grad()
    def score(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with autocast(preset):
            return reward_model(input_ids, attention_mask)

    raw = torch.cat([score(batch.input_ids, batch.attention_mask) for batch in samples])
    mean, spread = raw.mean(), raw.std()
    check(spread > 1e-3, f"the reward model scores {len(raw)} samples all alike (standard deviation {spread})")
    return lambda input_ids, attention_mask: (score(input_ids, attention_mask) - mean) / spread


def align(
    run: Run, preset: Preset, policy: LanguageModel, reference: LanguageModel, reward: Reward,
    prompts_of: Callable[[int], list[list[int]]], tokenizer: PreTrainedTokenizerBase,
    *, estimate: Callable[[Experience], Experience] = lambda experience: experience, **settings,
) -> None:  # fmt: skip
    """Notebook 3's loop: each update samples responses of `policy`, scores them and learns.

    `prompts_of(update)` gives token ids of the prompts. `estimate` may put other advantages in place of GAE's.
    `settings` go to `ppo_update`: `value_coef` 0, say, which leaves the value head alone.
    """
    for update in run:
        with autocast(preset):
            batch = sample_rollouts(policy, prompts_of(update), tokenizer, preset.ppo_new_tokens)
            experience = collect_experience(
                policy, reference, reward, batch,
                beta=preset.ppo_beta, no_eos_score=preset.ppo_no_eos_score, gamma=preset.ppo_gamma, lam=preset.ppo_lam,
                rows_at_once=min(preset.rows_at_once or preset.ppo_minibatch, preset.ppo_minibatch),
            )  # fmt: skip
            experience = estimate(experience)
            if update < preset.ppo_critic_updates and getattr(policy, "critic", None) is not None:
                experience.advantages.zero_()  # and so is the policy's gradient: only the critic learns
            stats = ppo_update(policy, experience, run.step, **preset.ppo_update_settings() | settings)
        run.scheduler.step()
        run.log(**experience_stats(experience), beta=preset.ppo_beta, **stats)
        watch(run)
