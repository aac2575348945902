"""Time and memory at GPT-2's size, on the work in `workload.py`: the tables and the picture of docs/speed.md.

    make bench                     # hours on two cores; gives the interpreters that have TRL
    python benchmarks/speed.py     # measures nothing, shows the runs there are

Each run is a row of speed.csv, which compares this series with others, or of gains.csv, where one of its optimisations
is switched off at a time. What is there is not measured again, and another machine's rows stay: delete a file to start
it anew, since rows of different code must not be compared.
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
SPEED, GAINS = HERE / "speed.csv", HERE / "gains.csv"
STAGES = {
    "sft": "SFT, 512 phrases",
    "rm": "reward model, 512 phrases",
    "rollouts": "32 rollouts",
    "ppo": "PPO update, 32 prompts",
}
CONTENDERS = {"ours": "this series", "plain": "plain loop", "trl_peer": "TRL"}
OPTIMISED = {"sft": "SFT", "rm": "reward model", "ppo": "PPO update"}


def against_others(trl: str, trl_with_ppo: str):
    """Five interleaved runs of everything."""
    for run, stage, contender in product(range(5), STAGES, CONTENDERS):
        off = [name for name, (stages, *_) in ours.OFF.items() if stage.replace("rollouts", "ppo") in stages]
        command = [sys.executable, HERE / "ours.py", stage, *(off if contender == "plain" else ())]
        if contender == "trl_peer":
            command = [trl if stage in ("sft", "rm") else trl_with_ppo, HERE / "trl_peer.py", stage]
        what = {"machine": workload.machine(), "run": run, "stage": stage, "contender": contender}
        yield what | workload.size(stage), partial(measured, *command)


def switched_off():
    """Three interleaved runs without each optimisation."""
    for run, (off, (stages, *_)) in product(range(3), ours.OFF.items()):
        for stage in stages.split():
            what = {"machine": workload.machine(), "run": run, "stage": stage, "off": off}
            yield what, partial(measured, sys.executable, HERE / "ours.py", stage, off)


def contenders(runs: pd.DataFrame) -> str:
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
        parts.append(f"{machine}; {', '.join(versions)}:\n\n{contenders(rows)}")
    return "\n\n".join(parts)


def gains(runs: pd.DataFrame) -> str:
    """Median seconds without each optimisation, and how many times those with all of them."""
    medians = runs.pivot_table(index="off", columns="stage", values="seconds", aggfunc="median")
    rows = []
    for off in (off for off in ours.OFF if off in medians.index):
        seconds, times = medians.loc[off], medians.loc[off] / medians.loc["nothing"]
        cells = [f"{seconds[s]:.1f} s, {times[s]:.2f} x" if seconds[s] > 0 else "" for s in OPTIMISED]
        rows.append((off.replace("_", " "), *cells))
    return markdown(("without", *OPTIMISED.values()), *rows)


def bars(runs: pd.DataFrame) -> None:
    """docs/speed.png: the medians, a dot for each run, of the machine that was measured last."""
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
    interpreters = sys.argv[1:]
    runs = collect(SPEED, against_others(*interpreters) if interpreters else ())
    print(tables(runs))
    bars(runs)
    print(gains(collect(GAINS, switched_off() if interpreters else ())))
