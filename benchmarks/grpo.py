"""What each switch of GRPO is worth: the loop of Beyond 5 with one setting changed at a time.

    python benchmarks/grpo.py                       # three seeds of every row: half an hour on one core
    RLHF_SEED=0 python benchmarks/grpo.py "no KL"   # one run

On the preset `tiny`, with forty updates. The functions are those of the notebook itself: its cells with the tag
`benchmark` are executed. All runs of a seed start from the same policy, sample the same number of responses (dynamic
sampling up to four times as many, which is a column), and answer the same held-out requests. The grammar, from which
none of them learned unless its name says so, tells which responses are still sentences.
"""

import contextlib
import sys
from dataclasses import replace
from functools import cache, partial
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import torch
from trained import after_notebooks_1_and_2
from workload import collect, compared

from rlhf_helpers.environment import prepare
from rlhf_helpers.evaluation import response_logprob

HERE = Path(__file__).parent
RESULTS = HERE / "grpo-tiny.csv"
BEFORE, GRPO, SENTENCE = "before GRPO", "GRPO", "a sentence is asked for too"
ROWS: dict[str, dict] = {
    BEFORE: {"updates": 0},
    GRPO: {},
    "not divided by the standard deviation": {"divide": False},
    "mean over tokens": {"mean_over": "tokens"},
    "Dr. GRPO: not divided, constant weights": {"divide": False, "mean_over": "constant"},
    "no KL": {"beta": 0.0},
    "KL in the reward": {"kl_in": "reward"},
    "KL in the reward, not divided": {"kl_in": "reward", "divide": False},
    "clip-higher": {"high": 0.28},
    "dynamic sampling": {"dynamic": True},
    SENTENCE: {},  # the grammar's verdict is part of the reward
}
SHOWN = {
    "success": "responses that pass", "sentences": "still a sentence", "both": "both", "hard": "pass, hard requests",
    "kl": "KL", "length": "tokens", "sampled": "responses sampled",
}  # fmt: skip


@cache
def notebook(seed: int) -> dict:
    """The names that the tagged cells define, once the form has been learned with the seed of RLHF_SEED."""
    cells, names = nbformat.read(HERE.parent / "beyond" / "5-GRPO.ipynb", as_version=4).cells, {}
    with contextlib.redirect_stdout(StringIO()):
        for cell in cells:
            if "benchmark" in cell.metadata.get("tags", []):
                exec(cell.source, names)  # noqa: S102 (our own notebook)
    return names


@cache
def hard_requests(seed: int) -> torch.Tensor:
    """Which held-out requests the policy before GRPO never met in eight responses."""
    n = notebook(seed)
    draws = [n["verify"](n["held_out"], n["answer"](n["reference"], n["held_out"], 1000 + i)) for i in range(8)]
    return torch.stack(draws).sum(0) == 0


def figures(row: str, seed: int) -> dict:
    """Of one policy, trained with one change; what measures it is unchanged."""
    n = notebook(seed)
    tasks, verify = n["held_out"], n["verify"]

    def sentences(batch):
        texts = n["data"].decode(batch.response_ids, n["tokenizer"])
        return torch.tensor([float(n["grammar"].well_formed(text)) for text in texts])

    def with_grammar(tasks, batch):
        return verify(tasks, batch) * sentences(batch)

    settings = replace(n["Settings"](), **{"updates": 40} | ROWS[row])
    policy = n["copy"].deepcopy(n["reference"]).requires_grad_(True)
    sampled = 0
    if settings.updates:
        run = n["loops"].new_run(
            n["folder"] / row, policy, n["preset"], "policy", steps=settings.updates, lr=settings.lr, grpo=str(settings)
        )
        n["train_grpo"](policy, run, settings, with_grammar if row == SENTENCE else verify)
        sampled = run.metrics["sampled"].sum()
    batch = n["answer"](policy.eval(), tasks)
    passed, whole = verify(tasks, batch), sentences(batch)
    with torch.no_grad():
        kl = response_logprob(policy, batch) - response_logprob(n["reference"], batch)
    found = {
        "success": passed.mean(), "sentences": whole.mean(), "both": (passed * whole).mean(),
        "hard": passed[hard_requests(seed)].mean(), "kl": kl.mean(),
        "length": batch.response_mask.sum(1).float().mean(), "sampled": sampled,
    }  # fmt: skip
    return {name: round(float(x), 4) for name, x in found.items()}


def table(runs: pd.DataFrame) -> str:
    return compared(runs, ROWS, SHOWN, GRPO, digits={"sampled": 0, "kl": 1, "length": 1}, alone=[BEFORE])


def jobs(rows):
    for preset in after_notebooks_1_and_2("tiny", seeds=3):
        for row in rows:
            yield {"change": row, "seed": preset.seed}, partial(figures, row, preset.seed)


if __name__ == "__main__":
    prepare()
    print(table(collect(RESULTS, jobs(sys.argv[1:] or ROWS))))
