"""The real model from PyPI: what `make smollm2` makes is a language model. Its first ratios: notebook 3."""

from pathlib import Path

import pytest
import torch

from rlhf_helpers import data, models
from rlhf_helpers.smollm2 import FOLDER

MADE = Path(__file__).parents[2] / FOLDER


@pytest.mark.skipif(not MADE.exists(), reason=f"{FOLDER} is not there: make smollm2")
def test_it_speaks_english():
    tokenizer, lm = data.load_tokenizer(str(MADE)), models.load_lm(str(MADE))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(lm(ids).logits[0, -1].argmax()) == " Paris"
