"""Two contenders of `speed.py`: the loops of notebooks 1 to 3 at the preset `gpt2`, and the same in plain.

python benchmarks/ours.py sft|rm|rollouts|ppo              # this series
python benchmarks/ours.py sft|rm|rollouts|ppo bfloat16     # without that optimisation, or several of OFF
"""

import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import workload
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from rlhf_helpers import data, models, training
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import keep_freed_memory
from rlhf_helpers.presets import load_preset
from rlhf_helpers.rollouts import Rollouts, sample_rollouts

PRESET = replace(load_preset("gpt2"), device=workload.DEVICE, ppo_epochs=workload.EPOCHS, ppo_max_update_kl=9)
OWN_CRITIC = True


def language_model():
    """The others' weights, with the attention that the notebooks' models have."""
    lm = workload.model().eval()
    lm.set_attn_implementation(models.ATTENTION)
    return lm


def logged(loop, model, stage: str, steps: int):
    """What `loop(run)` logs of each step; its run saves nothing."""
    with TemporaryDirectory() as folder, patch.object(training.Run, "_save"):
        run = loops.new_run(Path(folder), model, PRESET, stage, steps=steps, lr=workload.LEARNING_RATE)
        loop(run)
        return run.metrics


def one_pass(stage: str) -> float:
    """Seconds of one pass over the phrases."""
    rows, labels = workload.phrases()
    lengths = [len(row) for row in rows]
    batches = data.length_bucketed(lengths, workload.BATCH, seed=0)
    longest = max(batches, key=lambda batch: max(lengths[i] for i in batch))
    batches = [longest] * workload.WARM_UP + batches
    model = language_model() if stage == "sft" else models.RewardModel(language_model())

    def loss_of(batch):
        ids, mask = data.pad([rows[i] for i in batch], workload.END)
        if stage == "rm":
            return binary_cross_entropy_with_logits(model(ids, mask), labels[batch]), {}
        return model(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {}

    metrics = logged(lambda run: loops.fit(run, PRESET, batches, loss_of), model, "sft", len(batches))
    return metrics["seconds"][workload.WARM_UP :].sum()


def rollouts() -> float:
    policy, prompts, tokenizer = language_model(), workload.prompts(), workload.tokenizer()

    @training.autocast(PRESET)
    def sample():
        loops.sample_rollouts(policy, prompts, tokenizer, workload.NEW_TOKENS)

    sample()
    return workload.seconds_of(sample)


def update() -> float:
    """Seconds of an update of PPO, after one to warm up."""
    preset = replace(PRESET, ppo_new_tokens=workload.NEW_TOKENS, ppo_minibatch=workload.MINIBATCH)
    reference, reward_model = map(models.freeze, (language_model(), models.RewardModel(language_model())))
    policy = models.PolicyWithValueHead(language_model(), critic=reward_model if OWN_CRITIC else None)
    prompts, tokenizer = workload.prompts(), workload.tokenizer()

    def loop(run):
        loops.align(run, preset, policy, reference, reward_model, lambda update: prompts, tokenizer)

    return logged(loop, policy, "policy", 2)["seconds"][1]


def random_batches(lengths: list[int], batch: int, seed: int) -> list[list[int]]:
    """Row numbers of one epoch, whatever their lengths."""
    order = random.Random(seed).sample(range(len(lengths)), len(lengths))
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def one_by_one(policy, prompts, *settings) -> Rollouts:
    parts = [sample_rollouts(policy, [prompt], *settings) for prompt in prompts]
    columns = zip(*[(p.response_ids[0], p.response_mask[0], p.logprobs[0], p.ended) for p in parts])
    responses = [pad_sequence(column, batch_first=True) for column in columns]
    return Rollouts(*data.pad(prompts, workload.END, side="left"), *responses[:3], responses[3][:, 0])


THIS = sys.modules[__name__]
OFF = {  # the stages that an optimisation speaks of, and what is put in its place: object, name, value
    "nothing": ("sft rm ppo", THIS, "PRESET", PRESET),
    "bfloat16": ("sft rm ppo", THIS, "PRESET", replace(PRESET, precision="fp32")),
    "freed_memory_kept": ("sft rm ppo", THIS, "keep_freed_memory", lambda: None),
    "attention_in_fp32": ("sft rm ppo", models, "ATTENTION", "sdpa"),
    # neither is faster: what the exact ratio and the forecast cost
    "heads_in_fp32": ("ppo", models, "in_fp32", lambda head, hidden: head(hidden).float()),
    "critic_of_its_own": ("ppo", THIS, "OWN_CRITIC", False),
    "batches_of_like_length": ("sft rm", data, "length_bucketed", random_batches),
    "no_dropout_in_the_reward_model": ("rm", models, "disable_dropout", lambda model: model),
    "prompts_sampled_together": ("ppo", loops, "sample_rollouts", one_by_one),
    "minibatches_of_16": ("ppo", workload, "MINIBATCH", 4),
}


if __name__ == "__main__":
    _, stage, *switched_off = sys.argv
    for name in switched_off:
        setattr(*OFF[name][1:])
    keep_freed_memory()
    torch.set_default_device(PRESET.device)
    measure = {"rollouts": rollouts, "ppo": update}.get(stage) or partial(one_pass, stage)
    workload.report(measure())
