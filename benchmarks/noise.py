"""How good must a reward model be? Flipped labels, and fewer of them, against the judge after PPO at equal KL.

    python benchmarks/noise.py     # every row: about an hour of one core
    python benchmarks/noise.py 0   # those of one seed

On the preset `tiny`, from the SFT model of notebook 1, which is run once with notebook 2. A reward model learns from
so many labels, a share of which is flipped; then PPO follows it without a price on the KL, so that each run passes
every distance from the SFT model. The judge, the grammar, reads each batch. Its verdict at a distance is read off
the run's path, smoothed over five updates. Each run is a row of noise-tiny.csv and not repeated.
"""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from trained import notebook_3
from workload import collect, markdown

from rlhf_helpers import data, judges, models
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import load_preset

RESULTS = Path(__file__).with_name("noise-tiny.csv")
ALL, SEEDS = 11_000, (0, 1, 2)
REWARD_MODELS = [(ALL, flipped) for flipped in (0.0, 0.1, 0.2, 0.3, 0.4)] + [(1_100, 0.0), (110, 0.0), (110, 0.3)]
DISTANCES = (1, 2, 4, 8)  # nats per response


def reward_model_of(preset, examples: int, flipped: float) -> tuple[models.RewardModel, float]:
    """Notebook 2's loop on `examples` labels, some flipped, as many steps whatever their number; right on validation."""
    sft, reviews = str(preset.require("sft")), data.load_sentences(preset.dataset, seed=preset.seed)
    tokenizer, rng = data.load_tokenizer(sft), random.Random(preset.seed)
    rows, labels = {}, {}
    for split in ("train", "validation"):
        rows[split] = data.encode(reviews[split]["sentence"], tokenizer, preset.max_tokens)
        labels[split] = torch.tensor(reviews[split]["label"], dtype=torch.float32)
    chosen = rng.sample(range(len(rows["train"])), examples)
    wrong = rng.sample(chosen, round(flipped * examples))
    labels["train"][wrong] = 1 - labels["train"][wrong]
    lengths = [len(rows["train"][i]) for i in chosen]
    steps = preset.rm_epochs * ALL // preset.rm_batch
    epochs = -(-steps * preset.rm_batch // examples)
    batches = [b for e in range(epochs) for b in data.length_bucketed(lengths, preset.rm_batch, e)][:steps]
    model = models.RewardModel(sft)

    def forward(split, indices):
        return model(*data.pad([rows[split][i] for i in indices], tokenizer.pad_token_id))

    def loss_of(batch):
        indices = [chosen[i] for i in batch]
        return binary_cross_entropy_with_logits(forward("train", indices), labels["train"][indices]), {}

    with TemporaryDirectory() as folder:
        run = loops.new_run(Path(folder), model, preset, "sft", steps=len(batches), lr=preset.rm_lr)
        loops.fit(run, preset, batches, loss_of)
    with torch.no_grad():
        right = (forward("validation", range(1000)) > 0) == (labels["validation"][:1000] == 1)
    return models.freeze(model), right.float().mean().item()


def followed(seed: int, examples: int, flipped: float) -> dict:
    """A row of the table: the reward model's accuracy, and the judge's verdict at each distance."""
    torch.manual_seed(seed)
    preset = replace(load_preset("tiny"), ppo_beta=0.0)
    reward_model, accuracy = reward_model_of(replace(preset, seed=seed), examples, flipped)
    start = notebook_3(preset, reward_model)

    def judged(experience):
        run.log(judge=judges.JUDGES[preset.judge](experience.rollouts.texts(start.tokenizer)).mean())
        return experience

    def prompts(update):
        return start.prompts("test", preset.ppo_batch, 1000 * seed + update)

    with TemporaryDirectory() as folder:
        preset = replace(preset, seed=seed)
        run = loops.new_run(
            Path(folder), start.policy, preset, "policy", steps=preset.ppo_updates, lr=preset.ppo_lr
        )  # fmt: skip
        rest = (start.reference, start.reward, prompts, start.tokenizer)
        loops.align(run, preset, start.policy, *rest, estimate=judged)
    path = run.metrics[["kl_k1", "judge", "score"]].rolling(5, min_periods=1, center=True).mean()
    distance = np.maximum.accumulate(path["kl_k1"])
    row = {"accuracy": accuracy, "SFT": path["judge"].iloc[0], "furthest": distance.iloc[-1]}
    row |= {f"{x} nats": np.interp(x, distance, path["judge"], right=np.nan) for x in DISTANCES}
    return {name: round(float(x), 4) for name, x in row.items()}


def jobs(seeds):
    preset = load_preset("tiny")
    if not (preset.folder("reward_model") / "artifact.json").exists():
        subprocess.run([sys.executable, "-m", "rlhf_helpers", "sft", "rm"], check=True)
    for seed in seeds:
        for examples, flipped in REWARD_MODELS:
            what = {"labels": examples, "flipped": flipped, "seed": seed}
            yield what, lambda what=what: followed(what["seed"], what["labels"], what["flipped"])


def table(runs) -> str:
    """Means over seeds, with the lowest and the highest in brackets."""
    names, rows = ["accuracy", *(f"{x} nats" for x in DISTANCES)], []
    for (examples, flipped), of_one in runs.groupby(["labels", "flipped"], sort=False):
        found = [f"{of_one[x].mean():.2f} [{of_one[x].min():.2f}, {of_one[x].max():.2f}]" for x in names]
        rows.append((f"{examples:,}", f"{flipped:.0%}", *found))
    return markdown(("labels", "flipped", "right on validation", *(f"judge at {x}" for x in names[1:])), *rows)


if __name__ == "__main__":
    prepare()
    print(table(collect(RESULTS, jobs([int(seed) for seed in sys.argv[1:]] or SEEDS))))
