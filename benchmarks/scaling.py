"""What a PPO update of this series costs as responses, batches or early ends grow, at GPT-2's size.

    python benchmarks/scaling.py          # a quarter of an hour on two cores

Writes one row a run to benchmarks/scaling.csv and draws docs/scaling.png. All but one of `workload.py`'s
figures stay as they are. An end is brought about by adding to the logit of end-of-text what gives it
the wanted chance a token: a policy of random weights hardly ever ends by itself.
"""

import math
from functools import partial
from pathlib import Path

import ours
import pandas as pd
import torch
import workload
from matplotlib import pyplot

HERE = Path(__file__).parent
RESULTS, FIGURE = HERE / "scaling.csv", HERE.parent / "docs" / "scaling.png"
NEW_TOKENS, PROMPTS = (8, 16, 32, 64), (16, 32, 64, 128)
CHANCES = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of end-of-text at a token
LONGEST = 64  # new tokens where rows may end early
REPEATS = 3


def chance_of_end(policy, chance: float):
    """Has `policy` end with this chance at each token; gives back the hook to remove."""
    if not chance:
        return policy.lm.lm_head.register_forward_hook(lambda *_: None)
    shift = math.log(chance / (1 - chance)) + math.log(policy.lm.config.vocab_size)

    def raise_end(module, inputs, logits):
        return logits + shift * torch.nn.functional.one_hot(torch.tensor(workload.END), logits.shape[-1])

    return policy.lm.lm_head.register_forward_hook(raise_end)


def timed(update, **setting) -> dict:
    """Seconds of one update, and the mean length of its responses."""
    start = workload.clock()
    batch = update()
    return setting | {"seconds": workload.clock() - start, "length": batch.response_mask.sum(1).float().mean().item()}


def main() -> None:
    ours.keep_freed_memory()
    torch.set_default_device(workload.DEVICE)
    policy, update = ours.ppo_update()
    many = [prompt for seed in range(max(PROMPTS) // workload.PROMPTS) for prompt in workload.prompts(seed)]
    update(many[: workload.PROMPTS], workload.NEW_TOKENS)  # warm-up
    rows = []
    for _ in range(REPEATS):
        for n in NEW_TOKENS:
            rows.append(timed(partial(update, many[: workload.PROMPTS], n), of="length", x=n))
        for n in PROMPTS:
            rows.append(timed(partial(update, many[:n], workload.NEW_TOKENS), of="prompts", x=n))
        for chance in CHANCES:
            hook = chance_of_end(policy, chance)
            rows.append(timed(partial(update, many[: workload.PROMPTS], LONGEST), of="end", x=chance))
            hook.remove()
        print(pd.DataFrame(rows).tail(14).round(2).to_string(), flush=True)
    runs = pd.DataFrame(rows).assign(machine=workload.machine())
    runs.to_csv(RESULTS, index=False)
    figure(runs)


def figure(runs: pd.DataFrame) -> None:
    """Three panels: a dot an update, and the line through the origin and the rightmost median."""
    fig, axes = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
    panels = {
        "length": ("x", f"new tokens, {workload.PROMPTS} prompts"),
        "prompts": ("x", f"prompts, {workload.NEW_TOKENS} new tokens"),
        "end": ("length", f"mean length, up to {LONGEST} tokens"),
    }
    for ax, (of, (x, label)) in zip(axes, panels.items()):
        some = runs[runs["of"] == of]
        medians = some.groupby("x")[[x, "seconds"]].median()
        last = medians.loc[medians[x].idxmax()]
        ax.plot([0, last[x]], [0, last["seconds"]], color="#bbbbbb", label="proportional")
        ax.plot(some[x], some["seconds"], "o", color="#0072b2", markersize=4, alpha=0.6, label="an update")
        ax.set(xlabel=label, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    fig.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
