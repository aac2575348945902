"""The work that every contender of `speed.py` does, at GPT-2's size (124 M parameters).

Needs torch and transformers only, so that TRL's own environment can import it. Weights are random:
no speed depends on them. A PPO update is 32 prompts of 2 to 7 tokens, 16 new tokens each (end-of-text
has one chance in 50,257, so all do the same work), 4 epochs in minibatches of 16; its rollouts are
also timed alone. Supervised and reward-model training are one pass over 512 phrases of SST-2 in
batches of 32, after two steps that are not counted.
"""

import json
import os
import platform
import random
import resource
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata

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
WARM_UP = 2  # steps: the first also makes the optimiser's state
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRUNK, HEAD = 12 * 12 * 768**2, 768 * 50257  # weights that every token, or every predicted token, is multiplied with


def tokenizer() -> GPT2TokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def language_model(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(pad_token_id=END)).to(DEVICE)


def reward_model(seed: int = 0) -> GPT2ForSequenceClassification:
    """transformers' own, for the contenders that have none: a logit a row."""
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(GPT2Config(pad_token_id=END, num_labels=1)).to(DEVICE)


def prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(END) for _ in range(rng.randint(*PROMPT_TOKENS))] for _ in range(PROMPTS)]


@cache
def phrases() -> tuple[list[list[int]], torch.Tensor]:
    """Token ids with end-of-text, and labels (PHRASES,) 0 or 1."""
    rows = load_dataset(DATASET, split="train").shuffle(seed=0).select(range(PHRASES))
    end = tokenizer()
    ids = [end(sentence.strip())["input_ids"] + [end.eos_token_id] for sentence in rows["sentence"]]
    return ids, torch.tensor(rows["label"], dtype=torch.float32)


def random_batches(lengths: list[int], batch: int, seed: int) -> list[list[int]]:
    """What `length_bucketed` stands in for: row indices of one epoch, whatever their lengths."""
    order = random.Random(seed).sample(range(len(lengths)), len(lengths))
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def tokens(stage: str) -> int:
    """Tokens that a stage learns from; for rollouts, those it samples. Padding is not counted."""
    return PROMPTS * NEW_TOKENS if stage in ("rollouts", "ppo") else sum(map(len, phrases()[0]))


def flops(stage: str) -> float:
    """Multiplications and additions that a stage cannot do without: attention, a few per cent, is left out."""
    n = tokens(stage)
    if stage in ("sft", "rm"):
        return 6 * n * (TRUNK + (HEAD if stage == "sft" else 0))
    everything = n + sum(map(len, prompts()))
    once = 2 * (everything * TRUNK + n * HEAD)  # one pass forwards; backwards is twice that
    return once if stage == "rollouts" else 3 * once + 2 * everything * TRUNK + EPOCHS * 3 * once


def machine() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities()['cpu_name']}, {os.cpu_count()} cores"


def measure(work: Callable[[], None], warm_up: Callable[[], None]) -> None:
    """Runs `warm_up`, then `work`, and reports."""
    warm_up()
    start = clock()
    work()
    report(clock() - start)


def clock() -> float:
    """Now, in seconds, once the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def report(seconds: float) -> None:
    """Prints a line of JSON: seconds, peak memory in GiB (the process's, or the GPU's), and on what.

    `matrix_product` is the FLOP a second that a large bfloat16 product reaches here and now.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated()
    there = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    versions = [f"{name} {there[name]}" for name in ("torch", "transformers", "trl") if name in there]
    print(
        json.dumps({
            "seconds": seconds,
            "peak_gib": peak / 2**30,
            "matrix_product": matrix_product(),
            "machine": machine(),
            "versions": f"python {platform.python_version()}, {', '.join(versions)}",
        })
    )  # fmt: skip


def matrix_product(n: int = 2048) -> float:
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    seconds = []
    for _ in range(10):
        start = clock()
        a @ b
        seconds.append(clock() - start)
    return 2 * n**3 / min(seconds)
