"""Sentences -> token ids -> batches: SST-2 or your own data set of the same schema."""

import random
from typing import Any

import torch
from datasets import DatasetDict, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_helpers.checks import loading


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding with end-of-text where it has no padding token.

    Raises ConnectionError if it can't be had, ValueError if it has no end-of-text token.
    """
    with loading(f"the tokenizer of {name_or_path!r}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name_or_path!r} has no end-of-text token, so a policy could never learn "
            "to stop. Add one to it (tokenizer.add_special_tokens({'eos_token': '<|endoftext|>'})), "
            "resize the model's embeddings and save both."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_rows(name_or_path: str, **kwargs) -> DatasetDict:
    """`datasets.load_dataset`, and what goes wrong in it as `loading` says it."""
    with loading(f"the data set {name_or_path!r}"):
        return load_dataset(name_or_path, **kwargs)


def load_sentences(name_or_path: str, seed: int = 0) -> DatasetDict:
    """SST-2 or a data set like it, checked and stripped: `sentence` (str) and `label` (0/1).

    A column `text` is taken for `sentence`. Splits train, validation (held out from training)
    and test (sentences for prompts, labels never read) that are missing are cut from train.
    Raises ConnectionError if it can't be had, ValueError saying what and where if it won't do.
    """
    data = load_rows(name_or_path)
    if "train" not in data:
        raise ValueError(f"{name_or_path}: no split 'train', only {sorted(data)}")
    for split in list(data):
        if "sentence" not in data[split].column_names and "text" in data[split].column_names:
            data[split] = data[split].rename_column("text", "sentence")
        check_sentences(data[split], f"{name_or_path}, split {split!r}", labelled=split != "test")
    for split, share in (("validation", 0.05), ("test", 0.05)):
        if split not in data:
            print(f"{name_or_path} has no split {split!r}: {share:.0%} of train is held out for it")
            parts = data["train"].train_test_split(share, seed=seed)
            data["train"], data[split] = parts["train"], parts["test"]
    # SST-2 ends each phrase with a space, which would be one more token to learn
    return data.map(lambda row: {"sentence": row["sentence"].strip()})


def check_sentences(split, where: str, labelled: bool = True) -> None:
    """Raises ValueError unless `split` has text in `sentence` and both 0 and 1 in `label`."""
    missing = {"sentence", "label"} - set(split.column_names)
    if missing and (labelled or "sentence" in missing):
        raise ValueError(
            f"{where}: no column {sorted(missing)}, only {split.column_names}. "
            "Rename yours to 'sentence' (or 'text') and 'label'."
        )
    for row, sentence in enumerate(split["sentence"]):
        if not isinstance(sentence, str):
            raise ValueError(f"{where}, row {row}: the sentence is {sentence!r}, not text")
        if not sentence.strip():
            raise ValueError(f"{where}, row {row}: the sentence is empty. Remove such rows.")
    if not labelled:
        return
    for row, label in enumerate(split["label"]):
        if label not in (0, 1):
            raise ValueError(f"{where}, row {row}: label {label!r}, but 0 (negative) or 1 (positive) is needed")
    classes = set(split["label"])
    if len(classes) < 2:
        raise ValueError(f"{where}: every label is {classes}; a reward model needs both classes")


def whole_sentences(sentences: list[str]) -> list[str]:
    """Those that end in a full stop, an exclamation or a question mark.

    Four in five training rows of SST-2 are phrases cut out of sentences, and what learns from them
    learns to stop anywhere. Raises ValueError if none is left.
    """
    whole = [sentence for sentence in sentences if sentence.endswith((".", "!", "?"))]
    if not whole:
        raise ValueError(
            f"none of {len(sentences)} training rows ends in . ! or ?, as whole sentences do. For such data, "
            "write `preset = replace(preset, sft_whole_sentences=False)` in the configuration cell."
        )
    return whole


def encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None, *, end: bool = True
) -> list[list[int]]:
    """Token ids of each text, with end-of-text appended unless `end` is False; cut to `max_tokens`."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [(row + [tokenizer.eos_token_id] * end)[:max_tokens] for row in ids]


def decode(rows: list[list[int]] | torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of each row of token ids, without special tokens or spaces around it."""
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def pad(rows: list[list[int]], pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of any length -> input_ids and attention_mask, both (B, longest row), int64."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where], mask[i, where] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def lm_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Labels of the language-model loss, (B, T): the ids, and -100 (ignored) on padding.

    The mask decides, not the id: padding *is* end-of-text, and the one real end-of-text of a
    row must keep its label or the model never learns to stop (transformers#23530).
    """
    return input_ids.masked_fill(attention_mask == 0, -100)


def length_bucketed(lengths: list[int], batch: int, seed: int) -> list[list[int]]:
    """Row indices of one epoch in batches of like length, in random order of batches.

    Sorted by length with ties in random order, so a batch holds hardly any padding (random
    batches of 32 SST-2 phrases are 2.7 times as large as their tokens, and take twice as long:
    benchmarks/gains.py). Same seed, same batches.
    """
    rng = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    rng.shuffle(batches)
    return batches


def sample_prompts(rows: list[list[int]], n: int, tokens: tuple[int, int], seed: int) -> list[list[int]]:
    """`n` prompts: the first `tokens[0]` to `tokens[1]` (uniform) ids of random rows.

    A prompt leaves its row a token to write besides end-of-text, or nothing would be left to decide.
    Raises ValueError if no row is long enough.
    """
    low, high = tokens
    long_enough = [row for row in rows if len(row) >= low + 2]
    if not long_enough:
        raise ValueError(f"no sentence has {low + 2} tokens: a prompt of {low}, a word and end-of-text")
    rng = random.Random(seed)
    chosen = []
    while len(chosen) < n:  # each row once before any comes twice: 872 prompts of 872 sentences differ
        chosen += rng.sample(long_enough, len(long_enough))
    return [row[: rng.randint(low, min(high, len(row) - 2))] for row in chosen[:n]]
