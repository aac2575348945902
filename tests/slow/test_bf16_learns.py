"""bfloat16 learns what fp32 learns."""

from dataclasses import replace

import pytest
import torch
from datasets import load_dataset
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import data, models
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import Run, autocast, linear_schedule


def learning_curve(folder, stage, precision, order):
    """Losses of one pass over some of tiny's reviews, from the base model."""
    preset = replace(load_preset("tiny"), precision=precision)
    n, lr = (1920, preset.sft_lr) if stage == "sft" else (3840, preset.rm_lr)
    tokenizer, reviews = data.load_tokenizer(preset.model), load_dataset(preset.dataset, split="train")
    rows = data.encode(reviews["sentence"][:n], tokenizer, preset.max_tokens)
    labels = torch.tensor(reviews["label"][:n], dtype=torch.float32)
    lm = models.load_lm(preset.model)
    model = models.RewardModel(lm) if stage == "rm" else lm
    batches = data.length_bucketed([len(row) for row in rows], 32, seed=order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler, name = linear_schedule(optimizer, len(batches)), f"{stage} {precision} {order}"
    run = Run(folder / name, model, optimizer, scheduler, steps=len(batches), seed=0, settings={})
    for step in run:
        ids, mask = data.pad([rows[i] for i in batches[step]], tokenizer.pad_token_id)
        with autocast(preset):
            if stage == "rm":
                loss = binary_cross_entropy_with_logits(model(ids, mask), labels[batches[step]])
            else:
                loss = model(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss
        run.step(loss)
        run.scheduler.step()
        run.log(loss=loss)
    return run.metrics["loss"]


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_bf16_learns_as_fp32_does(tmp_path, stage):
    """Equal data: the curves differ by less than half of what another order of the data does, and end as low."""
    fp32, bf16, other = (learning_curve(tmp_path, stage, *how) for how in (("fp32", 0), ("bf16", 0), ("fp32", 1)))
    ends = [curve.tail(20).mean() for curve in (fp32, bf16, other)]
    assert (fp32 - bf16).abs().mean() < 0.5 * (fp32 - other).abs().mean()
    assert abs(ends[0] - ends[1]) < max(0.02, abs(ends[0] - ends[2])) and ends[0] < 0.8 * fp32[0]
