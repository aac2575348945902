"""The real model from PyPI: what `make smollm2` makes is a language model, and goes through the first step of PPO."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_helpers import data, models, ppo, presets, training
from rlhf_helpers.rollouts import sample_rollouts
from rlhf_helpers.smollm2 import FOLDER

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    if not (ROOT / FOLDER / "model.safetensors").exists():
        pytest.skip(f"{FOLDER} is not there: make smollm2")
    return str(ROOT / FOLDER)


def test_it_speaks_english(model):
    tokenizer, lm = data.load_tokenizer(model), models.load_lm(model)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(lm(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize("precision, bound", [("fp32", 1e-3), ("bf16", 0.3)])
def test_the_first_ratio_is_1(model, precision, bound):
    """Of every token of the first minibatch, and with the recorded log-probabilities within rounding."""
    tokenizer, policy = data.load_tokenizer(model), models.PolicyWithValueHead(model)
    prompts = data.encode(["the film is", "it", "a very well-made , funny", "one of the"], tokenizer, end=False)
    settings = {"beta": 0.0, "no_eos_score": 0.0, "rows_at_once": 2}
    torch.manual_seed(0)
    with training.autocast(replace(presets.load_preset("tiny"), precision=precision)):
        rollouts = sample_rollouts(policy, prompts, tokenizer, 12)
        e = ppo.collect_experience(policy, policy.lm, lambda ids, mask: torch.zeros(len(ids)), rollouts, **settings)
        stats = ppo.ppo_update(policy, e, lambda loss: 0.0, epochs=1, minibatch=2, max_kl=1e9)
    assert abs(stats["first_ratio_max"] - 1) < 1e-4
    assert (rollouts.logprobs - e.logprobs)[rollouts.response_mask == 1].abs().max() < bound


def test_the_preset_prefers_it_and_says_so(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    preset = presets.load_preset("smollm2")
    expected = str(FOLDER) if os.path.exists(FOLDER) else "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert preset.model == expected and f"model {expected}" in capsys.readouterr().out
