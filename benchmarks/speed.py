"""Time and memory at GPT-2's size: this series, a plain loop and TRL, on the work in `workload.py`.

    make bench                                                 # five interleaved runs of everything
    python benchmarks/speed.py --trl PYTHON --trl-ppo PYTHON   # with the interpreters that have TRL

Each run is a process of its own, so that none finds another's memory or caches. Writes one row a run to
benchmarks/speed.csv and prints the table that stands in the README.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
RESULTS = HERE / "speed.csv"
STAGES = {"sft": "SFT, 512 phrases", "rm": "reward model, 512 phrases", "ppo": "PPO update, 32 prompts"}


def run(command: list[str]) -> dict:
    """The measurement that a contender prints on its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(runs: pd.DataFrame) -> str:
    """Markdown: median seconds of each contender, lowest and highest in brackets, against ours."""
    lines = ["| | contender | seconds | times ours | peak memory, GiB | of TRL's |", "|---|---|---|---|---|---|"]
    medians = runs.groupby(["stage", "contender"])[["seconds", "peak_gib"]].median()
    for (stage, contender), some in runs.groupby(["stage", "contender"], sort=False):
        seconds, memory = some["seconds"], medians.loc[stage, contender]["peak_gib"]
        lines.append(
            f"| {STAGES[stage]} | {contender} | {seconds.median():.1f} [{seconds.min():.1f}, {seconds.max():.1f}] "
            f"| {seconds.median() / medians.loc[stage, 'ours']['seconds']:.1f} | {memory:.1f} "
            f"| {memory / medians.loc[stage, 'TRL']['peak_gib']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", required=True, help="python with the current TRL, for SFT and the reward model")
    parser.add_argument("--trl-ppo", required=True, help="python with trl==1.10.0, the last one with PPO")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for i in range(arguments.runs):
        for stage in STAGES:
            trl = arguments.trl_ppo if stage == "ppo" else arguments.trl
            for contender, python, script in (
                ("ours", sys.executable, "ours.py"),
                ("plain loop", sys.executable, "plain.py"),
                ("TRL", trl, "trl_peer.py"),
            ):
                measured = run([python, str(HERE / script), stage])
                rows.append({"stage": stage, "contender": contender, "run": i} | measured)
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(RESULTS, index=False)
    print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
