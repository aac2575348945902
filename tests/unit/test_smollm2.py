"""The real model from PyPI: what `make smollm2` makes is a language model. Its first ratios: notebook 3."""

from pathlib import Path

import pytest
import torch

from rlhf_helpers import data, models, presets
from rlhf_helpers.smollm2 import FOLDER

ROOT = Path(__file__).parents[2]
MADE = (ROOT / FOLDER / "model.safetensors").exists()


@pytest.mark.skipif(not MADE, reason=f"{FOLDER} is not there: make smollm2")
def test_it_speaks_english():
    tokenizer, lm = data.load_tokenizer(str(ROOT / FOLDER)), models.load_lm(str(ROOT / FOLDER))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(lm(ids).logits[0, -1].argmax()) == " Paris"


def test_the_preset_prefers_it_and_says_so(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    expected = str(FOLDER) if (ROOT / FOLDER).exists() else "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert presets.load_preset("smollm2").model == expected and f"model {expected}" in capsys.readouterr().out
