"""A contender of `speed.py`: the cells of notebooks 1 to 3 at the preset `gpt2`.

python benchmarks/ours.py sft|rm|ppo
"""

import sys
from dataclasses import replace
from functools import partial
from tempfile import mkdtemp

import torch
import workload
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import data, models, ppo, rollouts, training
from rlhf_helpers.presets import load_preset

PRESET = replace(load_preset("gpt2"), device="cpu")


def new_run(model, optimizer) -> training.Run:
    """A run whose steps are called one by one, without checkpoints between them."""
    run = training.Run(mkdtemp(), model, optimizer, steps=1, seed=0, settings={})
    run.row = {"step": 0}
    return run


def one_pass(model, loss_on) -> None:
    """Length-bucketed batches of the phrases; `loss_on(ids, mask, labels)` is what they are trained on."""
    rows, labels = workload.phrases()
    run = new_run(model, torch.optim.AdamW(model.parameters(), lr=workload.LEARNING_RATE, fused=True))
    model.train()

    def train(batches):
        for batch in batches:
            ids, mask = data.pad([rows[i] for i in batch], workload.END)
            with training.autocast(PRESET):
                loss = loss_on(ids, mask, labels[batch])
            run.step(loss)

    batches = data.length_bucketed([len(row) for row in rows], workload.BATCH, seed=0)
    workload.measure(partial(train, batches), partial(train, batches[:1]))


def sft() -> None:
    lm = workload.language_model()
    one_pass(lm, lambda ids, mask, _: lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss)


def rm() -> None:
    model = models.RewardModel(workload.language_model())
    one_pass(model, lambda ids, mask, labels: binary_cross_entropy_with_logits(model(ids, mask), labels))


def ppo_() -> None:
    tokenizer, prompts = workload.tokenizer(), workload.prompts()
    policy = models.PolicyWithValueHead(workload.language_model())
    reference = models.freeze(workload.language_model())
    reward_model = models.freeze(models.RewardModel(workload.language_model()))
    optimizer = torch.optim.Adam(policy.parameters(), lr=workload.LEARNING_RATE, eps=1e-5, fused=True)
    run = new_run(policy, optimizer)

    def update():
        with training.autocast(PRESET):
            batch = rollouts.sample_rollouts(policy, prompts, tokenizer, workload.NEW_TOKENS)
            experience = ppo.collect_experience(
                policy, reference, lambda r: reward_model(r.input_ids, r.attention_mask), batch,
                beta=0.1, no_eos_score=-3.0, rows_at_once=workload.PROMPTS,
            )  # fmt: skip
            stats = ppo.ppo_update(
                policy, experience, run.step, epochs=workload.EPOCHS, minibatch=workload.MINIBATCH, max_kl=1.0
            )
        assert abs(stats["first_ratio_max"] - 1) < 1e-3, "the first ratio is not 1"

    workload.measure(update, update)


if __name__ == "__main__":
    {"sft": sft, "rm": rm, "ppo": ppo_}[sys.argv[1]]()
