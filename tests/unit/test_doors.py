"""The doors: configuration, models, data, prompts, pairs and judge. Bad input is named there, before any long work."""

import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_helpers import __main__, data, judges, ppo
from rlhf_helpers.beyond import judging, preferences
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.presets import TINY, load_preset
from rlhf_helpers.rollouts import sample_rollouts

BASE = TINY.resolve() / "base"


@pytest.mark.parametrize("variable, value, named", [
    ("PRESET", "Tiny ", "unknown preset 'Tiny '.*tiny, gpt2"),
    ("SEED", "seven", "seed"), ("SEED", "-1", "seed"), ("MODEL", " ", "model"),
])  # fmt: skip
def test_an_environment_variable_that_makes_no_sense(monkeypatch, variable, value, named):
    monkeypatch.setenv(f"RLHF_{variable}", value)
    with pytest.raises(ValueError, match=named):
        load_preset()


@pytest.mark.parametrize("field, value", [
    ("max_tokens", 1), ("sft_batch", 0), ("sft_lr", float("nan")), ("sft_lr", 0.0), ("rm_epochs", 1.5),
    ("ppo_prompt_tokens", (2,)), ("ppo_beta", -0.1), ("ppo_lam", 1.1),
    ("precision", "fp16"), ("device", "gpu"), ("judge", "me"),
])  # fmt: skip
def test_a_field_that_makes_no_sense(field, value):
    with pytest.raises(ValueError, match=f"(?s)1 validation error.*{field}"):
        replace(load_preset("tiny"), **{field: value})


def test_a_bad_preset_ends_the_command_in_one_line(monkeypatch):
    monkeypatch.setenv("RLHF_PRESET", "huge")
    monkeypatch.setattr("sys.argv", ["rlhf_helpers", "sft"])
    with pytest.raises(SystemExit, match="unknown preset 'huge'"):
        __main__.main()


@pytest.mark.parametrize("load", [data.load_sentences, data.load_tokenizer, load_lm])
def test_a_hub_out_of_reach_names_the_ways_out(load, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="(?s)nobody/nothing-here.*RLHF_PRESET=tiny.*HF_TOKEN"):
        load("nobody/nothing-here")


def config(**changes):
    """The embedded model's config.json with some changes."""
    return json.dumps(json.loads((BASE / "config.json").read_text()) | changes).encode()


def gpt2_of_100_words():
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2))


def encoder():
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return BertForMaskedLM(BertConfig(vocab_size=1600, **small))


WEIGHTS = (BASE / "model.safetensors").read_bytes()
NO_END = {"tokenizer_config.json": b'{"tokenizer_class": "TokenizersBackend"}'}
# how to load it, what is changed about the embedded model (files, or another model saved over it), what is said
MODELS = {
    "no tokenizer": (
        data.load_tokenizer, {"tokenizer.json": None, "tokenizer_config.json": None}, "no words.*tokenizer.json",
    ),
    "no end": (data.load_tokenizer, NO_END, "no end-of-text"),
    "more words than the model": (data.load_tokenizer, gpt2_of_100_words, "1600 tokens.* embeds 100"),
    "no weights": (load_lm, {"model.safetensors": None}, "no file named model.safetensors.*Ways out.*gated.*HF_TOKEN"),
    "cut off": (load_lm, {"model.safetensors": WEIGHTS[:5000]}, "Safetensor"),
    "more layers than weights": (load_lm, {"config.json": config(n_layer=5)}, "lacks 2. weights of the model"),
    "an encoder": (load_lm, encoder, "later tokens.*encoder"),
}  # fmt: skip


@pytest.mark.parametrize("load, changes, named", MODELS.values(), ids=MODELS)
def test_a_model_or_tokenizer_that_will_not_do(load, changes, named, tmp_path):
    folder = shutil.copytree(BASE, tmp_path / "model")
    for name, content in {} if callable(changes) else changes.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    if callable(changes):
        changes().save_pretrained(folder)
    with pytest.raises((ValueError, ConnectionError), match=f"(?s){named}"):
        load(str(folder))


def test_what_is_no_reward_model_policy_or_judge(tmp_path):
    folder = shutil.copytree(BASE, tmp_path / "model")
    with pytest.raises(ValueError, match="lacks 1 weights"):
        RewardModel.from_pretrained(folder)
    with pytest.raises(ConnectionError, match="value_head"):
        PolicyWithValueHead.from_pretrained(folder)
    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, folder / "value_head.safetensors")
    with pytest.raises(ValueError, match="can't load the value head"):
        PolicyWithValueHead.from_pretrained(folder)
    GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="2 labels"):
        RewardModel.from_pretrained(tmp_path / "two")
    with pytest.raises(ConnectionError, match="can't load the judge"):
        judges.classifier_judge("/no/such")


PAIR = [{"sentence": "a film .", "label": 0}, {"sentence": "the film .", "label": 1}]
DATASETS = {
    "wrong columns": ([{"review": "x", "stars": 1}], "no column .*'label', 'sentence'.*Rename"),
    "labels that are words": ([{"sentence": "x", "label": "pos"}] * 4, "row 0: label 'pos'"),
    "one class only": ([{"sentence": "x", "label": 0}] * 30, "both classes"),
    "too few rows to cut from": (PAIR, "2 rows.*20 are needed"),
    "a row is None": ([*PAIR, {"sentence": None, "label": 0}], "row 2: the sentence is None, not text"),
    "an empty row": ([*PAIR, {"sentence": " ", "label": 1}], "row 2: the sentence is empty"),
    "no JSON": (b"{not json", "can't load the data set"),
}


@pytest.mark.parametrize("rows, named", DATASETS.values(), ids=DATASETS)
def test_data_that_will_not_do(rows, named, data_set):
    with pytest.raises(ValueError, match=named):
        data.load_sentences(data_set(rows))


def test_splits_sentences_and_prompts_that_will_not_do(data_set, tokenizer, lm):
    with pytest.raises(ValueError, match="no split 'train'"):
        data.load_sentences(data_set(PAIR, split="test"))
    with pytest.raises(ValueError, match="none of 2 training rows .*sft_whole_sentences=False"):
        data.whole_sentences(["of saucy", "no end"])
    with pytest.raises(ValueError, match="no sentence has 4 tokens"):
        data.sample_prompts([[1, 2, 3]], 1, (2, 8), seed=0)
    with pytest.raises(ValueError, match=r"\(8, 2\)"):
        data.sample_prompts([[1] * 9], 1, (8, 2), seed=0)
    for prompts, named in (([], "no prompt"), ([[1], []], "an empty one"), ([[1] * 30], "30 tokens; 28 fit")):
        with pytest.raises(ValueError, match=named):
            sample_rollouts(lm, prompts, tokenizer, 4)


def test_pairs_and_shapes_that_will_not_do():
    for row, named in (({"text": "x"}, "columns"), ({"prompt": "x", "chosen": "a", "rejected": "a"}, "no row")):
        with pytest.raises(ValueError, match=named):
            preferences.to_preferences(Dataset.from_list([row]))
    for prompts, responses, named in (([[1], []], [[2], [2]], "pair 1"), ([[1], [2]], [[3]], "2 prompts and 1")):
        with pytest.raises(ValueError, match=named):
            preferences.given_responses(prompts, responses, 0)
    with pytest.raises(ValueError, match="of one shape"):
        ppo.kl_penalised_rewards(torch.zeros(5, 1), torch.zeros(5, 2), torch.zeros(5, 2), torch.ones(5, 2), beta=0.1)
    with pytest.raises(ValueError, match=r"row 0 of the responses has no \['theirs'\]"):
        judging.questions([{"prompt": "x", "ours": "a", "theirs": None}], "ours", "theirs")
