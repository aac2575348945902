"""The three trainings of the series, small, in the loops of the notebooks: what `test_nothing_lost.py` kills."""

import io
import random
import sys
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_helpers import data
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import quiet
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, freeze
from rlhf_helpers.presets import Preset
from rlhf_helpers.training import Run, linear_schedule

quiet()
STEPS = {"sft": 60, "reward_model": 60, "policy": 40}
PRESET = Preset(
    name="small", model="none", dataset="none", judge="grammar", ppo_batch=6, ppo_minibatch=3, ppo_new_tokens=5,
    ppo_critic_updates=0,
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


def run_of(folder: Path, stage: str, model: torch.nn.Module) -> Run:
    optimizer, steps = torch.optim.Adam(model.parameters(), lr=3e-3), STEPS[stage]
    settings, scheduler = {"stage": stage}, linear_schedule(optimizer, steps)
    return Run(folder, model, optimizer, scheduler, steps=steps, seed=1, settings=settings, checkpoints=steps // 2)


def train(stage: str, folder: Path, reached) -> None:
    """Runs a training to its end, or on to its end, in a process of its own; `reached.value` is its step."""
    torch.set_num_threads(1)
    sys.stdout = io.StringIO()  # many of them are started
    lm = small_lm()
    if stage == "policy":
        reference, reward_model = freeze(small_lm()), freeze(RewardModel(lm))
        torch.nn.init.normal_(reward_model.model.score.weight)
        policy = PolicyWithValueHead(lm)

        def prompts_of(update):
            reached.value = update
            return data.sample_prompts(ROWS, PRESET.ppo_batch, (2, 4), seed=update)

        run = run_of(folder, stage, policy)
        loops.align(run, PRESET, policy, reference, reward_model, prompts_of, Tokenizer)
        return

    model = RewardModel(lm) if stage == "reward_model" else lm  # with dropout: random numbers must come back as well
    run = run_of(folder, stage, model)

    def loss_of(batch):
        reached.value = run.row["step"]
        ids, mask = data.pad([ROWS[i] for i in batch], 0)
        if stage == "sft":
            return lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {}
        return binary_cross_entropy_with_logits(model(ids, mask), torch.tensor(batch) % 2.0), {}

    batches = data.length_bucketed([len(row) for row in ROWS], 4, seed=0)
    loops.fit(run, PRESET, batches, loss_of, lambda: {"weight": next(run.model.parameters()).sum().item()})
