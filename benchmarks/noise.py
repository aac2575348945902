"""How good must a reward model be? PPO against reward models that learnt from wrong labels, or from few.

    python benchmarks/noise.py                  # three seeds of every row: two hours on one core
    RLHF_SEED=0 python benchmarks/noise.py      # one seed

On the preset `tiny`, where the grammar judges exactly. A reward model learns from notebook 2's rows, of which a share
got the other label, or from fewer rows; its last step is kept, since who has only such labels can choose no better one.
Then notebook 3's loop runs against it, at the preset's price of KL; against the worst at twice that price, too, so that
they can be compared where the KL is the same. Each run is a row of noise-tiny.csv and not repeated. The
policies of a seed are judged on the same held-out prompts; `score` is that of the policy's own reward model.
"""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from trained import after_notebooks_1_and_2, align_and_judge, notebook_3
from workload import collect, markdown

from rlhf_helpers import data, models, plots
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare

RESULTS = Path(__file__).parent / "noise-tiny.csv"
SHOWN = {
    "accuracy": "accuracy", "judge_positive": "judged positive", "well_formed": "well-formed", "reward": "score",
    "kl": "KL", "distinct_2": "distinct-2",
}  # fmt: skip
# the share of wrong labels, how many of notebook 2's rows are shown, twice each, and the price of KL in PPO
RUNS = [(noise, 11_000, 0.15) for noise in (0.0, 0.1, 0.2, 0.3, 0.4)] + [(0.0, 3_000, 0.15), (0.0, 1_000, 0.15)]
RUNS += [(0.3, 11_000, 0.3), (0.4, 11_000, 0.3), (0.0, 1_000, 0.3)]


def reward_model_from(preset, noise, rows) -> tuple[models.RewardModel, float]:
    """Trained on `rows` rows, a share `noise` of which has the other label; and its accuracy on validation."""
    sft, reviews = str(preset.require("sft")), data.load_sentences(preset.dataset, seed=preset.seed)
    tokenizer, model = data.load_tokenizer(sft), models.RewardModel(models.load_lm(sft)).to(preset.device)
    ids = {x: data.encode(reviews[x]["sentence"], tokenizer, preset.max_tokens) for x in ("train", "validation")}
    labels = {x: torch.tensor(list(reviews[x]["label"])).float() for x in ids}
    rng = random.Random(preset.seed)
    chosen = rng.sample(range(len(ids["train"])), rows)
    wrong = rng.sample(chosen, round(noise * rows))
    labels["train"][wrong] = 1 - labels["train"][wrong]
    batches = [
        [chosen[i] for i in batch]
        for epoch in range(preset.rm_epochs)
        for batch in data.length_bucketed([len(ids["train"][i]) for i in chosen], preset.rm_batch, epoch)
    ]

    def scores(split, batch):
        input_ids, mask = data.pad([ids[split][i] for i in batch], tokenizer.pad_token_id)
        return model(input_ids.to(preset.device), mask.to(preset.device)).cpu()

    def loss_of(batch):
        return binary_cross_entropy_with_logits(scores("train", batch), labels["train"][batch]), {}

    folder, steps = preset.folder("noise") / f"rm-{noise}-{rows}", len(batches)
    run = loops.new_run(folder, model, preset, "reward_model", steps=steps, lr=preset.rm_lr, noise=noise, rows=rows)
    loops.fit(run, preset, batches, loss_of)
    with torch.no_grad():
        right = (scores("validation", range(1_000)) > 0) == (labels["validation"][:1_000] == 1)
    return model, right.float().mean().item()


def figures(preset, noise, rows, price) -> dict:
    """Of the policy that PPO makes with such a reward model, at that price of a nat."""
    reward_model, accuracy = reward_model_from(preset, noise, rows)
    run, folder = notebook_3(preset, reward_model), preset.folder("noise") / f"ppo-{noise}-{rows}-{price}"
    run.preset = replace(preset, ppo_beta=price)
    _, found = align_and_judge(run, preset, folder, noise=noise, rows=rows)
    found["accuracy"] = accuracy
    return {name: round(found[name], 4) for name in SHOWN}


def table(runs: pd.DataFrame) -> str:
    """Means over the seeds, with the smallest and the largest."""
    lines = []
    for noise, rows, price in RUNS:
        found = runs[(runs["noise"] == noise) & (runs["rows"] == rows) & (runs["price"] == price)]
        cells = [f"{found[x].mean():.2f} [{found[x].min():.2f}, {found[x].max():.2f}]" for x in SHOWN]
        lines.append([f"{noise:.0%}", f"{rows:,}", f"{price}", *cells])
    return markdown(["wrong labels", "rows", "price", *SHOWN.values()], *lines)


def picture(runs: pd.DataFrame) -> None:
    """docs/noise.png: the judge on the policy, and the policy's own score, against the reward model's accuracy."""
    figure, (left, right) = plots.new_figure(columns=2, height=2.9)
    runs = runs[runs["price"] == 0.15].sort_values("accuracy")
    for kind, marker, colour, found in (
        ("wrong labels", "o", plots.BLUE, runs[runs["rows"] == 11_000]),
        ("fewer rows", "s", plots.RED, runs[runs["rows"] < 11_000]),
    ):
        left.plot(found["accuracy"], found["judge_positive"], marker, color=colour, label=kind)
        right.plot(found["accuracy"], found["reward"], marker, color=colour)
    left.set(xlabel="accuracy of the reward model", ylabel="policy, judged positive", ylim=(0.4, 1.0))
    right.set(xlabel="accuracy of the reward model", ylabel="its own score of the policy")
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(RESULTS.parents[1] / "docs" / "noise.png", dpi=150)


def jobs():
    for preset in after_notebooks_1_and_2("tiny", seeds=3):
        for noise, rows, price in RUNS:
            what = {"noise": noise, "rows": rows, "price": price, "seed": preset.seed}
            yield what, partial(figures, preset, noise, rows, price)


if __name__ == "__main__":
    prepare()
    found = collect(RESULTS, jobs())
    picture(found)
    print(table(found))
