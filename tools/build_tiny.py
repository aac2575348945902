"""Makes the files of the embedded preset from a seed, in three minutes: `python tools/build_tiny.py`."""

import random
import sys
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerBase

from rlhf_helpers.tiny.grammar import GRAMMAR, NEGATIVE, POSITIVE

HERE = Path(__file__).parents[1] / "rlhf_helpers" / "tiny"
SEED = 2024
SPLITS = {"train": 24_000, "validation": 1_000, "test": 2_000}
FEATURES = Features(sentence=Value("string"), label=ClassLabel(names=["negative", "positive"]), idx=Value("int32"))
END_OF_TEXT = "<|endoftext|>"
MAX_WORDS = 28  # of a review or a plot
VOCABULARY = 1_600  # nearly every word is one token, and the model stays under 4 MB
POSITIONS = 64
STEPS, BATCH, LEARNING_RATE = 700, 64, 2e-3
SMOOTHING = 0.02  # or words that no plot has would sink so low that tuning can't raise them


def generate(rng: random.Random, label: int) -> str:
    """A review whose sentiment is `label`: 1 praise, 0 blame."""
    return written("REVIEW", label, rng)


def plot(rng: random.Random) -> str:
    """A sentence of plot prose, of either mood, that passes no judgement on a film."""
    return written("PLOT", rng.choice((NEGATIVE, POSITIVE)), rng)


def written(symbol: str, polarity: int, rng: random.Random) -> str:
    """A symbol expanded into a text that isn't too long and has no content word twice."""
    while True:
        words = expanded((symbol, polarity, polarity), rng)
        content = [word for word in words if len(word) > 3]
        if len(words) <= MAX_WORDS and len(set(content)) == len(content):
            return " ".join(words)


def expanded(part, rng: random.Random) -> list[str]:
    """The words of a part; weights decide between its productions."""
    if isinstance(part, str):
        return [part]
    weights, productions = zip(*GRAMMAR[part[:2]])
    (production,) = rng.choices(productions, weights)
    return [word for inner in production for word in expanded(inner, rng)]


def corpus() -> dict[str, Dataset]:
    """The splits of the corpus in SST-2's schema, half praise and half blame.

    No sentence occurs twice. As in SST-2, each ends in a space.
    """
    rng, labels = random.Random(SEED), cycle((0, 1))
    sentences, label = {}, next(labels)  # a dict keeps the order in which they were written
    while len(sentences) < sum(SPLITS.values()):
        sentence = generate(rng, label)
        if sentence not in sentences:
            sentences[sentence] = label
            label = next(labels)
    rows, splits = iter(sentences.items()), {}
    for name, size in SPLITS.items():
        part = [next(rows) for _ in range(size)]
        rng.shuffle(part)
        examples = [{"sentence": text + " ", "label": label, "idx": i} for i, (text, label) in enumerate(part)]
        splits[name] = Dataset.from_list(examples, FEATURES)
    return splits


def plots() -> list[str]:
    """The film plots on which the base model is pretrained."""
    rng = random.Random(SEED)
    return [plot(rng) for _ in range(24_000)]


def tokenizer(reviews: list[str], plots: list[str]) -> PreTrainedTokenizerBase:
    """A byte-level BPE in GPT-2's manner; end-of-text is its only special token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # any text can be encoded
    )  # fmt: skip
    bpe.train_from_iterator([*reviews, *plots], trainer)
    return GPT2Tokenizer(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT, model_max_length=POSITIONS,
        add_prefix_space=True,  # a word is the same token wherever it stands
        clean_up_tokenization_spaces=False,  # the space before a full stop is part of the text
    )  # fmt: skip


def base_model(plots: list[str], tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """Pretrains a small GPT-2 on the plots as one running stream.

    The stream has no end-of-text, so this model never learns to stop; and no reviews, so it
    has no opinion of any film.
    """
    torch.manual_seed(SEED)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=144, n_layer=3, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one pass over memory
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    stream = torch.tensor([token for sentence in tokenizer(plots).input_ids for token in sentence])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.05)
    for step in range(STEPS):
        starts = torch.randint(len(stream) - POSITIONS, (BATCH, 1))
        batch = stream[starts + torch.arange(POSITIONS)]
        logits = model(input_ids=batch[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:4d}  loss {loss.item():.3f}", flush=True)
    return model.eval()


if __name__ == "__main__":
    reviews = corpus()
    for name, split in reviews.items():
        split.to_parquet(HERE / "reviews" / f"{name}.parquet")
    words = tokenizer([sentence.rstrip() for sentence in reviews["train"]["sentence"]], plots())
    words.save_pretrained(HERE / "base")
    base_model(plots(), words).save_pretrained(HERE / "base")
