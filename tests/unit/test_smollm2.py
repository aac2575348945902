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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_1(model, precision):
    """Of every token of the first minibatch, and with the recorded log-probabilities within rounding."""
    tokenizer, policy = data.load_tokenizer(model), models.PolicyWithValueHead(model)
    preset = replace(presets.load_preset("tiny"), precision=precision)
    prompts = data.encode(["the film is", "it", "a very well-made , funny", "one of the"], tokenizer, end=False)
    torch.manual_seed(0)
    with training.autocast(preset):
        rollouts = sample_rollouts(policy, prompts, tokenizer, 12)
        e = ppo.collect_experience(
            policy,
            policy.lm,
            lambda ids, mask: torch.zeros(len(ids)),
            rollouts,
            beta=0.0,
            no_eos_score=0.0,
            rows_at_once=2,
        )
        stats = ppo.ppo_update(policy, e, lambda loss: 0.0, epochs=1, minibatch=2, max_kl=1e9)
    assert abs(stats["first_ratio_max"] - 1) < 1e-4
    apart = (rollouts.logprobs - e.logprobs)[rollouts.response_mask == 1].abs().max()
    assert apart < (1e-3 if precision == "fp32" else 0.3)


def test_the_preset_prefers_it_and_says_so(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RLHF_MODEL", raising=False)
    preset = presets.load_preset("smollm2")
    expected = str(FOLDER) if os.path.exists(FOLDER) else "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert preset.model == expected and f"model {expected}" in capsys.readouterr().out
