"""Time and memory at GPT-2's size: this series, a plain loop and TRL, on the work in `workload.py`.

    make bench                                                 # five interleaved runs of everything
    python benchmarks/speed.py --trl PYTHON --trl-ppo PYTHON   # with the interpreters that have TRL
    python benchmarks/speed.py --show                          # the table and figure of the runs there are

Each run is a process of its own, so that none finds another's memory or caches. Writes one row a run to
benchmarks/speed.csv, then docs/speed.png and the tables of docs/speed.md. Rows that stand there are not run
again, and another machine's stay: delete the file to start anew.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import pandas as pd
import workload
from matplotlib import pyplot

HERE = Path(__file__).parent
RESULTS, FIGURE = HERE / "speed.csv", HERE.parent / "docs" / "speed.png"
STAGES = {
    "sft": "SFT, 512 phrases",
    "rm": "reward model, 512 phrases",
    "rollouts": "32 rollouts",
    "ppo": "PPO update, 32 prompts",
}
CONTENDERS = {"ours": "this series", "plain": "plain loop", "trl_peer": "TRL"}


def collect(results: Path, jobs: Iterable[tuple[dict, list[str]]]) -> None:
    """Adds to `results` the measurement of each job, (what it is, command), that it has none of yet."""
    rows = pd.read_csv(results).to_dict("records") if results.exists() else []
    for what, command in jobs:
        if any(what.items() <= row.items() for row in rows):
            continue
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{command} failed:\n{done.stderr[-2000:]}")
        rows.append(what | json.loads(done.stdout.splitlines()[-1]))
        print(*what.values(), f"{rows[-1]['seconds']:.2f} s", flush=True)
        pd.DataFrame(rows).to_csv(results, index=False)


def table(runs: pd.DataFrame) -> str:
    """Markdown: a machine's medians, lowest and highest in brackets, and their ratios to this series'."""
    lines = [
        "| work | by | seconds | times ours | peak GiB | ours of it | tokens a second | of a matrix product |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = runs[runs["contender"] == "ours"].groupby("stage")[["seconds", "peak_gib"]].median()
    for stage, work in STAGES.items():
        for contender, by in CONTENDERS.items():
            some = runs[(runs["stage"] == stage) & (runs["contender"] == contender)]
            seconds, memory = some["seconds"].median(), some["peak_gib"].median()
            used = (some["flops"] / some["seconds"] / some["matrix_product"]).median()
            lines.append(
                f"| {work} | {by} | {seconds:.1f} [{some['seconds'].min():.1f}, {some['seconds'].max():.1f}] "
                f"| {seconds / ours['seconds'][stage]:.1f} | {memory:.1f} | {ours['peak_gib'][stage] / memory:.2f} "
                f"| {some['tokens'].iloc[0] / seconds:,.0f} | {used:.0%} |"
            )
    return "\n".join(lines)


def tables(runs: pd.DataFrame) -> str:
    """The table of each machine under its name and versions, and of what was not measured."""
    parts = []
    for machine, some in runs.groupby("machine", sort=False):
        versions = sorted({version for row in some["versions"] for version in row.split(", ")})
        parts.append(f"{machine}; {', '.join(versions)}:\n\n{table(some)}")
    if not runs["machine"].str.contains("NVIDIA").any():
        parts.append("A GPU: not measured. Where there is one, `make bench` adds its rows.")
    return "\n\n".join(parts)


def figure(runs: pd.DataFrame) -> None:
    """Bars of the medians, a dot a run, for the machine measured last."""
    runs = runs[runs["machine"] == runs["machine"].iloc[-1]]
    fig, axes = pyplot.subplots(1, len(STAGES), figsize=(11, 2.4), sharey=True, layout="constrained")
    for ax, (stage, work) in zip(axes, STAGES.items()):
        for i, contender in enumerate(CONTENDERS):
            seconds = runs[(runs["stage"] == stage) & (runs["contender"] == contender)]["seconds"]
            ax.barh(i, seconds.median(), color="#0072b2" if contender == "ours" else "#bbbbbb")
            ax.plot(seconds, [i] * len(seconds), "o", color="black", markersize=3, alpha=0.5)
        ax.set(title=work, xlabel="seconds", yticks=range(len(CONTENDERS)), yticklabels=CONTENDERS.values())
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    fig.savefig(FIGURE, dpi=150)


def jobs(trl: str, trl_ppo: str, n: int) -> Iterator[tuple[dict, list[str]]]:
    """`n` interleaved runs of everything."""
    for i, stage, contender in product(range(n), STAGES, CONTENDERS):
        python = sys.executable if contender != "trl_peer" else trl_ppo if stage in ("rollouts", "ppo") else trl
        what = {"machine": workload.machine(), "run": i, "stage": stage, "contender": contender}
        what |= {"tokens": workload.tokens(stage), "flops": workload.flops(stage)}
        yield what, [python, HERE / f"{contender}.py", stage]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", help="python with the current TRL, for SFT and the reward model")
    parser.add_argument("--trl-ppo", help="python with trl==1.10.0, the last one with PPO")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.show:
        if not (arguments.trl and arguments.trl_ppo):
            parser.error("--trl and --trl-ppo are needed to measure; `make bench` gives them")
        collect(RESULTS, jobs(arguments.trl, arguments.trl_ppo, arguments.runs))
    runs = pd.read_csv(RESULTS)
    figure(runs)
    print(tables(runs))


if __name__ == "__main__":
    main()
