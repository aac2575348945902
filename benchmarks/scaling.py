"""What a PPO update of this series costs as responses, batches or early ends grow, at GPT-2's size.

    python benchmarks/scaling.py     # a quarter of an hour on two cores

Three updates of each setting; all but one of the figures of `workload.py` stay as they are. Writes scaling.csv,
unless it is there, and draws docs/scaling.png.
"""

from pathlib import Path

import ours
import pandas as pd
import workload
from matplotlib import pyplot

HERE = Path(__file__).parent
RESULTS = HERE / "scaling.csv"
CHANCES = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of an end at each token
GROWING = {  # settings of `ours.updates`, the column drawn from left to right, its name
    "length": ([{"new_tokens": n} for n in (8, 16, 32, 64)], "x", "new tokens, 32 prompts"),
    "prompts": ([{"prompts": n} for n in (16, 32, 64, 128)], "x", "prompts, 16 new tokens"),
    "end": ([{"end": p, "new_tokens": 64} for p in CHANCES], "length", "mean length, up to 64 tokens"),
}


def measured():
    ours.set_up()
    for of, (settings, *_) in GROWING.items():
        for setting in settings:
            what = {"of": of, "x": next(iter(setting.values())), "machine": workload.machine()}
            yield ours.updates(3, **setting)[["seconds", "length"]].assign(**what)


def figure(runs: pd.DataFrame) -> None:
    """A dot for each update, and the line through the origin and the rightmost median."""
    fig, axes = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for ax, (of, (_, x, label)) in zip(axes, GROWING.items()):
        dots = runs[runs["of"] == of]
        last = dots[dots["x"] == dots.loc[dots[x].idxmax(), "x"]].median(numeric_only=True)
        ax.plot([0, last[x]], [0, last["seconds"]], color="#bbbbbb")
        ax.plot(dots[x], dots["seconds"], "o", color="#0072b2", markersize=4, alpha=0.6)
        ax.set(xlabel=label, ylabel="seconds", xlim=(0, None), ylim=(0, None))
    fig.savefig(HERE.parent / "docs" / "scaling.png", dpi=150)


if __name__ == "__main__":
    if not RESULTS.exists():
        pd.concat(measured()).to_csv(RESULTS, index=False)
    figure(pd.read_csv(RESULTS))
