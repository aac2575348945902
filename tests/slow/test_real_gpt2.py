"""GPT-2 and SST-2 as the Hub has them today, twenty updates of each loop: the weekly workflow asks for it."""

import os
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from rlhf_helpers import data
from rlhf_helpers.beyond.loops import align, fit, new_run
from rlhf_helpers.models import PolicyWithValueHead, freeze, load_lm
from rlhf_helpers.presets import load_preset

UPDATES = 20


@pytest.mark.skipif(not os.environ.get("RLHF_TEST_HUB"), reason="downloads 600 MB from the Hub: set RLHF_TEST_HUB=1")
def test_twenty_updates(tmp_path):
    preset = replace(load_preset("gpt2"), artifacts=tmp_path, ppo_minibatch=4, ppo_epochs=1, ppo_new_tokens=12)
    tokenizer, lm = data.load_tokenizer(preset.model), load_lm(preset.model)
    sentences = data.whole_sentences(data.load_sentences(preset.dataset)["train"]["sentence"])
    rows = data.encode(sentences[: 8 * UPDATES], tokenizer, preset.max_tokens)
    batches = [data.pad(rows[i::UPDATES], tokenizer.pad_token_id) for i in range(UPDATES)]

    def loss_of(batch):
        ids, mask = batch
        return lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss, {}

    sft = new_run(tmp_path / "sft", lm, preset, "sft", steps=UPDATES, lr=5e-5)
    fit(sft, preset, batches, loss_of)
    loss = sft.metrics["loss"]
    assert 3 < loss[0] < 8 and loss[-5:].mean() < loss[:5].mean(), "pretrained, and learning"

    policy, reference = PolicyWithValueHead(deepcopy(lm)), freeze(lm)
    ppo = new_run(tmp_path / "policy", policy, preset, "policy", steps=UPDATES, lr=1e-5)
    align(
        ppo, preset, policy, reference, lambda ids, mask: mask.sum(1) / 10 - 1,
        lambda update: data.sample_prompts(rows, 8, preset.ppo_prompt_tokens, seed=update), tokenizer,
    )  # fmt: skip
    assert len(ppo.metrics) == UPDATES and np.isfinite(ppo.metrics).all(axis=None)
