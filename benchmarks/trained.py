"""Notebook 3 for `ablations`, `critic`, `length`, `noise` and `rate`: its set-up, its loop, its table."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import torch

from rlhf_helpers import data, evaluation, judges, models
from rlhf_helpers.beyond import loops
from rlhf_helpers.presets import Preset, load_preset
from rlhf_helpers.rollouts import Rollouts, sample_rollouts
from rlhf_helpers.training import autocast


def after_notebooks_1_and_2(name: str, seeds: int) -> Iterator[Preset]:
    """The preset `name` with the seed of RLHF_SEED, or each of so many `seeds`, once both notebooks are run for it."""
    for seed in [os.environ["RLHF_SEED"]] if "RLHF_SEED" in os.environ else map(str, range(seeds)):
        os.environ |= {"RLHF_PRESET": name, "RLHF_SEED": seed, "RLHF_ARTIFACTS": f"artifacts/ablations/{seed}"}
        preset = load_preset()
        if not (preset.folder("reward_model") / "artifact.json").exists():
            subprocess.run([sys.executable, "-m", "rlhf_helpers", "sft", "rm"], check=True)
        yield preset


@torch.no_grad()
def start_as_reward_model(policy, reward_model, mean: float, std: float) -> None:
    """Has a critic with that reward model's trunk forecast its score of the text so far, (score - mean) / std."""
    policy.value_head.weight.copy_(reward_model.model.score.weight / std)
    policy.value_head.bias.fill_(-mean / std)


def notebook_3(preset, reward_model=None) -> SimpleNamespace:
    """The models of notebooks 1 and 2, or another `reward_model`; a policy whose critic starts as it, and the reward.

    `prompts(split, n, seed)` gives token ids; `sample(lm, n)` one response to each of n prompts, 128 at a time;
    `samples` are those of the SFT policy, on which the reward has mean 0 and standard deviation 1; `measure` is the
    reward under a second name, for who trains on another one.
    """
    sft, reviews = str(preset.require("sft")), data.load_sentences(preset.dataset, seed=preset.seed)
    tokenizer, reference = data.load_tokenizer(sft), models.freeze(models.load_lm(sft)).to(preset.device)
    reward_model = reward_model or models.RewardModel.from_pretrained(preset.require("reward_model"))
    reward_model = models.freeze(reward_model).to(preset.device)
    rows = {x: data.encode(reviews[x]["sentence"], tokenizer, preset.max_tokens) for x in ("test", "validation")}

    def prompts(split: str, n: int, seed: int) -> list[list[int]]:
        return data.sample_prompts(rows[split], n, preset.ppo_prompt_tokens, seed)

    def sample(lm, n: int) -> list[Rollouts]:
        torch.manual_seed(preset.seed)
        chosen = prompts("test", n, preset.seed + 1)
        parts = [chosen[i : i + 128] for i in range(0, n, 128)]
        return [sample_rollouts(lm, part, tokenizer, preset.ppo_new_tokens) for part in parts]

    samples = sample(reference, 512)
    reward = measure = loops.normalised(reward_model, samples, preset)
    with torch.no_grad(), autocast(preset):
        raw = torch.cat([reward_model(batch.input_ids, batch.attention_mask) for batch in samples])
    mean, std = raw.mean().item(), raw.std().item()
    policy = models.PolicyWithValueHead(sft, critic=reward_model).to(preset.device)
    start_as_reward_model(policy, reward_model, mean, std)
    return SimpleNamespace(**locals())


def align_and_judge(run, preset, folder: Path, head_rate=1, **settings) -> tuple[pd.DataFrame, dict[str, float]]:
    """Trains `run.policy` by notebook 3's loop, and judges what it says on the validation split's prompts.

    `run` is `notebook_3(preset)`, in which something may have been changed, its `preset` too; what judges is as
    `preset` has it. The samples, one row per prompt, and the figures of policy and training; `settings` tell the
    training from others.
    """
    lr, prompts = run.preset.ppo_lr, run.prompts("validation", preset.eval_prompts, preset.seed)
    training = loops.new_run(folder, run.policy, run.preset, "policy", steps=preset.ppo_updates, lr=lr, **settings)
    training.scheduler.base_lrs[-1] *= head_rate

    def prompts_of(update):
        return run.prompts("test", preset.ppo_batch, preset.seed * 99991 + update)

    with patch.object(loops, "watch"):  # a mistake is let run to its end
        loops.align(training, run.preset, run.policy, run.reference, run.reward, prompts_of, run.tokenizer)
    patch.stopall()
    judge, base = judges.JUDGES[preset.judge], models.load_lm(preset.model).to(preset.device)
    with autocast(preset):
        samples = evaluation.evaluate(
            run.policy.eval(), run.reference, base, run.measure, judge, prompts, run.tokenizer, preset.ppo_new_tokens,
            preset.seed,
        )  # fmt: skip
    found, log = evaluation.summarise(samples), training.metrics
    del found["intervals"]
    late = log["explained_variance"].tail(preset.ppo_updates // 5).mean()
    return samples, found | {"explained_variance": late, "most_moved": log["approx_kl"].max()}
