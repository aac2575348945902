"""Sentences -> token ids -> batches: SST-2 or your own data set of the same schema."""

import random
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_helpers.checks import check, loading


def positions(config) -> float:
    """How long a text a model can take, in tokens."""
    return getattr(config, "max_position_embeddings", None) or float("inf")


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding with end-of-text where it has no padding token.

    Raises ConnectionError if it can't be had, ValueError if it has no end-of-text token or does not suit the model.
    """
    with loading(f"the tokenizer of {name_or_path!r}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False).get_text_config()
    words, embedded = len(tokenizer), config.vocab_size
    # transformers makes up an empty tokenizer where there is none
    check(words > len(tokenizer.all_special_ids), f"{name_or_path}: no words. Is its tokenizer.json missing?")
    check(words <= embedded, f"{name_or_path}: the tokenizer has {words} tokens, but the model embeds {embedded}")
    way_out = "Add one (tokenizer.add_special_tokens), resize the model's embeddings and save both."
    check(tokenizer.eos_token_id is not None, f"{name_or_path}: no end-of-text, so nothing could end. {way_out}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # many a tokenizer knows no limit
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions(config))
    return tokenizer


def load_rows(name_or_path: str, **kwargs) -> Any:
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
    check("train" in data, f"{name_or_path}: no split 'train', only {sorted(data)}")
    for split in list(data):
        if "sentence" not in data[split].column_names and "text" in data[split].column_names:
            data[split] = data[split].rename_column("text", "sentence")
        check_sentences(data[split], f"{name_or_path}, split {split!r}", labelled=split != "test")
    for split, share in (("validation", 0.05), ("test", 0.05)):
        if split not in data:
            n = len(data["train"])
            check(n >= 20, f"{name_or_path}: no split {split!r}, and {n} rows of train to cut it from: 20 are needed")
            print(f"{name_or_path} has no split {split!r}: {share:.0%} of train is held out for it")
            parts = data["train"].train_test_split(share, seed=seed)
            data["train"], data[split] = parts["train"], parts["test"]
    # SST-2 ends each phrase with a space, which would be one more token to learn
    return data.map(lambda row: {"sentence": row["sentence"].strip()})


def check_sentences(split: Dataset, name: str, labelled: bool = True) -> None:
    """Raises ValueError unless `split` has text in `sentence` and both 0 and 1 in `label`."""
    missing = {"sentence", "label"} - set(split.column_names) - (set() if labelled else {"label"})
    check(not missing, f"{name}: no column {sorted(missing)}, only {split.column_names}. Rename yours.")
    for row, sentence in enumerate(split["sentence"]):
        check(isinstance(sentence, str), f"{name}, row {row}: the sentence is {sentence!r}, not text")
        check(sentence.strip(), f"{name}, row {row}: the sentence is empty. Remove such rows.")
    labels = split["label"] if labelled else [0, 1]
    for row, label in enumerate(labels):
        check(label in (0, 1), f"{name}, row {row}: label {label!r}, but 0 (negative) or 1 (positive) is needed")
    check(len(set(labels)) == 2, f"{name}: every label is {set(labels)}; a reward model needs both classes")


def whole_sentences(sentences: list[str]) -> list[str]:
    """Those that end in a full stop, an exclamation or a question mark.

    Four in five training rows of SST-2 are cut out of sentences; what learns from them learns to stop anywhere.
    """
    ended = [sentence for sentence in sentences if sentence.endswith((".", "!", "?"))]
    way_out = "Write `preset = replace(preset, sft_whole_sentences=False)` in the configuration cell."
    check(ended, f"none of {len(sentences)} training rows ends in . ! or ?, as whole sentences do. {way_out}")
    return ended


def encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None, *, end: bool = True
) -> list[list[int]]:
    """Token ids of each text, with end-of-text appended unless `end` is False; cut to `max_tokens`."""
    # "" as well, since a tokenizer can't take an empty list; a text's own "<|endoftext|>" is text like any other
    ids = tokenizer([*texts, ""], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [(row + [tokenizer.eos_token_id] * end)[:max_tokens] for row in ids[:-1]]


def decode(rows: list[list[int]] | torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of each row of token ids, without special tokens or spaces around it."""
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]


def pad(rows: list[list[int]], pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of any length -> input_ids and attention_mask, both (B, longest row), int64."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
    return pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side), mask


def lm_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Labels of the language-model loss, (B, T): the ids, and -100 (ignored) on padding.

    The mask decides, not the id: padding *is* end-of-text, and the one real end-of-text of a
    row must keep its label or the model never learns to stop (transformers#23530).
    """
    return input_ids.masked_fill(attention_mask == 0, -100)


def length_bucketed(lengths: list[int], batch: int, seed: int) -> list[list[int]]:
    """Row indices of one epoch in batches of like length, in random order of batches.

    A batch holds hardly any padding: random batches of 32 SST-2 phrases are 2.7 times as large as their tokens, and
    take twice as long (docs/speed.md). Same seed, same batches.
    """
    rng = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    rng.shuffle(batches)
    return batches


def sample_prompts(rows: list[list[int]], n: int, tokens: tuple[int, int], seed: int) -> list[list[int]]:
    """`n` prompts: the first `tokens[0]` to `tokens[1]` (uniform) ids of random rows.

    A prompt leaves its row a token to write besides end-of-text, or nothing would be left to decide.
    """
    low, high = tokens
    check(1 <= low <= high, f"prompts of {tokens} tokens: the second number must not be under the first")
    long_enough = [row for row in rows if len(row) >= low + 2]
    check(long_enough, f"no sentence has {low + 2} tokens: a prompt of {low}, a word and end-of-text")
    rng = random.Random(seed)
    chosen = []
    while len(chosen) < n:  # each row once before any comes twice: 872 prompts of 872 sentences differ
        chosen += rng.sample(long_enough, len(long_enough))
    return [row[: rng.randint(low, min(high, len(row) - 2))] for row in chosen[:n]]
