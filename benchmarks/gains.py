"""What each optimisation gained: `ours.py` with one of them switched off at a time, at GPT-2's size.

    python benchmarks/gains.py      # three interleaved runs of each, three quarters of an hour on two cores

Writes one row a run to benchmarks/gains.csv and prints the table that stands in docs/speed.md.
"""

import sys
from dataclasses import replace
from pathlib import Path

import ours
import pandas as pd
import speed
import workload
from transformers import AttentionInterface

from rlhf_helpers import data, models

RESULTS = Path(__file__).parent / "gains.csv"
RUNS = 3


def nothing() -> None: ...


def bfloat16() -> None:
    ours.PRESET = replace(ours.PRESET, precision="fp32")


def freed_memory_kept() -> None:
    ours.keep_freed_memory = lambda: None


def attention_in_fp32() -> None:
    AttentionInterface.register(models.ATTENTION, models.sdpa_attention_forward)


def heads_in_fp32() -> None:
    """Not faster but exact: what it costs."""
    models.in_fp32 = lambda head, hidden: head(hidden).float()


def batches_of_like_length() -> None:
    data.length_bucketed = workload.random_batches


def no_dropout_in_the_reward_model() -> None:
    models.disable_dropout = lambda model: model


OFF = {  # and the stages it speaks of
    nothing: ("sft", "rm", "ppo"),
    bfloat16: ("sft", "rm", "ppo"),
    freed_memory_kept: ("sft", "rm", "ppo"),
    attention_in_fp32: ("sft", "rm", "ppo"),
    heads_in_fp32: ("ppo",),
    batches_of_like_length: ("sft", "rm"),
    no_dropout_in_the_reward_model: ("rm",),
}


def table(runs: pd.DataFrame) -> str:
    """Markdown: median seconds without each optimisation, and how many times those with all of them."""
    lines = ["| without | SFT | reward model | PPO update |", "|---|---|---|---|"]
    medians = runs.groupby(["off", "stage"])["seconds"].median()
    for off in (off for off in OFF if off.__name__ in medians.index):
        name, cells = off.__name__, []
        for stage in OFF[nothing]:
            seconds = medians.get((name, stage))
            cells.append(f"{seconds:.1f} s, {seconds / medians['nothing', stage]:.2f} x" if seconds else "")
        lines.append("| " + " | ".join([name.replace("_", " "), *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 3:  # one run, in a process of its own
        next(off for off in OFF if off.__name__ == sys.argv[1])()
        ours.main(sys.argv[2])
        return
    speed.collect(
        RESULTS,
        (
            ({"machine": workload.machine(), "run": i, "stage": stage, "off": off.__name__},
             [sys.executable, __file__, off.__name__, stage])
            for i in range(RUNS) for off, stages in OFF.items() for stage in stages
        ),
    )  # fmt: skip
    print(table(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    main()
