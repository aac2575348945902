"""bfloat16 learns what fp32 learns."""

from dataclasses import replace

import pytest
import torch
from datasets import load_dataset
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import data, models
from rlhf_helpers.beyond import loops
from rlhf_helpers.presets import load_preset


def learning_curve(folder, stage, precision, order):
    """Losses of one pass over some of tiny's reviews, from the base model."""
    preset = replace(load_preset("tiny"), precision=precision)
    n, lr = (1920, preset.sft_lr) if stage == "sft" else (3840, preset.rm_lr)
    tokenizer, reviews = data.load_tokenizer(preset.model), load_dataset(preset.dataset, split="train")
    rows = data.encode(reviews["sentence"][:n], tokenizer, preset.max_tokens)
    labels = torch.tensor(reviews["label"][:n], dtype=torch.float32)
    lm = models.load_lm(preset.model)
    model = lm if stage == "sft" else models.RewardModel(lm)
    batches = data.length_bucketed([len(row) for row in rows], 32, seed=order)

    def loss_of(batch):
        ids, mask = data.pad([rows[i] for i in batch], tokenizer.pad_token_id)
        if stage == "sft":
            return model(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {}
        return binary_cross_entropy_with_logits(model(ids, mask), labels[batch]), {}

    run = loops.new_run(folder / f"{precision} {order}", model, preset, stage, steps=len(batches), lr=lr)
    loops.fit(run, preset, batches, loss_of)
    return run.metrics["loss"]


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_bf16_learns_as_fp32_does(tmp_path, stage):
    """Equal data: the curves differ by less than half of what another order of the data does, and end as low."""
    fp32, bf16, other = (learning_curve(tmp_path, stage, *how) for how in (("fp32", 0), ("bf16", 0), ("fp32", 1)))
    ends = [curve.tail(20).mean() for curve in (fp32, bf16, other)]
    assert (fp32 - bf16).abs().mean() < 0.5 * (fp32 - other).abs().mean()
    assert abs(ends[0] - ends[1]) < max(0.02, abs(ends[0] - ends[2])) and ends[0] < 0.8 * fp32[0]
