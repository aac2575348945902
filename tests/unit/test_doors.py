"""The doors: configuration, models, data, prompts, pairs and judge. Bad input is named there, before any long work."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_helpers import data, judges
from rlhf_helpers.beyond import judging, preferences
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.presets import TINY, load_preset
from rlhf_helpers.rollouts import sample_rollouts

BASE = Path(__file__).parents[2] / "rlhf_helpers" / TINY.name / "base"
SMALL = dict(vocab_size=1600, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)


@pytest.fixture
def preset(monkeypatch):
    """The preset, with environment variables as a reader may set them."""
    for name in ("PRESET", "SEED", "MODEL", "DATASET", "ARTIFACTS"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)

    def load(**variables):
        for name, value in ({"RLHF_PRESET": "tiny"} | variables).items():
            monkeypatch.setenv(name, str(value))
        return load_preset()

    return load


@pytest.mark.parametrize(
    "variables, named",
    [
        ({"RLHF_PRESET": "Tiny "}, "unknown preset 'Tiny '.*tiny, gpt2"),
        ({"RLHF_SEED": "1.5"}, "seed"),
        ({"RLHF_SEED": "seven"}, "seed"),
        ({"RLHF_SEED": -1}, "seed"),
        ({"RLHF_SEED": 2**32}, "seed"),
        ({"RLHF_MODEL": " "}, "model"),
    ],
)
def test_an_environment_variable_that_makes_no_sense(preset, variables, named):
    with pytest.raises(ValueError, match=named):
        preset(**variables)


@pytest.mark.parametrize(
    "field, values",
    {
        "max_tokens": (1, -64),
        "sft_examples": (0,),
        "sft_batch": (0, "many"),
        "sft_lr": (float("nan"), float("inf"), 0, -1e-3),
        "rm_epochs": (1.5, -2),
        "ppo_prompt_tokens": ((0, 4), (2,), 4),
        "ppo_beta": (-0.1,),
        "ppo_lam": (1.1,),
        "ppo_no_eos_score": (None,),
        "precision": ("fp16",),
        "device": ("gpu", ""),
        "judge": ("me", None),
    }.items(),
)
def test_a_field_that_makes_no_sense(preset, field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"(?s)1 validation error.*{field}"):
            replace(preset(), **{field: value})


def test_a_bad_preset_ends_the_command_in_one_line(monkeypatch):
    from rlhf_helpers import __main__

    monkeypatch.setenv("RLHF_PRESET", "huge")
    monkeypatch.setattr("sys.argv", ["rlhf_helpers", "sft"])
    with pytest.raises(SystemExit, match="unknown preset 'huge'"):
        __main__.main()


@pytest.fixture
def model(tmp_path):
    def make(*removed, other=None, config=None, files=None):
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

    return make


EVIL = {"model_type": "foo", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Model")}
TOKENIZERS = {
    "no tokenizer": (["tokenizer.json", "tokenizer_config.json"], {}, "no words.*tokenizer.json"),
    "broken": ([], {"files": {"tokenizer.json": b"{oops"}}, "can't load the tokenizer"),
    "no config": (["config.json"], {}, "can't load the tokenizer"),
    "code of its own": ([], {"config": EVIL}, "can't load the tokenizer.*custom code"),
    "more words than the model": (
        ["model.safetensors"], {"other": lambda: GPT2LMHeadModel(GPT2Config(**SMALL | {"vocab_size": 100}))},
        "1600 tokens.* embeds 100",
    ),
}  # fmt: skip


def made(model, removed, changes):
    return model(*removed, **{name: x() if callable(x) else x for name, x in changes.items()})


@pytest.mark.parametrize("removed, changes, named", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_will_not_do(model, removed, changes, named):
    with pytest.raises(ValueError, match=f"(?s){named}"):
        data.load_tokenizer(made(model, removed, changes))


def tiny_bert():
    return BertForMaskedLM(BertConfig(
        vocab_size=1600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))  # fmt: skip


MODELS = {
    "no weights": (["model.safetensors"], {}, "no file named model.safetensors.*Ways out"),
    "cut off weights": (
        [], {"files": {"model.safetensors": (BASE / "model.safetensors").read_bytes()[:5000]}}, "Safetensor",
    ),
    "weights of another width": ([], {"config": {"n_embd": 72}}, "can't load the model"),
    "more layers than weights": ([], {"config": {"n_layer": 5}}, "lacks 2. weights of the model"),
    "code of its own": ([], {"config": EVIL}, "can't load the model.*custom code"),
    "an encoder": (["model.safetensors"], {"other": tiny_bert}, "later tokens.*encoder"),
}  # fmt: skip


@pytest.mark.parametrize("removed, changes, named", MODELS.values(), ids=MODELS)
def test_a_model_that_will_not_do(model, removed, changes, named):
    with pytest.raises((ValueError, ConnectionError), match=f"(?s){named}"):
        load_lm(made(model, removed, changes))


def test_what_is_no_reward_model_policy_or_judge(model, tmp_path):
    folder = model()
    with pytest.raises(ValueError, match="lacks 1 weights"):
        RewardModel.from_pretrained(folder)
    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, Path(folder, "value_head.safetensors"))
    with pytest.raises(ValueError, match="can't load the value head"):
        PolicyWithValueHead.from_pretrained(folder)
    GPT2ForSequenceClassification(GPT2Config(**SMALL)).save_pretrained(tmp_path / "two")
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
    "half a surrogate pair": (b'{"sentence": "a \\ud800 b", "label": 1}\n', "can't load the data set"),
}  # fmt: skip


@pytest.mark.parametrize("rows, named", DATASETS.values(), ids=DATASETS)
def test_data_that_will_not_do(rows, named, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    content = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        data.load_sentences(str(tmp_path / "set"))


def test_sentences_and_prompts_that_will_not_do(tokenizer, lm):
    with pytest.raises(ValueError, match="none of 2 training rows .*sft_whole_sentences=False"):
        data.whole_sentences(["of saucy", "no end"])
    with pytest.raises(ValueError, match="no sentence has 4 tokens"):
        data.sample_prompts([[1, 2, 3]], 1, (2, 8), seed=0)
    with pytest.raises(ValueError, match=re.escape("(8, 2)")):
        data.sample_prompts([[1] * 9], 1, (8, 2), seed=0)
    for prompts, named in (([], "no prompt"), ([[1], []], "an empty one"), ([[1] * 30], "30 tokens; 28 fit")):
        with pytest.raises(ValueError, match=named):
            sample_rollouts(lm, prompts, tokenizer, 4)


TLDR = {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
SHP = {"history": "x", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
JUDGED = {"query": "x", "postprocessed_response": "a", "reference_responses": "b", "preferred": "both"}
NO_PREFERENCE = {
    "other columns": ({"text": "x"}, "columns"),
    "numbers": ({"prompt": 1, "chosen": 2, "rejected": 3}, "no row"),
    "HH: None": ({"chosen": "\n\nAssistant: a", "rejected": None}, "no row"),
    "HH: another prompt": ({"chosen": "x\n\nAssistant: a", "rejected": "y\n\nAssistant: b"}, "no row"),
    "SHP: a third label": (SHP | {"labels": 2}, "no row"),
    "SHP: an answer is None": (SHP | {"human_ref_A": None}, "no row"),
    "TL;DR: a post without title": (TLDR, "no row"),
    "TL;DR: no choice": (TLDR | {"choice": None}, "no row"),
    "judged summaries: another verdict": (JUDGED, "no row"),
}


@pytest.mark.parametrize("row, named", NO_PREFERENCE.values(), ids=NO_PREFERENCE)
def test_what_is_no_preference(row, named):
    with pytest.raises(ValueError, match=named):
        preferences.to_preferences(Dataset.from_list([row]))


def test_pairs_and_groups_that_will_not_do():
    for prompts, responses, named in (([[1], []], [[2], [2]], "pair 1"), ([[1], [2]], [[3]], "2 prompts and 1")):
        with pytest.raises(ValueError, match=named):
            preferences.given_responses(prompts, responses, 0)
    with pytest.raises(ValueError, match="of one shape"):
        preferences.dpo_loss(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), beta=0.1)
    for n, k in ((6, 4), (4, 1)):
        with pytest.raises(ValueError, match="not groups of"):
            preferences.rloo_advantages(torch.zeros(n), k)
    with pytest.raises(ValueError, match=r"row 0 of the responses has no \['theirs'\]"):
        judging.questions([{"prompt": "x", "ours": "a", "theirs": None}], "ours", "theirs")
