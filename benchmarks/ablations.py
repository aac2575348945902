"""What each detail of PPO is worth: notebook 3's own loop with one of them switched off at a time.

    python benchmarks/ablations.py --seeds 0 1 2      # on `tiny`, about an hour on two cores

Writes one row a run to benchmarks/ablations.csv and prints the table that stands in notebook 3. Rows
that stand there are not run again: delete the file to start anew. The models come from notebooks 1
and 2, once a seed.
"""

import argparse
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

os.environ["MPLBACKEND"] = "agg"  # the notebooks' figures are drawn and dropped

import nbformat
import pandas as pd
import torch
from matplotlib import pyplot

from rlhf_helpers import data, evaluation, models, ppo
from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "ablations.csv"
SHOWN = {
    "judge_positive": "judged positive",
    "well_formed": "well-formed",
    "reward": "score",
    "kl": "KL",
    "distinct_2": "distinct-2",
    "eos_rate": "end-of-text",
}


def run_cells(stage: str, namespace: dict, start: str, until: str) -> None:
    """Runs a notebook's code from the cell that contains `start` up to the text `until`."""
    cells = nbformat.read(ROOT / NOTEBOOKS[stage], as_version=4).cells
    first, last = (next(i for i, cell in enumerate(cells) if text in cell.source) for text in (start, until))
    for cell in cells[first : last + 1]:
        if cell.cell_type == "code":
            exec(compile(cell.source.split(until)[0], NOTEBOOKS[stage], "exec"), namespace)
            pyplot.close("all")


def sft_that_never_ends(artifacts: Path) -> Path:
    """A policy as notebook 1 makes it, but with padding masked by id: no end has a label."""
    os.environ["RLHF_ARTIFACTS"] = str(artifacts / "no_end")
    one = {}
    run_cells("sft", one, "## Set-up", "## Training")
    end, folder = one["tokenizer"].eos_token_id, one["preset"].folder("sft")
    if not (folder / "config.json").exists():
        with patch.object(data, "lm_labels", lambda ids, mask: ids.masked_fill(ids == end, -100)):
            run_cells("sft", one, "batches = [", "## What changed")
        one["lm"].save_pretrained(folder)
    return folder


def as_it_should_be(three):
    return nullcontext()


def in_bfloat16(three):
    """No mistake: matrix products in bfloat16, as on a GPU."""
    three["preset"] = replace(three["preset"], precision="bf16")
    return nullcontext()


def mean_added_back(three):
    whiten = ppo.whiten
    return patch.object(ppo, "whiten", lambda x, mask: whiten(x, mask, shift_mean=False))


def returns_from_whitened_advantages(three):
    gae = ppo.gae

    def faulty(rewards, values, mask):
        advantages = ppo.whiten(gae(rewards, values, mask)[0], mask)
        return advantages, advantages + values

    return patch.object(ppo, "gae", faulty)


def random_value_head(three):
    three["policy"].value_head.reset_parameters()
    return nullcontext()


def dropout_on(three):
    for module in three["policy"].train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return nullcontext()


def reward_not_normalised(three):
    three |= {"mean": 0.0, "deviation": 1.0}  # what the notebook's reward() reads
    return nullcontext()


def end_never_learnt(three):
    folder = sft_that_never_ends(three["preset"].artifacts)
    three["policy"] = models.PolicyWithValueHead(folder)
    three["reference"] = models.freeze(models.load_lm(str(folder)))
    return nullcontext()


ABLATIONS = [
    as_it_should_be, mean_added_back, returns_from_whitened_advantages, random_value_head, dropout_on,
    reward_not_normalised, end_never_learnt, in_bfloat16,
]  # fmt: skip


def run_one(ablation, artifacts: Path) -> dict:
    """Notebook 3's loop under one ablation; the figures of its own table, by the unbroken judge and reward."""
    os.environ["RLHF_ARTIFACTS"] = str(artifacts)
    three = {}
    run_cells("policy", three, "## Set-up", "run = new_run(")
    scale, preset = {name: three[name] for name in ("mean", "deviation")}, three["preset"]
    with ablation(three):
        run = three["new_run"](three["policy"], artifacts / ablation.__name__, preset.ppo_updates)
        three["train_ppo"](three["policy"], run, preset.ppo_beta)
    three |= scale
    run_cells("policy", three, "def judged", "sft, tuned =")
    summary = evaluation.summarise(three["judged"](three["policy"]))
    return {name: summary[name] for name in SHOWN}


def table(runs: pd.DataFrame) -> str:
    """Markdown: the mean of each ablation's runs, and the lowest and highest in brackets."""
    lines = ["| " + " | ".join(["PPO", *SHOWN.values()]) + " |", "|---" * (1 + len(SHOWN)) + "|"]
    for name, some in runs.groupby("ablation", sort=False):
        cells = [f"{some[x].mean():.2f} [{some[x].min():.2f}, {some[x].max():.2f}]" for x in SHOWN]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    os.environ["RLHF_PRESET"] = "tiny"
    rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.exists() else []
    for seed in parser.parse_args().seeds:
        artifacts = Path("artifacts/ablations") / str(seed)
        os.environ |= {"RLHF_SEED": str(seed), "RLHF_ARTIFACTS": str(artifacts)}
        for stage in ("sft", "reward_model"):
            if not (artifacts / "tiny" / stage / "artifact.json").exists():
                run_cells(stage, {}, "## Set-up", "## Recap")
        for ablation in ABLATIONS:
            name = ablation.__name__.replace("_", " ")
            if not any(row["ablation"] == name and row["seed"] == seed for row in rows):
                print(f"--- {name}, seed {seed}", flush=True)
                rows.append({"ablation": name, "seed": seed} | run_one(ablation, artifacts))
                pd.DataFrame(rows).round(4).to_csv(RESULTS, index=False)
    print(table(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    main()
