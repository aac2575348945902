"""The doors: configuration, models, data, prompts, pairs and judge. Bad input is named there, before any long work."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_helpers import __main__, data, judges
from rlhf_helpers.beyond import judging, preferences
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.presets import TINY, load_preset
from rlhf_helpers.rollouts import sample_rollouts

BASE = Path(__file__).parents[2] / "rlhf_helpers" / TINY.name / "base"


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


@pytest.fixture
def model(tmp_path):
    def model(files=None, config=None, other=None):
        """The embedded model's folder with some files written over (None: removed), or with another model's."""
        folder = Path(shutil.copytree(BASE, tmp_path / "model"))
        for name, content in (files or {}).items():
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_bytes(content)
        if config is not None:
            changed = json.loads((folder / "config.json").read_text()) | config
            (folder / "config.json").write_text(json.dumps(changed))
        if other is not None:
            other().save_pretrained(folder)
        return str(folder)

    return model


def gpt2_of_100_words():
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2))


def bert():
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForMaskedLM(BertConfig(vocab_size=1600, **config))


TOKENIZERS = {
    "no tokenizer": ({"files": {"tokenizer.json": None, "tokenizer_config.json": None}}, "no words.*tokenizer.json"),
    "broken": ({"files": {"tokenizer.json": b"{oops"}}, "can't load the tokenizer"),
    "no config": ({"files": {"config.json": None}}, "can't load the tokenizer"),
    "no end": ({"files": {"tokenizer_config.json": b'{"tokenizer_class": "TokenizersBackend"}'}}, "no end-of-text"),
    "more words than the model": ({"other": gpt2_of_100_words}, "1600 tokens.* embeds 100"),
}
MODELS = {
    "no weights": ({"files": {"model.safetensors": None}}, "no file named model.safetensors.*Ways out"),
    "cut off": ({"files": {"model.safetensors": (BASE / "model.safetensors").read_bytes()[:5000]}}, "Safetensor"),
    "weights of another width": ({"config": {"n_embd": 72}}, "can't load the model"),
    "more layers than weights": ({"config": {"n_layer": 5}}, "lacks 2. weights of the model"),
    "an encoder": ({"other": bert}, "later tokens.*encoder"),
}


@pytest.mark.parametrize("changes, named", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_will_not_do(model, changes, named):
    with pytest.raises(ValueError, match=f"(?s){named}"):
        data.load_tokenizer(model(**changes))


@pytest.mark.parametrize("changes, named", MODELS.values(), ids=MODELS)
def test_a_model_that_will_not_do(model, changes, named):
    with pytest.raises((ValueError, ConnectionError), match=f"(?s){named}"):
        load_lm(model(**changes))


def test_what_is_no_reward_model_policy_or_judge(model, tmp_path):
    folder = model()
    with pytest.raises(ValueError, match="lacks 1 weights"):
        RewardModel.from_pretrained(folder)
    with pytest.raises(ConnectionError, match="value_head"):
        PolicyWithValueHead.from_pretrained(folder)
    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, Path(folder, "value_head.safetensors"))
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
    "three kinds of labels": ([*PAIR, {"sentence": "x", "label": 2}], "row 2: label 2"),
    "a label is missing": ([*PAIR, {"sentence": "x", "label": None}], "row 2: label None"),
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


def test_data_without_a_training_split(data_set):
    with pytest.raises(ValueError, match="no split 'train'"):
        data.load_sentences(data_set(PAIR, split="test"))


def test_sentences_and_prompts_that_will_not_do(tokenizer, lm):
    with pytest.raises(ValueError, match="none of 2 training rows .*sft_whole_sentences=False"):
        data.whole_sentences(["of saucy", "no end"])
    with pytest.raises(ValueError, match="no sentence has 4 tokens"):
        data.sample_prompts([[1, 2, 3]], 1, (2, 8), seed=0)
    with pytest.raises(ValueError, match=r"\(8, 2\)"):
        data.sample_prompts([[1] * 9], 1, (8, 2), seed=0)
    for prompts, named in (([], "no prompt"), ([[1], []], "an empty one"), ([[1] * 30], "30 tokens; 28 fit")):
        with pytest.raises(ValueError, match=named):
            sample_rollouts(lm, prompts, tokenizer, 4)


NO_PREFERENCE = {
    "other columns": ({"text": "x"}, "columns"),
    "HH: another prompt": ({"chosen": "x\n\nAssistant: a", "rejected": "y\n\nAssistant: b"}, "no row"),
    "SHP: a third label": ({"history": "x", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, "no row"),
    "TL;DR: no post": ({"info": {}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}, "no row"),
    "judged summaries: another verdict": (
        {"query": "x", "postprocessed_response": "a", "reference_responses": "b", "preferred": "both"}, "no row",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row, named", NO_PREFERENCE.values(), ids=NO_PREFERENCE)
def test_what_is_no_preference(row, named):
    with pytest.raises(ValueError, match=named):
        preferences.to_preferences(Dataset.from_list([row]))


def test_pairs_and_groups_that_will_not_do():
    for prompts, responses, named in (([[1], []], [[2], [2]], "pair 1"), ([[1], [2]], [[3]], "2 prompts and 1")):
        with pytest.raises(ValueError, match=named):
            preferences.given_responses(prompts, responses, 0)
    for n, k in ((6, 4), (4, 1)):
        with pytest.raises(ValueError, match="not groups of"):
            preferences.rloo_advantages(torch.zeros(n), k)
    with pytest.raises(ValueError, match="of one shape"):
        preferences.dpo_loss(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), beta=0.1)
    with pytest.raises(ValueError, match=r"row 0 of the responses has no \['theirs'\]"):
        judging.questions([{"prompt": "x", "ours": "a", "theirs": None}], "ours", "theirs")
