"""What each detail of PPO is worth: notebook 3's loop with one thing changed at a time, on `tiny`.

    python benchmarks/ablations.py                                    # five seeds of every row: hours on two cores
    python benchmarks/ablations.py --seeds 0 --rows "lambda 0"        # one run, and the correct one beside it

Writes one row a run to benchmarks/ablations.csv and prints the table for docs/results.md. A run whose row is there is
not repeated, and one that was interrupted continues. The models come from notebooks 1 and 2, run once a seed. All
policies of a seed are judged on the same held-out prompts, in fp32, by the judge and the normalised reward.
"""

import argparse
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import torch
from scipy.stats import t

from rlhf_helpers import data, evaluation, judges, models, ppo, rollouts
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import Preset, load_preset

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "ablations.csv"
BEFORE_THE_CRITIC = ROOT / "benchmarks" / "ablations-without-critic.csv"  # measured on 2026-11-21, three seeds
SHOWN = {
    "judge_positive": "judged positive",
    "well_formed": "well-formed",
    "reward": "score",
    "kl": "KL",
    "distinct_2": "distinct-2",
    "eos_rate": "end-of-text",
    "explained_variance": "explained variance",
}


def setting(**fields):
    """A change that is only another value in the preset."""

    def change(run):
        run.preset = replace(run.preset, **fields)
        return nullcontext()

    return change


def mean_added_back(run):
    whiten = ppo.whiten
    return patch.object(ppo, "whiten", lambda x, mask: whiten(x, mask, shift_mean=False))


def returns_from_whitened_advantages(run):
    gae = ppo.gae

    def faulty(rewards, values, mask, *gamma_and_lam):
        advantages = ppo.whiten(gae(rewards, values, mask, *gamma_and_lam)[0], mask)
        return advantages, advantages + values

    return patch.object(ppo, "gae", faulty)


def random_value_head(run):
    run.policy.value_head.reset_parameters()
    return nullcontext()


def dropout_on(run):
    for module in run.policy.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return nullcontext()


def reward_not_normalised(run):
    run.reward = run.reward_model
    return nullcontext()


def end_never_learnt(run):
    """Padding masked by its id, as where it is end-of-text: no end has a label, in SFT or here."""
    preset, folder = run.preset, run.preset.artifacts / "no_end"
    lm = models.load_lm(preset.model)
    train = run.reviews["train"]["sentence"]
    ids = data.encode([s for s in train if s.rstrip().endswith((".", "!", "?"))], run.tokenizer, preset.max_tokens)
    lengths = [len(row) for row in ids]
    batches = [b for e in range(preset.sft_epochs) for b in data.length_bucketed(lengths, preset.sft_batch, e)]

    def loss_of(batch):
        input_ids, mask = data.pad([ids[i] for i in batch], run.tokenizer.pad_token_id)
        labels = input_ids.masked_fill(input_ids == run.tokenizer.eos_token_id, -100)
        return lm(input_ids=input_ids, attention_mask=mask, labels=labels).loss, {}

    loops.fit(loops.new_run(folder, lm, preset, "sft", steps=len(batches), lr=preset.sft_lr), preset, batches, loss_of)
    run.policy = models.PolicyWithValueHead(lm, critic=run.reward_model)
    run.reference = models.freeze(type(lm)(lm.config))
    run.reference.load_state_dict(lm.state_dict())
    return nullcontext()


def critic(trunk=None, head_rate=1, **fields):
    """The value head on the trunk of another model; None: on the policy's own."""

    def change(run):
        run.policy = models.PolicyWithValueHead(run.sft, critic=trunk and models.RewardModel(run.sft))
        run.head_rate = head_rate
        return setting(**fields)(run)

    return change


CORRECT = "as it should be"
ROWS = {
    CORRECT: setting(),
    "mean added back": mean_added_back,
    "returns from whitened advantages": returns_from_whitened_advantages,
    "random value head": random_value_head,
    "no critic of its own": critic(),
    "no critic of its own, ten times the head's rate": critic(head_rate=10),
    "no critic of its own, value loss with weight 1": critic(ppo_value_coef=1.0),
    "critic's trunk from SFT": critic("sft"),
    "critic not first": setting(ppo_critic_updates=0),
    "value loss 0": setting(ppo_value_coef=0.0),
    "lambda 1": setting(ppo_lam=1.0),
    "lambda 0": setting(ppo_lam=0.0),
    "dropout on": dropout_on,
    "reward not normalised": reward_not_normalised,
    "end never learnt": end_never_learnt,
    "in bfloat16": setting(precision="bf16"),  # no mistake: as on a GPU
}


def run_one(row: str, preset: Preset) -> dict:
    """The figures of one policy, trained under one change; what judges it is unchanged."""
    sft, tokenizer = str(preset.require("sft")), data.load_tokenizer(str(preset.require("sft")))
    reward_model = models.freeze(models.RewardModel.from_pretrained(preset.require("reward_model")))
    reference, base = (models.freeze(models.load_lm(path)) for path in (sft, preset.model))
    reviews = data.load_sentences(preset.dataset, seed=preset.seed)
    test, validation = (
        data.encode(reviews[split]["sentence"], tokenizer, preset.max_tokens) for split in ("test", "validation")
    )

    def prompts_of(update, n=preset.ppo_batch):
        return data.sample_prompts(test, n, preset.ppo_prompt_tokens, preset.seed * 99991 + update)

    generator = torch.Generator().manual_seed(preset.seed)
    samples = [
        rollouts.sample_rollouts(reference, prompts_of(-i, 128), tokenizer, preset.ppo_new_tokens, generator)
        for i in (1, 2, 3, 4)
    ]
    reward = loops.normalised(reward_model, samples, preset)
    run = SimpleNamespace(
        preset=preset, sft=sft, tokenizer=tokenizer, reviews=reviews, reward_model=reward_model, reward=reward,
        reference=reference, policy=models.PolicyWithValueHead(sft, critic=reward_model), head_rate=1,
    )  # fmt: skip
    # a mistake is let run to its end, whatever health.watch thinks of it
    with ROWS[row](run), patch.object(loops, "watch", lambda _: None):
        steps, lr = preset.ppo_updates, preset.ppo_lr
        trained = loops.new_run(preset.artifacts / row, run.policy, run.preset, "policy", steps=steps, lr=lr)
        trained.scheduler.base_lrs[-1] *= run.head_rate
        loops.align(trained, run.preset, run.policy, run.reference, run.reward, prompts_of, tokenizer)
    prompts = data.sample_prompts(validation, preset.eval_prompts, preset.ppo_prompt_tokens, seed=preset.seed)
    frame = evaluation.evaluate(
        run.policy.eval(), run.reference, base, reward, judges.JUDGES[preset.judge], prompts, tokenizer,
        preset.ppo_new_tokens, seed=preset.seed,
    )  # fmt: skip
    late = trained.metrics["explained_variance"].tail(max(1, steps // 5)).mean()
    summary = evaluation.summarise(frame) | {"explained_variance": late}
    return {name: summary[name] for name in SHOWN}


def table(runs: pd.DataFrame) -> str:
    """Markdown: the mean over the seeds, and the difference to the correct run of the same seeds, 95 % by t."""
    shown = {name: title for name, title in SHOWN.items() if name in runs}
    lines = ["| " + " | ".join(["PPO", *shown.values()]) + " |", "|---" * (1 + len(shown)) + "|"]
    correct = runs[runs["ablation"] == CORRECT].set_index("seed")
    for row, found in runs.groupby("ablation", sort=False):
        found, cells = found.set_index("seed"), []
        for name in shown:
            change, cell = (found[name] - correct[name]).dropna(), f"{found[name].mean():.2f}"
            if row != CORRECT and len(change) > 1:
                half = t.ppf(0.975, len(change) - 1) * change.std() / len(change) ** 0.5
                cell += f" ({change.mean():+.2f} [{change.mean() - half:+.2f}, {change.mean() + half:+.2f}])"
            cells.append(cell)
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines)


def preset_of(seed: int) -> Preset:
    """The preset with that seed, once notebooks 1 and 2 have been run with it."""
    os.environ |= {"RLHF_PRESET": "tiny", "RLHF_SEED": str(seed), "RLHF_ARTIFACTS": f"artifacts/ablations/{seed}"}
    preset = load_preset()
    if not (preset.folder("reward_model") / "artifact.json").exists():
        subprocess.run([sys.executable, "-m", "rlhf_helpers", "sft", "rm"], check=True)
    return preset


def main() -> None:
    prepare()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.exists() else []
    for seed in arguments.seeds:
        preset = preset_of(seed)
        for row in dict.fromkeys([CORRECT, *arguments.rows]):
            if not any(there["ablation"] == row and there["seed"] == seed for there in rows):
                print(f"--- {row}, seed {seed}", flush=True)
                rows.append({"ablation": row, "seed": seed} | run_one(row, preset))
                pd.DataFrame(rows).round(4).to_csv(RESULTS, index=False)
    print(table(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    main()
