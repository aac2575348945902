"""What an update of PPO holds in memory, and what checkpointing, LoRA and a shared trunk save: a table.

    RLHF_PRESET=smollm2 python benchmarks/memory.py     # after notebooks 1 and 2

Each way is a process of its own, which makes two updates as notebook 3 does. "Computed" counts weights, gradients
and Adam's moments, 4 bytes a number: what no batch size makes smaller.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import peft
import workload
from trained import notebook_3

from rlhf_helpers import models, training
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import load_preset

WAYS = {
    "as in notebook 3": (),
    "checkpointed": ("checkpointed",),
    "LoRA": ("lora",),
    "LoRA, checkpointed": ("lora", "checkpointed"),
    "LoRA, no critic of its own, checkpointed": ("lora", "shared", "checkpointed"),
}


def two_updates(changes: tuple[str, ...]) -> None:
    """Makes them, and prints what they took."""
    prepare()
    preset = replace(load_preset(), ppo_updates=2, ppo_critic_updates=0)
    preset = replace(preset, gradient_checkpointing="checkpointed" in changes)
    run = notebook_3(preset)
    policy = models.PolicyWithValueHead(run.sft) if "shared" in changes else run.policy
    for part in (policy.lm, policy.critic) if "lora" in changes else ():
        if part is not None:
            part.add_adapter(peft.LoraConfig(r=16, target_modules="all-linear"))
    numbers = [sum(p.numel() for p in m.parameters()) for m in (policy, run.reference, run.reward_model)]
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)

    def prompts_of(update):
        return run.prompts("test", preset.ppo_batch, update)

    with TemporaryDirectory() as folder, patch.object(training.Run, "_save"):
        steps = loops.new_run(Path(folder), policy, preset, "policy", steps=2, lr=preset.ppo_lr)
        loops.align(steps, preset, policy, run.reference, run.reward, prompts_of, run.tokenizer)
    workload.report(steps.metrics["seconds"].iloc[-1], computed=4 * (sum(numbers) + 3 * trained) / 2**30)


if __name__ == "__main__":
    if sys.argv[1:]:
        two_updates(WAYS[sys.argv[1]])
    else:
        rows = []
        for way in WAYS:
            found = workload.measured(sys.executable, __file__, way)
            rows.append((way, *(f"{found[name]:.1f}" for name in ("computed", "peak_gib"))))
            print(*rows[-1], flush=True)
        print(workload.markdown(("way", "computed, GiB", "peak, GiB"), *rows))
