"""Small models and tokenizers that every test can afford."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_helpers.environment import quiet

quiet()
WORDS = ["<eos>", *"the film plot is was very good bad not but and dull bright a of it . ,".split()]


@pytest.fixture(scope="session")
def tokenizer():
    """Word-level, and padding is end-of-text, as with GPT-2."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<eos>")


@pytest.fixture
def lm():
    """A random GPT-2 with dropout in its configuration, so that dropout left on is caught."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def prompts():
    """Ragged on purpose."""
    return [[1, 2], [1, 3, 4, 6], [15], [16, 4, 8, 6, 9, 1, 2], [2, 4]]
