"""Time and memory at GPT-2's size, on the work in `workload.py`: the first table and picture of docs/speed.md.

    make bench                     # two hours on two cores; gives the interpreters that have TRL
    python benchmarks/speed.py     # measures nothing, shows the runs there are

Each run is a row of speed.csv. What is there is not measured again, and another machine's rows stay: delete
the file to start anew.
"""

import sys
from functools import partial
from itertools import product
from pathlib import Path

import ours
import pandas as pd
import workload
from matplotlib import pyplot
from workload import collect, markdown, measured

HERE = Path(__file__).parent
RESULTS = HERE / "speed.csv"
STAGES = {
    "sft": "SFT, 512 phrases",
    "rm": "reward model, 512 phrases",
    "rollouts": "32 rollouts",
    "ppo": "PPO update, 32 prompts",
}
CONTENDERS = {"ours": "this series", "plain": "plain loop", "trl_peer": "TRL"}


def jobs(trl: str, trl_with_ppo: str):
    """Five interleaved runs of everything."""
    for run, stage, contender in product(range(5), STAGES, CONTENDERS):
        off = [name for name, (stages, *_) in ours.OFF.items() if stage.replace("rollouts", "ppo") in stages]
        command = [sys.executable, HERE / "ours.py", stage, *(off if contender == "plain" else ())]
        if contender == "trl_peer":
            command = [trl if stage in ("sft", "rm") else trl_with_ppo, HERE / "trl_peer.py", stage]
        what = {"machine": workload.machine(), "run": run, "stage": stage, "contender": contender}
        yield what | workload.size(stage), partial(measured, *command)


def table(runs: pd.DataFrame) -> str:
    """One machine's medians, lowest and highest in brackets, and their ratios to this series'."""
    runs = runs.assign(used=runs["flops"] / runs["seconds"] / runs["matrix_product"])
    runs = runs.groupby(["stage", "contender"])
    median, low, high = runs.median(numeric_only=True), runs["seconds"].min(), runs["seconds"].max()
    rows = []
    for key in product(STAGES, CONTENDERS):
        one, ours = median.loc[key], median.loc[key[0], "ours"]
        rows.append((
            STAGES[key[0]], CONTENDERS[key[1]], f"{one.seconds:.1f} [{low[key]:.1f}, {high[key]:.1f}]",
            f"{one.seconds / ours.seconds:.1f}", f"{one.peak_gib:.1f}", f"{ours.peak_gib / one.peak_gib:.2f}",
            f"{one.tokens / one.seconds:,.0f}", f"{one.used:.0%}",
        ))  # fmt: skip
    figures = ("seconds", "times ours", "peak GiB", "ours of it", "tokens a second", "of a matrix product")
    return markdown(("work", "by", *figures), *rows)


def tables(runs: pd.DataFrame) -> str:
    """The table of each machine under its name and versions."""
    parts = []
    for machine, rows in runs.groupby("machine", sort=False):
        versions = sorted(set(", ".join(rows["versions"]).split(", ")))
        parts.append(f"{machine}; {', '.join(versions)}:\n\n{table(rows)}")
    return "\n\n".join(parts)


def figure(runs: pd.DataFrame) -> None:
    """Bars of the medians, a dot for each run, of the machine that was measured last."""
    runs = runs[runs["machine"] == runs["machine"].iloc[-1]].set_index(["stage", "contender"])["seconds"]
    fig, axes = pyplot.subplots(1, len(STAGES), figsize=(11, 2.4), sharey=True, layout="constrained")
    for ax, (stage, work) in zip(axes, STAGES.items()):
        for contender, name in reversed(CONTENDERS.items()):
            seconds = runs.loc[[(stage, contender)]]
            ax.barh(name, seconds.median(), color="#0072b2" if contender == "ours" else "#bbbbbb")
            ax.plot(seconds, [name] * len(seconds), "o", color="black", markersize=3, alpha=0.5)
        ax.set(title=work, xlabel="seconds")
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(HERE.parent / "docs" / "speed.png", dpi=150)


if __name__ == "__main__":
    runs = collect(RESULTS, jobs(*sys.argv[1:]) if sys.argv[1:] else ())
    print(tables(runs))
    figure(runs)
