"""Which critic foresees the return? PPO as in notebook 3 with one way of making its critic at a time.

    RLHF_PRESET=tiny python benchmarks/critic.py --seeds 0 1 2        # after notebooks 1 and 2 with that preset

Writes one row a run to benchmarks/critic.csv: the explained variance in the first update after the critic's own and,
as means over the last fifth of the updates, explained variance, score, the judge's verdict and KL. All seeds start from
the same models.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from rlhf_helpers import data, evaluation, models, rollouts
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import keep_freed_memory, quiet
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import autocast

RESULTS = Path(__file__).with_name("critic.csv")
WAYS = {  # name -> (whose trunk, changes to the preset)
    "head on the policy's trunk": (None, {"ppo_critic_updates": 0}),
    "the same, ten times the rate for the head": (None, {"ppo_critic_updates": 0, "head_rate": 10}),
    "the same, value loss with weight 1": (None, {"ppo_critic_updates": 0, "ppo_value_coef": 1.0}),
    "own trunk from SFT, critic first": ("sft", {}),
    "own trunk from the reward model": ("reward model", {"ppo_critic_updates": 0}),
    "own trunk from the reward model, critic first": ("reward model", {}),
}


def run_one(preset, way: str, seed: int) -> dict:
    trunk, changes = WAYS[way]
    head_rate = changes.get("head_rate", 1)
    preset = replace(preset, **{k: v for k, v in changes.items() if k != "head_rate"})
    sft, reward_folder = str(preset.require("sft")), preset.require("reward_model")
    preset = replace(preset, seed=seed)
    tokenizer = data.load_tokenizer(sft)
    rows = data.encode(
        data.load_sentences(preset.dataset, seed=preset.seed)["test"]["sentence"], tokenizer, preset.max_tokens
    )
    reference = models.freeze(models.load_lm(sft)).to(preset.device)
    reward_model = models.freeze(models.RewardModel.from_pretrained(reward_folder)).to(preset.device)
    critic = {None: None, "sft": models.RewardModel(sft), "reward model": reward_model}[trunk]
    policy = models.PolicyWithValueHead(sft, critic=critic).to(preset.device)

    def prompts_of(update, n=preset.ppo_batch):
        return data.sample_prompts(rows, n, preset.ppo_prompt_tokens, preset.seed * 99991 + update)

    generator = torch.Generator(preset.device).manual_seed(preset.seed)
    with autocast(preset):
        samples = [
            rollouts.sample_rollouts(reference, prompts_of(-i, 128), tokenizer, preset.ppo_new_tokens, generator)
            for i in (1, 2, 3, 4)
        ]
    reward = loops.normalised(reward_model, samples, preset)
    verdicts = []

    def judged(experience):
        verdicts.append(evaluation.JUDGES[preset.judge](experience.rollouts.texts(tokenizer)).mean())
        return experience

    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        run = loops.new_run(Path(folder), policy, preset, "policy", steps=preset.ppo_updates, lr=preset.ppo_lr)
        if head_rate > 1:
            run.scheduler.base_lrs[1] *= head_rate
        loops.align(run, preset, policy, reference, reward, prompts_of, tokenizer, estimate=judged)
    metrics = run.metrics.assign(judge=verdicts)
    late = metrics.tail(max(1, len(metrics) // 5)).mean()
    first = metrics["explained_variance"].iloc[min(preset.ppo_critic_updates or 4, len(metrics) - 1)]
    shown = {"explained variance, early": first, "explained variance, late": late["explained_variance"]}
    shown |= {"score": late["score"], "judged positive": late["judge"], "KL": late["kl_k1"]}
    return shown | {"seconds": time.perf_counter() - start}


def main() -> None:
    quiet()
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    arguments = parser.parse_args()
    preset = load_preset()
    rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.exists() else []
    for seed in arguments.seeds:
        for way in arguments.ways:
            key = {"preset": preset.name, "critic": way, "seed": seed}
            if not any(all(row[k] == v for k, v in key.items()) for row in rows):
                print(f"--- {way}, seed {seed}", flush=True)
                rows.append(key | run_one(preset, way, seed))
                pd.DataFrame(rows).round(4).to_csv(RESULTS, index=False)
    found = pd.read_csv(RESULTS).drop(columns="seed").groupby(["preset", "critic"], sort=False).mean()
    print(found.round(3).to_string())


if __name__ == "__main__":
    main()
