"""The work that every contender of `speed.py` does, at GPT-2's size (124 M parameters).

Needs torch and transformers only, so that TRL's own environment can import it. Weights are random:
no speed depends on them. A PPO update is 32 prompts of 2 to 7 tokens, 16 new tokens each (end-of-text
has one chance in 50,257, so all do the same work), 4 epochs in minibatches of 16. Supervised and
reward-model training are one pass over 512 phrases of SST-2 in batches of 32.
"""

import json
import random
import resource
import time
from collections.abc import Callable

import torch
from datasets import load_dataset
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
)

TOKENIZER, DATASET = "openai-community/gpt2", "stanfordnlp/sst2"
END = 50256  # GPT-2's end-of-text
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, (2, 7), 16
EPOCHS, MINIBATCH = 4, 16
PHRASES, BATCH = 512, 32
LEARNING_RATE = 1e-5


def tokenizer() -> GPT2TokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def language_model(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(pad_token_id=END))


def reward_model(seed: int = 0) -> GPT2ForSequenceClassification:
    """transformers' own, for the contenders that have none: a logit a row."""
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(GPT2Config(pad_token_id=END, num_labels=1))


def prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(END) for _ in range(rng.randint(*PROMPT_TOKENS))] for _ in range(PROMPTS)]


def phrases() -> tuple[list[list[int]], torch.Tensor]:
    """Token ids with end-of-text, and labels (PHRASES,) 0 or 1."""
    rows = load_dataset(DATASET, split="train").shuffle(seed=0).select(range(PHRASES))
    end = tokenizer()
    ids = [end(sentence.strip())["input_ids"] + [end.eos_token_id] for sentence in rows["sentence"]]
    return ids, torch.tensor(rows["label"], dtype=torch.float32)


def measure(work: Callable[[], None], warm_up: Callable[[], None]) -> None:
    """Runs `warm_up`, then `work`, and reports."""
    warm_up()
    start = time.perf_counter()
    work()
    report(time.perf_counter() - start)


def report(seconds: float) -> None:
    """Prints a line of JSON: the seconds, and the peak memory of this process in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))
