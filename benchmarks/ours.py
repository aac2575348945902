"""A contender of `speed.py`: the cells of notebooks 1 to 3 at the preset `gpt2`.

python benchmarks/ours.py sft|rm|rollouts|ppo
"""

import math
import sys
from functools import partial
from tempfile import TemporaryDirectory, mkdtemp

import torch
import workload
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import data, models, ppo, rollouts, training
from rlhf_helpers.environment import keep_freed_memory
from rlhf_helpers.presets import load_preset

PRESET = load_preset("gpt2")


def language_model():
    """The weights of the others, loaded as the notebooks load theirs."""
    with TemporaryDirectory() as folder:
        workload.language_model().save_pretrained(folder)
        return models.load_lm(folder).to(PRESET.device)


def new_run(model, optimizer) -> training.Run:
    """A run whose steps are called one by one, without checkpoints between them."""
    scheduler = training.linear_schedule(optimizer, 1)
    run = training.Run(mkdtemp(), model, optimizer, scheduler, steps=1, seed=0, settings={})
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
    longest = max(batches, key=lambda batch: max(len(rows[i]) for i in batch))
    workload.measure(partial(train, batches), partial(train, [longest] * workload.WARM_UP))


def sft() -> None:
    lm = language_model()
    one_pass(lm, lambda ids, mask, _: lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss)


def rm() -> None:
    model = models.RewardModel(language_model()).to(PRESET.device)
    one_pass(model, lambda ids, mask, labels: binary_cross_entropy_with_logits(model(ids, mask), labels))


def rollouts_() -> None:
    tokenizer, prompts, policy = workload.tokenizer(), workload.prompts(), language_model()

    def sample():
        with training.autocast(PRESET):
            rollouts.sample_rollouts(policy, prompts, tokenizer, workload.NEW_TOKENS)

    workload.measure(sample, sample)


def ppo_update():
    """A policy, and the function (prompts, new tokens) -> rollouts that runs one update of it."""
    tokenizer = workload.tokenizer()
    reference = models.freeze(language_model())
    reward_model = models.freeze(models.RewardModel(language_model()).to(PRESET.device))
    policy = models.PolicyWithValueHead(language_model(), critic=reward_model).to(PRESET.device)
    optimizer = torch.optim.Adam(policy.parameters(), lr=workload.LEARNING_RATE, eps=1e-5, fused=True)
    run = new_run(policy, optimizer)

    def update(prompts, new_tokens):
        with training.autocast(PRESET):
            batch = rollouts.sample_rollouts(policy, prompts, tokenizer, new_tokens)
            experience = ppo.collect_experience(
                policy, reference, reward_model, batch,
                beta=0.1, no_eos_score=-3.0, rows_at_once=workload.MINIBATCH,
            )  # fmt: skip
            stats = ppo.ppo_update(
                policy, experience, run.step, epochs=workload.EPOCHS, minibatch=workload.MINIBATCH, max_kl=math.inf
            )
        assert abs(stats["first_ratio_max"] - 1) < 1e-4, f"the first ratio is {stats['first_ratio_max']}"
        return batch

    return policy, update


def ppo_() -> None:
    _, update = ppo_update()
    one = partial(update, workload.prompts(), workload.NEW_TOKENS)
    workload.measure(one, one)


def main(stage: str) -> None:
    keep_freed_memory()
    torch.set_default_device(PRESET.device)
    {"sft": sft, "rm": rm, "rollouts": rollouts_, "ppo": ppo_}[stage]()


if __name__ == "__main__":
    main(sys.argv[1])
