"""Bad input in bulk: a table of what strangers pass in, and properties over text of every script.

Each bad input gets an error of its own, raised by the helpers themselves and not from the depths of a
library, before any long work; or it gives a correct result. Nothing hangs and nothing is NaN.
"""

import json
import math
import os
import re
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

import rlhf_helpers
from rlhf_helpers import data, evaluation, plots, ppo
from rlhf_helpers.beyond import judging, preferences
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.presets import TINY, Preset, load_preset
from rlhf_helpers.rollouts import sample_rollouts

ROOT = Path(__file__).parents[2]
HF_HOME = ROOT.parent / "shared" / "hf_home"
BASE = ROOT / TINY.relative_to(TINY.parents[1]) / "base"
SMALL = dict(vocab_size=1600, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)


@pytest.fixture(autouse=True)
def no_hang():
    def stop(*_):
        raise TimeoutError("longer than 30 seconds: a hang")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def tiny():
    """The embedded model, as policy and reward model, and its tokenizer."""
    torch.manual_seed(0)
    reward_model, policy = RewardModel(str(BASE)).eval(), PolicyWithValueHead(str(BASE)).eval()
    for head in (reward_model.model.score, policy.value_head):  # zero heads would hide differences
        torch.nn.init.normal_(head.weight)
    return SimpleNamespace(tokenizer=data.load_tokenizer(str(BASE)), policy=policy, rm=reward_model, lm=policy.lm)


@pytest.fixture
def w(tiny, tmp_path, monkeypatch):
    """What the rows of the tables work on: the tiny models, and makers of folders and environments."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    questions = []
    monkeypatch.setattr("builtins.input", lambda *text: questions.append(text) or "n")
    for name in ("PRESET", "SEED", "MODEL", "DATASET", "ARTIFACTS"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)

    def preset(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return load_preset()

    def dataset(content, name="train.jsonl"):
        """A data set folder of one file: rows as JSON lines, or the file's bytes."""
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        lines = content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
        (folder / name).write_bytes(lines)
        return str(folder)

    def model(*removed, other=None, config=None, files=None):
        """The embedded model's folder without some files, with another model's, or with others written over."""
        folder = Path(shutil.copytree(BASE, tmp_path / "model"))
        for name in removed:
            (folder / name).unlink()
        if other is not None:
            (folder / "config.json").unlink()
            other.save_pretrained(folder)
        if config is not None:
            changed = json.loads((folder / "config.json").read_text()) | config
            (folder / "config.json").write_text(json.dumps(changed))
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        return str(folder)

    def folder_with_head(**shape):
        folder = model()
        save_file({name: torch.zeros(size) for name, size in shape.items()}, Path(folder, "value_head.safetensors"))
        return folder

    here = dict(tmp=tmp_path, preset=preset, dataset=dataset, model=model, folder_with_head=folder_with_head)
    yield SimpleNamespace(**here, **vars(tiny))
    assert not questions, "a reader of a notebook was asked, and waited for"


def refused(call, error, words):
    """`call()` raises just this type, from a line of the helpers, and says `words`."""
    with pytest.raises(Exception) as caught:
        call()
    assert caught.type is error, repr(caught.value)[:300]
    assert re.search(words, str(caught.value)), str(caught.value)[:300]
    raised_in = Path(caught.traceback[-1].path)
    assert raised_in.is_relative_to(Path(rlhf_helpers.__file__).parent), f"a traceback from the depths: {raised_in}"


# --- the table -------------------------------------------------------------------------------------

BAD = []


def bad(name, call, error, words):
    """One row: `call(w)` raises `error` and says `words`."""
    BAD.append(pytest.param(call, error, words, id=name))


# Presets: environment variables ...
for variables, words in (
    ({"RLHF_PRESET": "Tiny "}, "unknown preset 'Tiny '"),
    (dict(RLHF_SEED="1.5"), "RLHF_SEED"),
    (dict(RLHF_SEED="seven"), "RLHF_SEED"),
    (dict(RLHF_SEED="9" * 5000), "RLHF_SEED"),
    (dict(RLHF_SEED=2**32), "seed .* from 0 to"),
    (dict(RLHF_ARTIFACTS=__file__), "artifacts .* a folder that can be written"),
    (dict(RLHF_ARTIFACTS=f"{__file__}/below"), "artifacts .* a folder that can be written"),
    (dict(RLHF_MODEL=" "), "model is ' '"),
):
    name = ", ".join(f"{k}={str(v)[-20:]}" for k, v in variables.items())
    bad(name, lambda w, v=variables: w.preset(**{"RLHF_PRESET": "tiny"} | v), ValueError, words)

# ... and fields
for field, values in {
    "seed": (-1, 0.5, 2**40, None),
    "max_tokens": (1, -64),
    "sft_examples": (0, -5),
    "sft_epochs": (0, 1.5),
    "sft_batch": (-1, 0, "32"),
    "sft_lr": (math.nan, 0, -1e-3, math.inf, "1e-3"),
    "sft_whole_sentences": ("no",),
    "rm_examples": (0,),
    "rm_epochs": (-2,),
    "rm_batch": (2.0,),
    "rm_lr": (math.nan,),
    "ppo_updates": (0, -1),
    "ppo_batch": (0,),
    "ppo_minibatch": (0, -128),
    "ppo_epochs": (0,),
    "ppo_lr": (-1.0,),
    "ppo_prompt_tokens": ((6, 2), (0, 4), (2,), 4, (2, 6.5)),
    "ppo_new_tokens": (0, -1),
    "ppo_beta": (-0.1, math.nan),
    "ppo_target_kl": (0, -6.0),
    "ppo_max_update_kl": (0, math.nan),
    "ppo_no_eos_score": (math.inf, None),
    "eval_prompts": (0, 1),
    "precision": ("fp16", "bfloat16"),
    "device": ("gpu", "tpu:0", "", None),
    "judge": ("me", None),
    "second_judge": (7,),
    "name": ("",),
    "artifacts": (7,),
}.items():
    for value in values:
        call = lambda w, change={field: value}: replace(w.preset(RLHF_PRESET="tiny"), **change)  # noqa: E731
        bad(f"{field}={value!r}", call, ValueError, f"preset.{field} is {re.escape(repr(value))}, .* must be")

# Models, by RLHF_MODEL: first the tokenizer ...
EVIL = {"model_type": "foo", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Model")}
EVIL_TOKENIZER = b'{"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}'
TOKENIZERS = {
    "no tokenizer": (
        lambda w: w.model("tokenizer.json", "tokenizer_config.json"), ValueError, "no words.*tokenizer.json",
    ),
    "broken tokenizer": (lambda w: w.model(files={"tokenizer.json": b"{oops"}), ValueError, "can't load the tokenizer"),
    "no config": (lambda w: w.model("config.json"), ValueError, "can't load the model's configuration"),
    "broken config": (lambda w: w.model(files={"config.json": b"{oops"}), ConnectionError, "not a valid JSON"),
    "a tokenizer with code of its own": (
        lambda w: w.model("tokenizer.json", config=EVIL, files={"tokenizer_config.json": EVIL_TOKENIZER}),
        ValueError, "can't load the tokenizer.*custom code",
    ),
    "a configuration with code of its own": (
        lambda w: w.model(config=EVIL), ValueError, "can't load the model's configuration.*custom code",
    ),
    "an empty folder": (lambda w: str(w.tmp), ValueError, "can't load the tokenizer"),
    "a file": (lambda w: __file__, ConnectionError, "can't load the tokenizer"),
    "no such folder": (lambda w: "/no/such/folder", ConnectionError, "Ways out"),
    "no name": (lambda w: "not a name!", ConnectionError, "Ways out"),
    "a tokenizer of more words than the model": (
        lambda w: w.model("model.safetensors", other=GPT2LMHeadModel(GPT2Config(**SMALL | {"vocab_size": 100}))),
        ValueError, "1600 tokens.* embeds 100",
    ),
}  # fmt: skip
for name, (folder, error, words) in TOKENIZERS.items():
    bad(f"RLHF_MODEL: {name}", lambda w, f=folder: data.load_tokenizer(f(w)), error, words)


def tiny_bert():
    return BertForMaskedLM(BertConfig(
        vocab_size=1600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))  # fmt: skip


def tiny_t5():
    return T5ForConditionalGeneration(T5Config(
        vocab_size=1600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0))  # fmt: skip


# ... then its weights
MODELS = {
    "no weights": (lambda w: w.model("model.safetensors"), ConnectionError, "no file named model.safetensors"),
    "cut off weights": (
        lambda w: w.model(files={"model.safetensors": (BASE / "model.safetensors").read_bytes()[:5000]}),
        ValueError, "can't load the model.*Safetensor",
    ),
    "weights that are none": (
        lambda w: w.model(files={"model.safetensors": b"junk" * 99}), ValueError, "can't load the model.*Safetensor",
    ),
    "weights of another width": (lambda w: w.model(config={"n_embd": 72}), ValueError, "can't load the model"),
    "more layers than weights": (lambda w: w.model(config={"n_layer": 5}), ValueError, "lacks 2. weights of the model"),
    "an unknown architecture": (lambda w: w.model(config={"model_type": "foo"}), ValueError, "can't load the model"),
    "code of its own": (lambda w: w.model(config=EVIL), ValueError, "can't load the model.*custom code"),
    "an encoder": (lambda w: w.model("model.safetensors", other=tiny_bert()), ValueError, "later tokens.*encoder"),
    "an encoder and a decoder": (
        lambda w: w.model("model.safetensors", other=tiny_t5()), ValueError, "can't load the model",
    ),
}  # fmt: skip
for name, (folder, error, words) in MODELS.items():
    bad(f"RLHF_MODEL: {name}", lambda w, f=folder: load_lm(f(w)), error, words)

bad("reward model: a language model", lambda w: RewardModel.from_pretrained(w.model()), ValueError, "lacks 1 weights")
bad(
    "reward model: two classes",
    lambda w: RewardModel.from_pretrained(
        w.model("model.safetensors", other=GPT2ForSequenceClassification(GPT2Config(**SMALL)))
    ),
    ValueError, "2 labels",
)  # fmt: skip
bad("reward model: no folder", lambda w: RewardModel.from_pretrained("/no/such"), ConnectionError, "reward model")
bad("value head: of another width", lambda w: PolicyWithValueHead.from_pretrained(
    w.folder_with_head(weight=(1, 7), bias=(1,))), ValueError, "value head")  # fmt: skip
bad("value head: junk", lambda w: PolicyWithValueHead.from_pretrained(
    w.model(files={"value_head.safetensors": b"xx"})), ValueError, "value head")  # fmt: skip
bad("judge: no folder", lambda w: evaluation.classifier_judge("/no/such"), ConnectionError, "can't load the judge")

# Data, by RLHF_DATASET
PAIR = [{"sentence": "a film .", "label": 0}, {"sentence": "the film .", "label": 1}]
DATASETS = {
    "wrong columns": ([{"review": "x", "stars": 1}], "no column .*'label', 'sentence'.*Rename"),
    "labels that are words": ([{"sentence": "x", "label": "pos"}] * 4, "row 0: label 'pos'"),
    "labels that are digits": ([{"sentence": "x", "label": "1"}] * 4, "row 0: label '1'"),
    "three kinds of labels": ([*PAIR, {"sentence": "x", "label": 2}], "row 2: label 2"),
    "a label is missing": ([*PAIR, {"sentence": "x", "label": None}], "row 2: label None"),
    "labels that are shares": ([*PAIR, {"sentence": "x", "label": 0.5}], "row 2: label 0.5"),
    "one class only": ([{"sentence": "x", "label": 0}] * 30, "both classes"),
    "one row": (PAIR[:1], "both classes"),
    "too few rows to cut from": (PAIR, "2 rows.*20 are needed"),
    "rows are None": ([{"sentence": None, "label": 0}] * 3, "row 0: the sentence is None, not text"),
    "a row is None": ([*PAIR, {"sentence": None, "label": 0}], "row 2: the sentence is None, not text"),
    "all rows empty": ([{"sentence": "", "label": 0}, {"sentence": " ", "label": 1}], "row 0: the sentence is empty"),
    "only control characters": ([*PAIR, {"sentence": "\x1c\u2029\x85", "label": 1}], "row 2: the sentence is empty"),
    "sentences in lists": ([{"sentence": ["x"], "label": 0}] * 3, "not text"),
    "no JSON": (b"{not json", "can't load the data set"),
    "an empty file": (b"", "can't load the data set"),
    "half a surrogate pair": (b'{"sentence": "a \\ud800 b", "label": 1}\n', "can't load the data set"),
}  # fmt: skip
for name, (rows, words) in DATASETS.items():
    bad(f"RLHF_DATASET: {name}", lambda w, r=rows: data.load_sentences(w.dataset(r)), ValueError, words)
for name, content, suffix in (
    ("not UTF-8", "sentence,label\ncafé,1\nb,0\n".encode("latin1"), "csv"),
    ("a broken parquet", b"PAR1nothing", "parquet"),
):
    bad(f"RLHF_DATASET: {name}", lambda w, c=content, s=suffix: data.load_sentences(w.dataset(c, f"train.{s}")),
        ValueError, "can't load the data set")  # fmt: skip
bad("RLHF_DATASET: an empty folder", lambda w: data.load_sentences(str(w.tmp)), ConnectionError, "Ways out")
bad("RLHF_DATASET: a file", lambda w: data.load_sentences(__file__), ValueError, "can't load the data set")
bad("RLHF_DATASET: no name", lambda w: data.load_sentences("not a name!"), ValueError, "can't load the data set")
bad("no row ends in a period", lambda w: data.whole_sentences(["x", "y"]), ValueError, "sft_whole_sentences=False")

# data.py
LONG = [[1] * 9]
for name, call, words in (
    ("encode: max_tokens 1", lambda w: data.encode(["a"], w.tokenizer, 1), "max_tokens is 1.*from 2"),
    ("encode: max_tokens -1", lambda w: data.encode(["a"], w.tokenizer, -1), "max_tokens is -1"),
    ("encode: beyond the context", lambda w: data.encode(["a"], w.tokenizer, 65), "max_tokens is 65.* to 64"),
    ("encode: None", lambda w: data.encode(["a", None], w.tokenizer, 9), "1 is None, not text"),
    ("encode: one string", lambda w: data.encode("a film", w.tokenizer, 9), "in place of a list"),
    ("encode: a surrogate", lambda w: data.encode(["a", "b\ud83d"], w.tokenizer, 9), "1 .*surrogate"),
    ("pad: no row", lambda w: data.pad([], 0), "nothing to pad: no rows"),
    ("pad: only empty rows", lambda w: data.pad([[], []], 0), "no tokens"),
    ("labels: mask of another shape", lambda w: data.lm_labels(torch.ones(2, 3), torch.ones(2, 1)), "shape"),
    ("buckets: batch 0", lambda w: data.length_bucketed([1, 2], 0, 0), "batch is 0"),
    ("buckets: batch -1", lambda w: data.length_bucketed([1, 2], -1, 0), "batch is -1"),
    ("prompts: -1 of them", lambda w: data.sample_prompts(LONG, -1, (2, 4), 0), "-1 prompts"),
    ("prompts: from 8 to 2", lambda w: data.sample_prompts(LONG, 2, (8, 2), 0), r"\(8, 2\)"),
    ("prompts: of no token", lambda w: data.sample_prompts(LONG, 2, (0, 2), 0), r"\(0, 2\)"),
    ("prompts: no rows", lambda w: data.sample_prompts([], 2, (2, 4), 0), "no sentence has 4"),
):  # fmt: skip
    bad(name, call, ValueError, words)

# models.py and rollouts.py
IDS, ONES = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
HALF = torch.tensor([[1, 1, 1], [0, 0, 0]])
for name, ids, mask, words in (
    ("a row without a token", IDS, HALF, "real token"),
    ("no row has a token", IDS, 0 * ONES, "real token"),
    ("no rows", IDS[:0], ONES[:0], "empty"),
    ("a hole in the mask", IDS, torch.tensor([[1, 0, 1], [1, 1, 1]]), "one run of real tokens"),
    ("mask of another width", IDS, torch.ones(2, 4).long(), "shape"),
    ("mask of another height", IDS, ONES[:1], "shape"),
    ("no batch dimension", IDS[0], ONES[0], "shape"),
    ("an id past the vocabulary", 9999 * IDS, ONES, r"id \[9999\]"),
    ("labels for ids", -100 * IDS, ONES, r"id \[-100\]"),
    ("more tokens than positions", torch.ones(1, 65).long(), torch.ones(1, 65).long(), "65 tokens.*64 positions"),
):
    bad(f"reward model: {name}", lambda w, i=ids, m=mask: w.rm(i, m), ValueError, words)
for name, prompts, new, words in (
    ("one string", "the film", 4, "in place of a list"),
    ("None", [[1], None], 4, "prompt 1"),
    ("an empty text", ["the film", ""], 4, "prompt 1 is empty"),
    ("a surrogate", ["\ud800"], 4, "surrogate"),
    ("an id past the vocabulary", [[1], [1600]], 4, r"prompt 1 has ids \[1600\]"),
    ("a negative id", [[-1]], 4, r"prompt 0 has ids \[-1\]"),
    ("an id that is no whole number", [[1.5]], 4, r"prompt 0 has ids \[1.5\]"),
    ("new tokens that are no whole number", [[1]], 2.5, "max_new_tokens=2.5"),
    ("no new tokens", [[1]], 0, "max_new_tokens=0"),
    ("more new tokens than positions", [[1]], 64, "64 positions"),
):
    call = lambda w, p=prompts, n=new: sample_rollouts(w.policy, p, w.tokenizer, n)  # noqa: E731
    bad(f"rollouts: {name}", call, ValueError, words)


def broken_policy(w):
    """One whose weights have become NaN."""
    policy = PolicyWithValueHead(str(BASE))
    torch.nn.init.constant_(policy.lm.transformer.ln_f.weight, math.nan)
    return policy


bad("rollouts: a policy of NaN", lambda w: sample_rollouts(broken_policy(w), [[1]], w.tokenizer, 4),
    FloatingPointError, "logits are nan")  # fmt: skip
PROMPTS = [[5, 6], [7, 8, 9], [10]]


def experience(w, reward=lambda r: torch.zeros(len(r))):
    torch.manual_seed(0)
    some = sample_rollouts(w.policy, PROMPTS, w.tokenizer, 5)
    return ppo.collect_experience(w.policy, w.lm, reward, some, beta=0.1, no_eos_score=-1.0, rows_at_once=2)


def update(w, collected, epochs=1, minibatch=2):
    return ppo.ppo_update(w.policy, collected, lambda loss: loss.item(), epochs=epochs, minibatch=minibatch, max_kl=1.0)


# ppo.py and toy.py
x, m, score, logits = torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2), torch.zeros(2, 3, 9)
none, penalised = x[:, :0], ppo.kl_penalised_rewards
for name, call, words in (
    ("log-probs: tokens of another width", lambda w: ppo.token_logprobs(logits, IDS[:, :2]), "shape"),
    ("log-probs: a token past the vocabulary", lambda w: ppo.token_logprobs(logits, 9 * IDS), r"token id \[9\]"),
    ("log-probs: labels for tokens", lambda w: ppo.token_logprobs(logits, -100 * IDS), r"token id \[-100\]"),
    ("exact KL: two vocabularies", lambda w: ppo.exact_kl(torch.zeros(2, 3, 9), torch.zeros(2, 3, 8)), "shape"),
    ("KL estimates: broadcast", lambda w: ppo.kl_estimates(x, x[:, :1]), "shape"),
    ("rewards: scores in a column", lambda w: penalised(score[:, None], x, x, m, 0.1), "shape"),
    ("rewards: one score too few", lambda w: penalised(score[:1], x, x, m, 0.1), "shape"),
    ("rewards: mask of another width", lambda w: penalised(score, x, x, m[:, :2], 0.1), "shape"),
    ("rewards: no response tokens", lambda w: penalised(score, none, none, none, 0.1), "empty"),
    ("whiten: a mask of lengths", lambda w: ppo.whiten(x, torch.tensor([2, 3])), "shape"),
    ("gae: values one token longer", lambda w: ppo.gae(x, torch.zeros(2, 4), m), "shape"),
    ("gae: no rows", lambda w: ppo.gae(x[:0], x[:0], m[:0]), "empty"),
    ("loss: one row of values", lambda w: ppo.ppo_loss(x, x[:1], x, x, x, x, m), "shape"),
    ("loss: no tokens", lambda w: ppo.ppo_loss(*[x[:, :0]] * 6, m[:, :0]), "empty"),
    ("experience: rewards in a column", lambda w: experience(w, lambda r: torch.zeros(len(r), 1)), "shape"),
    ("update: no epochs", lambda w: update(w, experience(w), epochs=0), "epochs"),
    ("update: minibatch 0", lambda w: update(w, experience(w), minibatch=0), "minibatch"),
):  # fmt: skip
    bad(name, call, ValueError, words)
bad("rewards: a log-probability is nan", lambda w: penalised(score, x / 0, x, m, 0.1),
    FloatingPointError, "not finite")  # fmt: skip
bad("rewards: beta nan", lambda w: penalised(score, x, x, m, math.nan), FloatingPointError, "beta nan")


# preferences.py
def preferred(*rows):
    return preferences.to_preferences(Dataset.from_list([*rows]))


POST = {"subreddit": "films", "title": "t", "post": "p"}


TLDR = {"info": POST, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
SHP = {"history": "x", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
JUDGED = {"query": "x", "postprocessed_response": "a", "reference_responses": "b", "preferred": "both"}
NO_PREFERENCE = {
    "numbers": {"prompt": 1, "chosen": 2, "rejected": 3},
    "HH: None": {"chosen": "\n\nAssistant: a", "rejected": None},
    "HH: numbers": {"chosen": 1, "rejected": 2},
    "HH: one is the start of the other": {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant:"},
    "SHP: a third label": SHP | {"labels": 2},
    "SHP: no label": SHP | {"labels": None},
    "SHP: an answer is None": SHP | {"human_ref_A": None},
    "TL;DR: one summary": TLDR | {"summaries": [{"text": "a"}]},
    "TL;DR: no post": TLDR | {"info": None},
    "TL;DR: a post without title": TLDR | {"info": {"post": "p"}},
    "TL;DR: choice of a third": TLDR | {"choice": 2},
    "TL;DR: choice -1": TLDR | {"choice": -1},
    "TL;DR: no choice": TLDR | {"choice": None},
    "judged summaries: another verdict": JUDGED,
}
for name, row in NO_PREFERENCE.items():
    bad(f"preferences: {name}", lambda w, r=row: preferred(r), ValueError, "no row holds a preference")


for name, call, words in (
    ("preferences: a list", lambda w: preferences.to_preferences([TLDR]), "not a Dataset"),
    ("preferences: no rows", lambda w: preferences.to_preferences(Dataset.from_list([TLDR]).select([])), "no row"),
    ("given responses: one too few", lambda w: preferences.given_responses([[1], [2]], [[3]], 0), "2 prompts and 1"),
    ("given responses: none", lambda w: preferences.given_responses([], [], 0), "no rows"),
    ("DPO: a column", lambda w: preferences.dpo_loss(score, score[:, None], score, score, 0.1), "shape"),
    ("DPO: no pair", lambda w: preferences.dpo_loss(*[score[:0]] * 4, 0.1), "empty"),
    ("ranking: one response", lambda w: preferences.ranking_loss(torch.zeros(3, 1)), "two or more"),
    ("ranking: no batch dimension", lambda w: preferences.ranking_loss(torch.zeros(3)), r"\(B, K\)"),
    ("RLOO: no response", lambda w: preferences.rloo_advantages(score[:0], 2), "groups"),
):  # fmt: skip
    bad(name, call, ValueError, words)


# judging.py and evaluation.py
def asked(**answers):
    return judging.questions([{"prompt": "x", "ours": "a", "theirs": "b"} | answers], "ours", "theirs")


def evaluated(w, prompts, batch=1):
    return evaluation.evaluate(w.policy, w.lm, w.lm, None, None, prompts, w.tokenizer, 4, 0, batch)


FRAME = pd.DataFrame({"row": [0, 0], "ours_first": [True, False], "verdict": ["A", "B"]})
for name, call, words in (
    ("judge: an answer is None", lambda w: asked(theirs=None), "row 0.*'theirs'"),
    ("judge: a prompt is a number", lambda w: asked(prompt=1), "row 0.*'prompt'"),
    ("judge: no pairs", lambda w: judging.outcome(FRAME, 0), "0 pairs"),
    ("judge: fewer pairs than asked", lambda w: judging.outcome(FRAME.assign(row=[0, 1]), 1), "1 pairs"),
    ("judge: a share above 1", lambda w: judging.wilson(1.2, 5), "share 1.2"),
    ("judge: a share of nan", lambda w: judging.wilson(math.nan, 5), "share nan"),
    ("judge: -1 answers", lambda w: judging.wilson(0.5, -1), "-1"),
    ("perplexity: no rows", lambda w: evaluation.mean_nll(w.lm, [], 0), "no row has two tokens"),
    ("perplexity: rows of one token", lambda w: evaluation.mean_nll(w.lm, [[0], [0]], 0), "no row has two tokens"),
    ("perplexity: batch 0", lambda w: evaluation.mean_nll(w.lm, LONG, 0, batch=0), "batch is 0"),
    ("evaluate: no prompts", lambda w: evaluated(w, []), "no prompts"),
    ("evaluate: batch 0", lambda w: evaluated(w, [[1]], batch=0), "batch"),
    ("bootstrap: no rows", lambda w: evaluation.bootstrap(FRAME[:0], len), "no rows"),
    ("jackknife: one text", lambda w: evaluation.jackknife(["a b"], evaluation.distinct_n), "two texts"),
    ("win rate: none", lambda w: evaluation.win_rate(pd.Series(dtype=float), pd.Series(dtype=float)), "0 and 0"),
    ("win rate: unequal", lambda w: evaluation.win_rate(pd.Series([1.0]), pd.Series([1.0, 2.0])), "1 and 2"),
    ("best of 0", lambda w: evaluation.best_of_n_kl(0), "n is 0"),
):  # fmt: skip
    bad(name, call, ValueError, words)
bad("judge: no address", lambda w: judging.ask(asked(), w.tmp / "a", "m", base_url="nowhere", retries=0),
    RuntimeError, "OPENAI_BASE_URL")  # fmt: skip

# plots.py
METRICS = pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5]})
POINTS = pd.DataFrame({"kl": [0.0], "reward": [1.0]})
for name, call, words in (
    ("plot: no lengths", lambda w: plots.sentence_lengths([]), "no sentences"),
    ("plot: no scores", lambda w: plots.scores_by_class(torch.zeros(0), torch.zeros(0)), "one for each label"),
    ("plot: scores of nan", lambda w: plots.scores_by_class(torch.tensor([math.nan]), torch.ones(1)), "finite"),
    ("plot: a third class", lambda w: plots.confusion_matrix(torch.zeros(2), torch.tensor([0, 2])), "labels must be"),
    ("plot: one label too few", lambda w: plots.confusion_matrix(torch.zeros(2), torch.tensor([0])), "one for each"),
    ("plot: no probability", lambda w: plots.reliability(torch.tensor([1.5]), torch.ones(1)), "from 0 to 1"),
    ("plot: bars without tokens", lambda w: plots.token_bars(["a"], reward=[1.0, 2.0]), "not 1 values"),
    ("plot: five rows of bars", lambda w: plots.token_bars(["a"], **{c: [1.0] for c in "abcde"}), "four"),
    ("plot: five curves", lambda w: plots.frontier({c: POINTS for c in "abcde"}), "four"),
    ("plot: no validation yet", lambda w: plots.loss_curves(METRICS, "loss", "v_loss"), "no .'v_loss"),
    ("plot: no step yet", lambda w: plots.loss_curves(pd.DataFrame(), "loss", "validation_loss"), "training"),
    ("plot: an update is yet to come", lambda w: plots.reward_hacking({"a": pd.DataFrame()}), "training"),
):  # fmt: skip
    bad(name, call, ValueError, words)


@pytest.mark.parametrize("call, error, words", BAD)
def test_bad_input_has_its_own_error(w, call, error, words):
    refused(lambda: call(w), error, words)


def test_the_table_is_long_and_no_row_stands_twice():
    assert len({row.id for row in BAD}) == len(BAD) >= 60


@contextmanager
def ordinary_user():
    """Root may write anywhere; os.access asks for the real user id."""
    root = hasattr(os, "getuid") and os.getuid() == 0
    if root:
        os.setreuid(65534, 0)
    try:
        yield
    finally:
        if root:
            os.setreuid(0, 0)


def test_artifacts_that_may_not_be_written(w):
    (w.tmp / "locked").mkdir(mode=0o500)
    w.tmp.chmod(0o755)
    with ordinary_user():
        refused(lambda: w.preset(RLHF_ARTIFACTS=w.tmp / "locked" / "new"), ValueError, "artifacts .* can be written")


def test_a_bad_preset_ends_the_command_in_one_line(monkeypatch):
    from rlhf_helpers import __main__

    monkeypatch.setenv("RLHF_PRESET", "huge")
    monkeypatch.setattr("sys.argv", ["rlhf_helpers", "sft"])
    with pytest.raises(SystemExit, match="unknown preset 'huge'"):
        __main__.main()


# --- odd, and yet right ----------------------------------------------------------------------------

MANY = [{"sentence": f"the film {i} .", "label": i % 2} for i in range(40)]


def loads(w, rows):
    """The rows go in, and come out once each in some split."""
    splits = data.load_sentences(w.dataset(rows))
    return sum(map(len, splits.values())) == len(rows) and {int(x) for x in splits["train"]["label"]} == {0, 1}


def finite(*values):
    return all(math.isfinite(x) for x in values)


def stats_of(w, minibatch):
    return update(w, experience(w), epochs=2, minibatch=minibatch)


ODD = {
    "artifacts as text": lambda w: replace(w.preset(), artifacts=str(w.tmp)).folder("sft") == w.tmp / "tiny" / "sft",
    "beta 0, no bound": lambda w: replace(w.preset(), ppo_beta=0, ppo_max_update_kl=math.inf).ppo_beta == 0,
    "prompts in a list": lambda w: replace(w.preset(), ppo_prompt_tokens=[3, 3]).ppo_prompt_tokens == [3, 3],
    "the largest seed": lambda w: torch.manual_seed(w.preset(RLHF_SEED=2**32 - 1).seed * 1_000_003 + 10**6),
    "labels as floats": lambda w: loads(w, [row | {"label": float(row["label"])} for row in MANY]),
    "labels as booleans": lambda w: loads(w, [row | {"label": bool(row["label"])} for row in MANY]),
    "sentence and text": lambda w: loads(w, [row | {"text": None} for row in MANY]),
    "rows that repeat": lambda w: loads(w, MANY[:2] * 20),
    "a NUL": lambda w: loads(w, [*MANY, {"sentence": "a\0b", "label": 1}]),
    "encode nothing": lambda w: data.encode([], w.tokenizer, 9) == [],
    "encode an empty text": lambda w: data.encode([""], w.tokenizer, 9) == [[0]],
    "decode nothing": lambda w: data.decode([], w.tokenizer) == [],
    "no lengths, no batches": lambda w: data.length_bucketed([], 4, 0) == [],
    "no prompts of some rows": lambda w: data.sample_prompts(LONG, 0, (2, 4), 0) == [],
    "a batch larger than all": lambda w: len(data.length_bucketed([1, 2], 99, 0)) == 1,
    "a minibatch larger than the batch": lambda w: finite(*stats_of(w, 99).values()),
    "a minibatch that does not divide": lambda w: finite(*stats_of(w, 2).values()),
    "mask of booleans": lambda w: torch.equal(w.rm(IDS, ONES.bool()), w.rm(IDS, ONES)),
    "mask of floats": lambda w: torch.equal(w.rm(IDS, ONES.float()), w.rm(IDS, ONES)),
    "loss without a real token": lambda w: ppo.ppo_loss(*[x + 1] * 6, 0 * m)[0] == 0,
    "whitening one token": lambda w: ppo.whiten(x[:1, :1], m[:1, :1]).item() == 0,
    "whitening no real token": lambda w: (ppo.whiten(x / 0, 0 * m) == 0).all(),
    "gae without a real token": lambda w: (ppo.gae(x / 0, x / 0, 0 * m)[0] == 0).all(),
    "variance of one return": lambda w: ppo.explained_variance(x[:1, :1], x[:1, :1], m[:1, :1]) == 0,
    "variance of no return": lambda w: ppo.explained_variance(x, x, 0 * m) == 0,
    "nothing distinct": lambda w: evaluation.distinct_n(["a", ""]) == 0,
    "two texts": lambda w: finite(*evaluation.jackknife(["a b c", "b"], evaluation.distinct_n)),
    "one sentence of bars": lambda w: plots.token_bars([], reward=[]) is not None,
    "questions about nothing": lambda w: judging.questions([], "ours", "theirs") == [],
    "answers of another program": lambda w: judging.ask([], Path(w.dataset([7, {}, [], None], "a"), "a"), "m").empty,
    "TL;DR: rows of both kinds": lambda w: len(preferred(*(TLDR | {"choice": c} for c in (0, 1, 2, None)))) == 2,
}  # fmt: skip


@pytest.mark.parametrize("holds", ODD.values(), ids=ODD)
def test_odd_input_gives_a_correct_result(w, holds):
    assert holds(w)


# --- properties ------------------------------------------------------------------------------------

SCRIPTS = [
    "naïve café .", "Ψάπφω .", "фильм !", "فيلم رائع", "סֶרֶט טוֹב", "चलचित्र", "ภาพยนตร์", "电影很好。", "映画だ",
    "영화 !", "ፊልም", "ᠺᠢᠨᠣ", "𐎀𐎁 𓀀", "e\u0301\u0301\u0301" * 9, "👩‍👩‍👧‍👦 👍🏽 🇺🇳", "\u202egnikcab\u202c .",
    "a\u200db\u200c\ufeff", "\0", "\x01\x1b[31m\x7f", "\ue000\uffff\U0010ffff", "<|endoftext|>", "a <|endoftext|> b",
    "\\n\t\r\n .", "'''\"`$(rm)`", "ﷺ", "a" * 300,
]  # fmt: skip
TEXT = st.sampled_from(SCRIPTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SOME = st.lists(TEXT.filter(str.strip), min_size=1, max_size=4)
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module", params=["tiny", "gpt2"])
def tokenizer_of(request, tiny):
    if request.param == "tiny":
        return tiny.tokenizer
    found = list(HF_HOME.glob("hub/models--openai-community--gpt2/snapshots/*"))
    if not found:
        pytest.skip("no Hub cache beside the project")
    return data.load_tokenizer(str(found[0]))


@given(texts=st.lists(TEXT, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_and_ends_once(tokenizer_of, texts):
    rows = data.encode(texts, tokenizer_of, 60)
    whole = [row for row in rows if row[-1] == tokenizer_of.eos_token_id]
    assert len(rows) == len(texts) and all(len(row) == 60 for row in rows if row not in whole)
    if whole:
        ids, mask = data.pad(whole, tokenizer_of.pad_token_id)
        assert ((data.lm_labels(ids, mask) == tokenizer_of.eos_token_id).sum(1) == 1).all()
    for text, row in zip(texts, rows):
        if row in whole:
            back = tokenizer_of.decode(row[:-1], clean_up_tokenization_spaces=False)
            assert back.removeprefix(" ") == text.removeprefix(" ")  # tiny's tokenizer puts a space before


def sft_loss(lm, ids, mask):
    return lm(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss


@torch.no_grad()
def wider(ids, mask, filler, left=0):
    pads = (left, 3)
    return torch.nn.functional.pad(ids, pads, value=filler), torch.nn.functional.pad(mask, pads)


@given(texts=SOME, keep=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
@few
def test_any_text_goes_all_the_way(tiny, texts, keep, seed):
    """Tokens, batches, SFT loss, reward, rollouts, PPO loss: finite, and the same whatever the padding."""
    tok, rows = tiny.tokenizer, data.encode(texts, tiny.tokenizer, 24)
    ids, mask = data.pad(rows, tok.pad_token_id)
    with torch.no_grad():
        loss = sft_loss(tiny.lm, ids, mask)
        assert loss.isfinite() and torch.isclose(loss, sft_loss(tiny.lm, *wider(ids, mask, 7)), atol=1e-4)
        alone = torch.tensor([-evaluation.mean_nll(tiny.lm, [row], 0) * (len(row) - 1) for row in rows])
        assert torch.isclose(loss * (mask.sum() - len(rows)), -alone.sum(), rtol=1e-3)
        scores = tiny.rm(ids, mask)
        assert scores.isfinite().all() and torch.allclose(scores, tiny.rm(*wider(ids, mask, 9, left=2)), atol=1e-3)
        assert torch.allclose(scores, torch.cat([tiny.rm(*data.pad([row], 0)) for row in rows]), atol=1e-3)

    generator = torch.Generator().manual_seed(seed)
    prompts = [row[: min(keep, len(row) - 1)] for row in rows]
    some = sample_rollouts(tiny.policy, prompts, tok, 6, generator)
    assert [m.sum() for m in some.prompt_mask] == [len(prompt) for prompt in prompts]
    lengths = some.response_mask.sum(1)
    assert lengths.min() >= 1 and lengths.max() == some.response_mask.shape[1] <= 6
    assert ((some.response_ids == 0) & (some.response_mask == 1)).sum(1).tolist() == some.ended.tolist()
    assert all(isinstance(text, str) for text in some.texts(tok))

    reward = lambda r: tiny.rm(r.input_ids, r.attention_mask)  # noqa: E731
    with torch.no_grad():
        e = ppo.collect_experience(tiny.policy, tiny.lm, reward, some, beta=0.1, no_eos_score=-1.0, rows_at_once=3)
    assert torch.allclose(e.logprobs, some.logprobs, atol=1e-3), "sampled and recomputed log-probabilities differ"
    assert finite(*ppo.experience_stats(e).values())
    white = ppo.whiten(e.advantages, some.response_mask)
    columns = (e.logprobs, e.values, some.logprobs, e.values, white, e.returns, some.response_mask)
    loss, stats = ppo.ppo_loss(*columns)
    padded, _ = ppo.ppo_loss(*(torch.nn.functional.pad(x, (0, 2)) for x in columns))
    assert finite(loss.item(), *stats.values()) and torch.isclose(loss, padded, atol=1e-5)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**20 - 1), st.sampled_from([1e30, math.nan, math.inf]))
@settings(max_examples=100, deadline=None)
def test_rows_without_a_token_change_nothing(n, columns, bits, garbage):
    """Any number of real tokens in each row, none included; rubbish in the padding."""
    lengths = torch.tensor([(bits >> 5 * i) % (columns + 1) for i in range(n)])
    mask = (torch.arange(columns) < lengths[:, None]).long()
    numbers = torch.randn(6, n, columns, generator=torch.Generator().manual_seed(bits))
    x = numbers.masked_fill(mask == 0, garbage).unbind()
    rewards = ppo.kl_penalised_rewards(torch.ones(n), x[0], x[1], mask, 0.1)
    advantages, returns = ppo.gae(rewards, x[2], mask)
    white = ppo.whiten(advantages, mask)
    loss, stats = ppo.ppo_loss(x[0], x[2], x[1], x[3], white, returns, mask)
    assert finite(loss.item(), *stats.values(), ppo.explained_variance(x[2], returns, mask))
    for result in (rewards, advantages, returns, white):
        assert result.isfinite().all() and (result[mask == 0] == 0).all()
    full = lengths > 0
    if full.any():
        again, _ = ppo.ppo_loss(*(y[full] for y in (x[0], x[2], x[1], x[3], white, returns, mask)))
        assert torch.isclose(loss, again, atol=1e-5)


@pytest.mark.parametrize("prompts", [[[0]], [[0]] * 5, [[0, 0, 0], [0]], [[5]], [[1] * 63, [2]]], ids=str)
def test_rows_that_end_at_once(tiny, prompts):
    """A policy that has learnt to say nothing, on prompts of end-of-text alone, single rows, and full contexts."""
    policy = PolicyWithValueHead(str(BASE))
    policy.lm.lm_head = torch.nn.Linear(policy.value_head.in_features, 1600)
    torch.nn.init.zeros_(policy.lm.lm_head.weight)
    with torch.no_grad():
        policy.lm.lm_head.bias.copy_(torch.arange(1600) == 0).mul_(99)
    some = sample_rollouts(policy, prompts, tiny.tokenizer, 1)
    assert some.ended.all() and (some.response_mask.sum(1) == 1).all() and (some.response_ids == 0).all()
    reward = lambda r: tiny.rm(r.input_ids, r.attention_mask).detach()  # noqa: E731
    with torch.no_grad():
        e = ppo.collect_experience(policy, tiny.lm, reward, some, beta=0.1, no_eos_score=-1.0, rows_at_once=2)
    assert finite(*ppo.experience_stats(e).values())
    assert finite(*update(SimpleNamespace(policy=policy), e, epochs=2, minibatch=2).values())


@given(length=st.integers(1, 40), new=st.integers(1, 40))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prompt_and_response_fit_the_context_or_are_refused(lm, tokenizer, length, new):
    call = lambda: sample_rollouts(lm, [[1] * length, [2]], tokenizer, new)  # noqa: E731
    if length + new > lm.config.n_positions:
        refused(call, ValueError, "positions. Shorten")
    else:
        assert call().input_ids.shape[1] <= length + new


@given(st.lists(st.integers(1, 12), max_size=5), st.integers(-1, 8), st.tuples(st.integers(-1, 6), st.integers(-1, 9)))
@settings(max_examples=200, deadline=None)
def test_prompts_have_their_lengths_or_are_refused(lengths, n, tokens):
    low, high = tokens
    call = lambda: data.sample_prompts([[i] * k for i, k in enumerate(lengths)], n, tokens, seed=0)  # noqa: E731
    if n < 0 or not 1 <= low <= high:
        refused(call, ValueError, "can't take")
    elif max(lengths, default=0) < low + 2:
        refused(call, ValueError, "no sentence has")
    else:
        prompts = call()
        assert len(prompts) == n and all(low <= len(p) <= min(high, lengths[p[0]] - 2) for p in prompts)


PAIR_OF = st.tuples(st.integers(), st.integers())
VALUE = st.integers() | st.floats() | st.text(max_size=3) | st.booleans() | st.none() | PAIR_OF
NAMES = st.sampled_from(sorted(set(Preset.__dataclass_fields__) - {"artifacts", "name"}))


@given(st.dictionaries(NAMES, VALUE, max_size=3))
@example({"ppo_batch": 10**400})
@settings(max_examples=200, deadline=None)
def test_a_preset_makes_sense_or_is_refused(changes):
    preset = Preset(name="tiny", model="m", dataset="d", judge="vader")
    try:
        preset = replace(preset, **changes)
    except ValueError as error:
        assert any(f"preset.{name} is" in str(error) for name in changes)
        return
    for stage in ("sft", "reward_model", "policy"):
        for name, value in preset.settings(stage).items():
            assert not isinstance(value, float) or value == value, name
            assert not isinstance(value, (int, float)) or value >= 0 or name == "ppo_no_eos_score", name
    assert preset.ppo_prompt_tokens[0] <= preset.ppo_prompt_tokens[1]


class Split(dict):
    column_names = property(list)


NO_TEXT, LABELS = st.sampled_from([None, 5, "", "\ud800", b"x"]), st.sampled_from([0, 1, 1.0, True, 2, -1, None, "1"])
ROWS = st.lists(st.tuples(TEXT | NO_TEXT, LABELS))


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_sentences_are_right_or_the_row_is_named(rows):
    def is_text(x):
        return isinstance(x, str) and x.strip() and "\ud800" not in x

    bad_text = next((i for i, (x, _) in enumerate(rows) if not is_text(x)), None)
    bad_label = next((i for i, (_, y) in enumerate(rows) if y not in (0, 1)), None)
    split = Split(sentence=[x for x, _ in rows], label=[y for _, y in rows])
    call = lambda: data.check_sentences(split, "mine")  # noqa: E731
    if bad_text is not None:
        refused(call, ValueError, rf"mine, row {bad_text}: the sentence")
    elif bad_label is not None:
        refused(call, ValueError, rf"mine, row {bad_label}: label")
    elif len({y for _, y in rows}) < 2:
        refused(call, ValueError, "both classes")
    else:
        call()


def test_every_script_loads(w):
    rows = [{"sentence": f" {text} ", "label": i % 2} for i, text in enumerate(SCRIPTS * 2)]
    splits = data.load_sentences(w.dataset(rows))
    loaded = [text for split in splits.values() for text in split["sentence"]]
    assert sorted(loaded) == sorted(text.strip() for text in SCRIPTS * 2)


@pytest.mark.parametrize("text", ["a", "the film is good , and ", "é", "👩‍👧", "!", "a \u3000", "\0", "字"], ids=ascii)
def test_a_sentence_of_100_000_characters(w, text):
    """Within the 30 seconds of `no_hang`, all the way from the file to the judges."""
    long = (text * 100_000)[:99_999] + "."
    splits = data.load_sentences(w.dataset([{"sentence": long, "label": 0}, *MANY]))
    (found,) = [x for split in splits.values() for x in split["sentence"] if x.endswith(long[-9:]) and len(x) > 999]
    (row,) = data.encode([found], w.tokenizer, 64)
    assert found == long.strip() and len(row) == 64
    assert w.rm(*data.pad([row, [5, 0]], 0)).isfinite().all() and math.isfinite(evaluation.mean_nll(w.lm, [row], 0))
    refused(lambda: sample_rollouts(w.policy, [long], w.tokenizer, 4), ValueError, "64 positions")
    assert set(evaluation.vader_judge([long])) | set(evaluation.grammar_judge([long])) <= {0.0, 1.0}
    assert evaluation.distinct_n([long]) <= 1


MAYBE = st.none() | TEXT


CHOICE = st.fixed_dictionaries({"chosen": MAYBE, "rejected": MAYBE, "prompt": MAYBE})


@given(st.lists(CHOICE, min_size=1, max_size=6), st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_preferences_are_whole_or_left_out(rows, dialogue):
    if dialogue:
        sides = ("chosen", "rejected")
        rows = [{side: row[side] and preferences.ASSISTANT + row[side] for side in sides} for row in rows]
    try:
        pairs = preferences.to_preferences(Dataset.from_list(rows))
    except ValueError as error:
        assert re.search("no row|columns", str(error))
        return
    for pair in pairs:
        assert all(text.strip() for text in pair.values()) and pair["chosen"].strip() != pair["rejected"].strip()
