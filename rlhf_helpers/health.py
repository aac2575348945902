"""When PPO goes wrong: what was seen, what it usually means, what to do. docs/glossary.md explains each metric."""

import sys
from collections.abc import Iterator

import pandas as pd
from tqdm import tqdm

from rlhf_helpers.training import Run

ADVICE = {
    "empty responses": "The policy ends at once, so there is nothing to learn from. Most often any text scores worse "
    "than none: score an empty response by itself, and look at ppo_no_eos_score.",
    "KL past its bound": "A policy that had never moved would be better by its own objective. Most often the learning "
    "rate is too high: divide ppo_lr by 10. Else raise ppo_beta, or lower ppo_max_update_kl.",
    "reward hacking": "The policy has found what the reward model pays for and the judge does not want. Read its best "
    "samples; raise ppo_beta, stop earlier, or train the reward model on such samples.",
    "entropy collapse": "The policy says nearly the same, whatever the prompt. Read its samples; raise ppo_beta or "
    "lower ppo_lr, and look whether the reward pays for one phrase.",
}
STOPS = ("empty responses", "KL past its bound")  # with nothing to gain from more updates; the others warn


def findings(metrics: pd.DataFrame) -> Iterator[tuple[str, int, str]]:
    """What is wrong with a run of PPO: its name in ADVICE, the first row that shows it, and the figures there.

    `metrics` holds one row per update, as metrics.csv does. Reward hacking shows only where there is a `judge`.
    """
    start = metrics.iloc[0]
    gain, price = (metrics["score"] - start["score"]).clip(lower=0), metrics["beta"] * metrics["kl_k1"]
    late = metrics.reindex(columns=["score", "judge"]).rolling(5).mean()  # one update's are noisy
    best = late.cummax()
    signs = {
        # an ended response holds one end-of-text
        "empty responses": (metrics["length"] - metrics["eos_rate"] <= 0, ["length", "eos_rate"]),
        # the objective is E[score] - beta KL, in standard deviations of the score
        "KL past its bound": (price - gain > 3, ["kl_k1", "beta", "score"]),
        "reward hacking": ((late.score >= best.score) & (late.judge < best.judge - 0.1), ["score", "judge"]),
        "entropy collapse": (metrics["entropy"] < 0.25 * start["entropy"], ["entropy"]),
    }
    for name, (seen, columns) in signs.items():
        if seen.any():
            row = int(seen.argmax())
            figures = [
                f"{column} {x.iloc[0]:.3g} at the start, {x.max():.3g} at most, {x.iloc[-1]:.3g} now"
                for column, x in metrics[columns][: row + 1].items()
            ]
            yield name, row, "; ".join(figures)


def watch(run: Run) -> None:
    """After `run.log`, once per update: warns, or for STOPS raises RuntimeError, the first time something is wrong."""
    for name, row, figures in findings(pd.DataFrame([*run.history, run.row])):
        if row < len(run.history):
            continue  # said before
        text = f"{name} at update {row} of {run.folder}: {figures}. {ADVICE[name]} See docs/glossary.md."
        if name in STOPS:
            raise RuntimeError(f"{text} Then delete the folder: it would continue from its last checkpoint.")
        if run.main:
            tqdm.write(f"Warning: {text}", file=sys.stdout)
