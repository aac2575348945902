"""The two loops of the series on a small model: what `test_nothing_lost.py` kills."""

import io
import random
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_helpers import data
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import quiet
from rlhf_helpers.models import PolicyWithValueHead, freeze
from rlhf_helpers.presets import Preset
from rlhf_helpers.training import Run, linear_schedule

quiet()
STEPS = {"sft": 60, "policy": 40}
PRESET = Preset(
    name="small", model="none", dataset="none", judge="grammar", ppo_batch=6, ppo_minibatch=3, ppo_new_tokens=5,
    ppo_critic_updates=0, ppo_no_eos_score=1.5,  # else it learns to end at once, and health.py stops it
)  # fmt: skip
NUMBERS = random.Random(0)
ROWS = [[NUMBERS.randrange(1, 50) for _ in range(NUMBERS.randrange(3, 12))] + [0] for _ in range(256)]


class Tokenizer:
    pad_token_id = eos_token_id = 0


def small_lm(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=50, n_positions=32, n_embd=64, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def train(stage: str, folder: Path, reached) -> None:
    """Runs a training to its end, or on to its end, in a process of its own; `reached.value` is its step."""
    torch.set_num_threads(1)
    sys.stdout = io.StringIO()  # many of them are started
    lm, steps = small_lm(), STEPS[stage]
    model = lm if stage == "sft" else PolicyWithValueHead(lm)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler, settings = linear_schedule(optimizer, steps), {"stage": stage}
    run = Run(folder, model, optimizer, scheduler, steps=steps, seed=1, settings=settings, checkpoints=steps // 2)

    def loss_of(batch):  # with dropout: random numbers must come back as well
        reached.value = run.row["step"]
        ids, mask = data.pad([ROWS[i] for i in batch], 0)
        return lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {}

    def prompts_of(update):
        reached.value = update
        return data.sample_prompts(ROWS, PRESET.ppo_batch, (2, 4), seed=update)

    if stage == "sft":
        batches = data.length_bucketed([len(row) for row in ROWS], 4, seed=0)
        loops.fit(run, PRESET, batches, loss_of, lambda: {"weight": next(lm.parameters()).sum().item()})
    else:
        reward = lambda input_ids, attention_mask: (input_ids * attention_mask).sum(1) / 100  # noqa: E731
        loops.align(run, PRESET, model, freeze(small_lm()), reward, prompts_of, Tokenizer)
