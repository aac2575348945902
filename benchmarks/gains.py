"""What each optimisation gained: `ours.py` with one of them switched off at a time, at GPT-2's size.

    python benchmarks/gains.py     # three interleaved runs of each, an hour on two cores

Each run is a row of gains.csv, and what is there is not measured again: delete the file to start anew, since
rows of different code must not be compared. Prints the table of docs/speed.md.
"""

import sys
from functools import partial
from itertools import product
from pathlib import Path

import ours
import pandas as pd
import workload
from workload import collect, markdown, measured

HERE = Path(__file__).parent
RESULTS = HERE / "gains.csv"
STAGES = {"sft": "SFT", "rm": "reward model", "ppo": "PPO update"}


def jobs():
    for run, (off, (stages, *_)) in product(range(3), ours.OFF.items()):
        for stage in stages.split():
            what = {"machine": workload.machine(), "run": run, "stage": stage, "off": off}
            yield what, partial(measured, sys.executable, HERE / "ours.py", stage, off)


def table(runs: pd.DataFrame) -> str:
    """Median seconds without each optimisation, and how many times those with all of them."""
    medians = runs.pivot_table(index="off", columns="stage", values="seconds", aggfunc="median")
    rows = []
    for off in (off for off in ours.OFF if off in medians.index):
        seconds, times = medians.loc[off], medians.loc[off] / medians.loc["nothing"]
        cells = [f"{seconds[s]:.1f} s, {times[s]:.2f} x" if seconds[s] > 0 else "" for s in STAGES]
        rows.append((off.replace("_", " "), *cells))
    return markdown(("without", *STAGES.values()), *rows)


if __name__ == "__main__":
    print(table(collect(RESULTS, jobs())))
