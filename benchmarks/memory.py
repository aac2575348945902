"""What an update of PPO holds in memory, and what checkpointing, accumulation, LoRA and a shared trunk save: a table.

    RLHF_PRESET=smollm2 python benchmarks/memory.py     # after make smollm2; bf16 is slow where it is emulated

Each way is a process of its own, which makes two updates as notebook 3 does, with the base model in the places of all
four: it ends no response, so that each has the most tokens that it may have. "Computed" counts weights, gradients and
Adam's moments, 4 bytes a number: what no batch size makes smaller.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import peft
import torch
import workload

from rlhf_helpers import data, models, training
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import load_preset

WAYS = {
    "as it is": (),
    "checkpointed": ("checkpointed",),
    "four rows at once": ("parts",),
    "LoRA": ("lora",),
    "LoRA, checkpointed": ("lora", "checkpointed"),
    "LoRA, checkpointed, four rows at once": ("lora", "checkpointed", "parts"),
    "LoRA, no critic of its own, checkpointed": ("lora", "shared", "checkpointed"),
}


def two_updates(changes: tuple[str, ...], precision: str) -> None:
    """Makes them, and prints what they took."""
    prepare()
    preset = replace(load_preset(), ppo_updates=2, ppo_critic_updates=0, precision=precision)
    preset = replace(preset, gradient_checkpointing="checkpointed" in changes)
    preset = replace(preset, rows_at_once=4 if "parts" in changes else None)
    tokenizer, reviews = data.load_tokenizer(preset.model), data.load_sentences(preset.dataset)
    rows = data.encode(reviews["test"]["sentence"], tokenizer)
    reference, reward_model = models.load_lm(preset.model), models.RewardModel(preset.model)
    torch.nn.init.normal_(reward_model.model.score.weight, std=0.02)  # scores that differ
    critic = None if "shared" in changes else reward_model
    policy = models.PolicyWithValueHead(preset.model, critic=critic)
    for model in (models.freeze(reference), models.freeze(reward_model), policy):
        model.to(preset.device)
    for part in (policy.lm, policy.critic) if "lora" in changes else ():
        if part is not None:
            part.add_adapter(peft.LoraConfig(r=16, target_modules="all-linear"))
    numbers = [sum(p.numel() for p in m.parameters()) for m in (policy, reference, reward_model)]
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)

    def prompts_of(update):
        return data.sample_prompts(rows, preset.ppo_batch, preset.ppo_prompt_tokens, update)

    with TemporaryDirectory() as folder, patch.object(training.Run, "_save"):
        steps = loops.new_run(Path(folder), policy, preset, "policy", steps=2, lr=preset.ppo_lr)
        loops.align(steps, preset, policy, reference, reward_model, prompts_of, tokenizer)
    workload.report(steps.metrics["seconds"].iloc[-1], computed=4 * (sum(numbers) + 3 * trained) / 2**30)


if __name__ == "__main__":
    if sys.argv[1:]:
        two_updates(WAYS[sys.argv[1]], sys.argv[2])
    else:
        rows = []
        for way in WAYS:
            fp32, bf16 = (workload.measured(sys.executable, __file__, way, p) for p in ("fp32", "bf16"))
            rows.append((way, *(f"{x:.1f}" for x in (fp32["computed"], fp32["peak_gib"], bf16["peak_gib"]))))
            print(*rows[-1], flush=True)
        print(workload.markdown(("way", "computed, GiB", "peak in fp32, GiB", "in bf16"), *rows))
