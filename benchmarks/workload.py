"""The work that every contender of `speed.py` does, at GPT-2's size (124 M parameters); tables of runs.

Imports only what TRL's own environment has, too. Weights are random: no speed depends on them. SFT and reward
model are one pass over 512 phrases of SST-2 in batches of 32, after two steps that are not counted. A PPO
update is 32 prompts of 2 to 7 tokens, 16 new tokens each (end-of-text has one chance in 50,257, so all do the
same work), 4 epochs in minibatches of 16; its rollouts are also timed alone.
"""

import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version

import pandas as pd
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

END = 50256  # GPT-2's end-of-text
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, (2, 7), 16
EPOCHS, MINIBATCH = 4, 16
PHRASES, BATCH, WARM_UP = 512, 32, 2  # the first step also makes the optimiser's state
LEARNING_RATE = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tokenizer(side: str = "right"):
    name, end = "openai-community/gpt2", "<|endoftext|>"
    return AutoTokenizer.from_pretrained(name, pad_token=end, padding_side=side)


def model(kind=GPT2LMHeadModel):
    """A language model, or with `GPT2ForSequenceClassification` transformers' own reward model."""
    torch.manual_seed(0)
    return kind(GPT2Config(pad_token_id=END, num_labels=1)).to(DEVICE)


def prompts(n: int = PROMPTS) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(END) for _ in range(rng.randint(*PROMPT_TOKENS))] for _ in range(n)]


@cache
def phrases() -> tuple[list[list[int]], torch.Tensor]:
    """Token ids with end-of-text, and labels (PHRASES,) 0 or 1."""
    rows = load_dataset("stanfordnlp/sst2", split="train").shuffle(seed=0).select(range(PHRASES))
    ids = tokenizer()([sentence.strip() for sentence in rows["sentence"]])["input_ids"]
    return [row + [END] for row in ids], torch.tensor(rows["label"], dtype=torch.float32)


def size(stage: str) -> dict:
    """Tokens learned from, or sampled, without padding; and the arithmetic they need, less attention's."""
    trunk, head = 12 * 12 * 768**2, 768 * 50257  # weights that meet every token, and every predicted token
    if stage in ("sft", "rm"):
        n = sum(map(len, phrases()[0]))
        return {"tokens": n, "flops": 6 * n * (trunk + (head if stage == "sft" else 0))}
    n = PROMPTS * NEW_TOKENS
    everything = n + sum(map(len, prompts()))
    once = 2 * (everything * trunk + n * head)  # one pass forwards; backwards is twice that
    update = 3 * once + 2 * everything * trunk + EPOCHS * 3 * once
    return {"tokens": n, "flops": once if stage == "rollouts" else update}


def clock() -> float:
    """Now, in seconds, once the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work) -> float:
    start = clock()
    work()
    return clock() - start


def machine() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities()['cpu_name']}, {os.cpu_count()} cores"


def report(seconds: float, **more: float) -> None:
    """Prints JSON: seconds, peak memory (the process's, or the GPU's), FLOP per second of a large product, and more."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated()
    a, b = torch.randn(2, 2048, 2048, device=DEVICE).bfloat16()
    product = 2 * 2048**3 / min(seconds_of(lambda: a @ b) for _ in range(10))
    used = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl") if name in sys.modules]
    versions = ", ".join([f"python {platform.python_version()}", *used])
    found = {"seconds": seconds, "peak_gib": peak / 2**30, "matrix_product": product}
    print(json.dumps(found | more | {"machine": machine(), "versions": versions}))


def measured(*command) -> dict:
    """What `report` prints in a process of its own, which finds nobody's memory or caches."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def collect(path, jobs) -> pd.DataFrame:
    """The table at `path`, with a row added for each job, (what it is, what measures it), that it lacks.

    It is read anew for each job, so that several processes can fill it.
    """

    def rows() -> pd.DataFrame:
        return pd.read_csv(path, float_precision="round_trip") if path.exists() else pd.DataFrame()

    for what, measure in jobs:
        if not any(what.items() <= row.items() for row in rows().to_dict("records")):
            print(*what.values(), flush=True)
            row = pd.DataFrame([what | measure()])
            pd.concat([rows(), row]).to_csv(path, index=False)
    return rows()


STUDENT = {2: 12.7062, 3: 4.30265, 4: 3.18245, 5: 2.77645}  # for 95 %, by the number of seeds


def change(found: pd.Series, correct: pd.Series) -> str:
    """The mean difference of two series by seed, and its 95 % interval; nothing where they share no two seeds."""
    differences = (found - correct).dropna()
    if len(differences) < 2:
        return ""
    mean, half = differences.mean(), STUDENT[len(differences)] * differences.sem()
    return f" ({mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}])"


def compared(runs: pd.DataFrame, rows, shown: dict[str, str], correct: str, digits=None, alone=()) -> str:
    """A table of each row's means over the seeds, and how they differ from the row `correct` of the same seeds.

    The column that names the rows comes first in `runs`. Where `digits` are given, or a row stands `alone`, nothing is
    compared.
    """
    runs, digits = runs.set_index([runs.columns[0], "seed"]), digits or {}
    shown, lines = {name: title for name, title in shown.items() if name in runs}, []
    for row in (row for row in rows if row in runs.index):
        lines.append([row])
        for name in shown:
            found, compare = runs.loc[row, name], row not in (correct, *alone) and name not in digits
            difference = change(found, runs.loc[correct, name]) if compare else ""
            lines[-1].append(f"{found.mean():,.{digits.get(name, 2)}f}{difference}")
    return markdown([runs.index.names[0], *shown.values()], *lines)


def markdown(head, *rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
