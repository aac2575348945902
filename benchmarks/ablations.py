"""What each detail of PPO is worth: notebook 3's loop with one thing changed at a time.

    python benchmarks/ablations.py                           # five seeds of every row: hours on two cores
    RLHF_SEED=0 python benchmarks/ablations.py "lambda 0"    # one run

On the preset `tiny`, unless RLHF_PRESET says otherwise. Each run is a row of ablations-tiny.csv and not
repeated; one that was interrupted continues. Notebooks 1 and 2 are run once for each seed. All policies of a
seed are judged on the same held-out prompts, in fp32, by the judge and the normalised reward.
"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from trained import after_notebooks_1_and_2, align_and_judge, notebook_3, start_as_reward_model
from workload import collect, compared

from rlhf_helpers import data, models, ppo
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare

PRESET, HERE = os.environ.get("RLHF_PRESET", "tiny"), Path(__file__).parent
RESULTS = HERE / f"ablations-{PRESET}.csv"
SHOWN = {
    "judge_positive": "judged positive", "well_formed": "well-formed", "reward": "score", "kl": "KL",
    "distinct_2": "distinct-2", "eos_rate": "end-of-text", "explained_variance": "explained variance",
}  # fmt: skip
CORRECT = "as it should be"


def setting(run, **fields):
    run.preset = replace(run.preset, **fields)


def returns_from_whitened_advantages(run):
    def faulty(rewards, values, mask, *gamma_and_lam, gae=ppo.gae):
        advantages = ppo.whiten(gae(rewards, values, mask, *gamma_and_lam)[0], mask)
        return advantages, advantages + values

    patch.object(ppo, "gae", faulty).start()


def critic(run, trunk=None, head_rate=1, **fields):
    """A value head that starts at zero, on a reward model's trunk; None: on the policy's own."""
    run.policy = models.PolicyWithValueHead(run.sft, critic=trunk and trunk(run)).to(run.preset.device)
    run.head_rate = head_rate
    setting(run, **fields)


def dropout_on(run):
    for module in run.policy.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1


def reward_not_normalised(run):
    run.reward = run.reward_model
    start_as_reward_model(run.policy, run.reward_model, mean=0.0, std=1.0)


def end_never_learnt(run):
    """Padding masked by its id, as where it is end-of-text: no end has a label, in SFT or here."""
    preset, lm, end = run.preset, run.policy.lm, run.tokenizer.eos_token_id
    lm.load_state_dict(models.load_lm(preset.model).state_dict())
    sentences = data.whole_sentences(run.reviews["train"]["sentence"])
    ids = data.encode(sentences, run.tokenizer, preset.max_tokens)
    lengths, size = [len(row) for row in ids], preset.sft_batch
    batches = [b for seed in range(preset.sft_epochs) for b in data.length_bucketed(lengths, size, seed)]

    def loss_of(batch):
        input_ids, mask = data.pad([ids[i] for i in batch], end)
        labels = input_ids.masked_fill(input_ids == end, -100)
        return lm(input_ids, attention_mask=mask, labels=labels).loss, {}

    folder, steps = preset.folder("ablations") / "no end", len(batches)
    sft = loops.new_run(folder, lm, preset, "sft", steps=steps, lr=preset.sft_lr)
    loops.fit(sft, preset, batches, loss_of)
    run.reference.load_state_dict(lm.state_dict())


ROWS = {
    CORRECT: setting,
    "mean added back": lambda run: patch.object(ppo, "whiten", partial(ppo.whiten, shift_mean=False)).start(),
    "returns from whitened advantages": returns_from_whitened_advantages,
    "random value head": lambda run: run.policy.value_head.reset_parameters(),
    "value head starts at zero": partial(critic, trunk=lambda run: run.reward_model),
    "no critic of its own": critic,
    "no critic of its own, ten times the head's rate": partial(critic, head_rate=10),
    "no critic of its own, value loss with weight 0.1": partial(critic, ppo_value_coef=0.1),
    "critic's trunk from SFT": partial(critic, trunk=lambda run: models.RewardModel(run.sft)),
    "critic not first": partial(setting, ppo_critic_updates=0),
    "value loss 0": partial(setting, ppo_value_coef=0.0),
    "lambda 1": partial(setting, ppo_lam=1.0),
    "lambda 0": partial(setting, ppo_lam=0.0),
    "dropout on": dropout_on,
    "reward not normalised": reward_not_normalised,
    "end never learnt": end_never_learnt,
    "in bfloat16": partial(setting, precision="bf16"),  # no mistake: as on a GPU
}


def figures(row: str, preset) -> dict:
    """Of one policy, trained under one change; what judges it is unchanged."""
    run = notebook_3(preset)
    run.head_rate = 1
    ROWS[row](run)
    _, found = align_and_judge(run, preset, preset.folder("ablations") / row, run.head_rate)
    return {name: round(found[name], 4) for name in SHOWN if name in found}


def table(runs: pd.DataFrame) -> str:
    return compared(runs.rename(columns={"ablation": "PPO"}), ROWS, SHOWN, CORRECT)


def jobs(rows):
    for preset in after_notebooks_1_and_2(PRESET, seeds=5):
        for row in rows:
            yield {"ablation": row, "seed": preset.seed}, partial(figures, row, preset)


if __name__ == "__main__":
    prepare()
    print(table(collect(RESULTS, jobs(sys.argv[1:] or ROWS))))
