"""Is PPO's learning rate too high? Notebook 3's loop at several, with its table and its audit. After notebooks 1 and 2.

    RLHF_PRESET=smollm2 python benchmarks/rate.py 5e-5 2e-5     # one after the other; 40 minutes each on one core
    RLHF_PRESET=smollm2 python benchmarks/rate.py 2e-5x100      # with 100 updates in place of the preset's

A row of rate-smollm2.csv for each rate, and how each differs from the first, prompt by prompt. `worth` is reward less
beta times KL, `slope` the audit's, as a share of the optimum's 1 / beta, over the responses that ended, `most_moved`
the largest approximate KL that an update has taken, in nats per token.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from trained import align_and_judge, notebook_3
from workload import collect

from rlhf_helpers import evaluation
from rlhf_helpers.environment import prepare
from rlhf_helpers.ppo import collect_experience
from rlhf_helpers.presets import load_preset
from rlhf_helpers.rollouts import sample_rollouts
from rlhf_helpers.training import autocast


def audit(run, preset) -> dict:
    """Notebook 3's: eight responses to each of 32 held-out prompts, log ratio on score, both less the prompt's mean."""
    prompts = [prompt for prompt in run.prompts("validation", 32, preset.seed + 3) for _ in range(8)]
    torch.manual_seed(preset.seed)
    parts = []
    for i in range(0, len(prompts), 64):
        with torch.no_grad(), autocast(preset):
            batch = sample_rollouts(run.policy, prompts[i : i + 64], run.tokenizer, preset.ppo_new_tokens)
            taken = collect_experience(
                run.policy, run.reference, run.reward, batch, beta=0.0, gamma=preset.ppo_gamma, lam=preset.ppo_lam,
                no_eos_score=preset.ppo_no_eos_score, rows_at_once=preset.ppo_minibatch,
            )  # fmt: skip
        parts.append(torch.stack([taken.scores, (taken.logprobs - taken.ref_logprobs).sum(1), batch.ended.float()]))
    x, y, kept = torch.cat(parts, 1).view(3, 32, 8)
    counted = kept.sum(1, keepdim=True).clamp(min=1)
    dx, dy = ((z - (z * kept).sum(1, keepdim=True) / counted) * kept for z in (x, y))
    slope = (dx * dy).sum() / dx.square().sum()
    drawn = torch.randint(32, (1000, 32), generator=torch.Generator().manual_seed(0))  # bootstrap over prompts
    slopes = (dx * dy).sum(1)[drawn].sum(1) / dx.square().sum(1)[drawn].sum(1)
    low, high = slopes.quantile(torch.tensor([0.025, 0.975]))
    found = {"slope": slope, "slope_low": low, "slope_high": high}
    r2 = slope * (dx * dy).sum() / dy.square().sum()
    return {name: (x * preset.ppo_beta).item() for name, x in found.items()} | {"r2": r2.item()}


def tried(preset, name: str):
    """The preset with the rate that `name` says, and with its number of updates: "2e-5", "2e-5x100"."""
    lr, _, updates = name.partition("x")
    return replace(preset, ppo_lr=float(lr), ppo_updates=int(updates or preset.ppo_updates))


def figures(preset, name) -> dict:
    run = notebook_3(preset)
    run.preset = tried(preset, name)
    samples, found = align_and_judge(run, run.preset, preset.folder("rate") / name)
    samples.to_csv(preset.folder("rate") / name / "samples.csv")
    found["worth"] = found["reward"] - preset.ppo_beta * found["kl"]
    return {name: round(x, 4) for name, x in (found | audit(run, preset)).items()}


def differences(preset, first, name) -> str:
    """From the first, on the same prompts, with their 95 % intervals."""
    one, other = (pd.read_csv(preset.folder("rate") / x / "samples.csv") for x in (first, name))
    change = other[["reward", "kl", "judge_positive"]] - one[["reward", "kl", "judge_positive"]]
    change["worth"] = change["reward"] - preset.ppo_beta * change["kl"]
    return "; ".join(
        f"{name} {x.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        for name, x in change.items()
        for low, high in [evaluation.bootstrap(x.to_frame(), lambda f: f.iloc[:, 0].mean())]
    )


if __name__ == "__main__":
    prepare()
    preset, names = load_preset(), sys.argv[1:]
    asked = {name: tried(preset, name) for name in names}
    jobs = [({"lr": p.ppo_lr, "updates": p.ppo_updates, "seed": p.seed}, partial(figures, preset, name))
            for name, p in asked.items()]  # fmt: skip
    print(collect(Path(__file__).parent / f"rate-{preset.name}.csv", jobs).round(3).T.to_string())
    for name in names[1:]:
        print(f"{name} less {names[0]}: {differences(preset, names[0], name)}")
