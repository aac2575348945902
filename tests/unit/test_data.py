"""data.py and presets.py."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from rlhf_helpers import data
from rlhf_helpers.presets import TINY, load_preset

ROOT = Path(__file__).parents[2]
HUB_CACHE = ROOT.parent / "shared" / "hf_home"
GOOD = [{"sentence": f"the film is good {i} ", "label": i % 2} for i in range(60)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes rows as a data set folder of json lines; its own cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(rows, split="train"):
        path = tmp_path / "set"
        path.mkdir(exist_ok=True)
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_load_strips_and_cuts_missing_splits(folder, capsys):
    loaded = data.load_sentences(folder(GOOD))
    assert set(loaded) == {"train", "validation", "test"} and len(loaded["train"]) < 60
    assert all(s == s.strip() for s in loaded["train"]["sentence"])
    assert "no split 'validation'" in capsys.readouterr().out


def test_a_text_column_will_do(folder):
    rows = [{"text": row["sentence"], "label": row["label"]} for row in GOOD]
    assert "sentence" in data.load_sentences(folder(rows))["train"].column_names


def test_a_data_set_without_train_is_named(folder):
    with pytest.raises(ValueError, match="no split 'train'"):
        data.load_sentences(folder(GOOD, split="test"))


@pytest.mark.parametrize("what", ["load_sentences", "load_tokenizer", "load_lm"])
def test_hub_out_of_reach_names_the_ways_out(what):
    module = "models" if what == "load_lm" else "data"
    code = f"from rlhf_helpers.{module} import {what}; {what}('nobody/nothing-here')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ConnectionError" in done.stderr and "RLHF_PRESET=tiny" in done.stderr and "HF_TOKEN" in done.stderr


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    GPT2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for name in ("eos_token", "pad_token"):
        config.pop(name, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no end-of-text"):
        data.load_tokenizer(str(tmp_path))


def test_each_row_has_one_supervised_end(tokenizer):
    rows = data.encode(["the film is good", "bad"], tokenizer, 32)
    ids, mask = data.pad(rows, tokenizer.pad_token_id)
    labels = data.lm_labels(ids, mask)
    assert (labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]
    assert ((labels == -100) == (mask == 0)).all()
    assert data.encode(["the film is good"], tokenizer, 3) == [rows[0][:3]]
    assert data.encode(["the film is good"], tokenizer, end=False) == [rows[0][:-1]]


def test_pad_on_both_sides():
    ids, mask = data.pad([[1, 2, 3], [4]], 9, side="left")
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert data.pad([[1, 2, 3], [4]], 9)[0].tolist() == [[1, 2, 3], [4, 9, 9]]


def test_buckets_are_a_permutation_that_wastes_little():
    lengths = [i * 7919 % 40 + 1 for i in range(500)]
    batches = data.length_bucketed(lengths, 32, seed=1)
    assert sorted(i for b in batches for i in b) == list(range(500))
    assert batches == data.length_bucketed(lengths, 32, seed=1) != data.length_bucketed(lengths, 32, seed=2)
    assert sum(len(b) * max(lengths[i] for i in b) for b in batches) < 1.15 * sum(lengths)


def test_prompts_leave_a_word_and_repeat_late():
    rows = [[i] * n for i, n in enumerate((4, 5, 9, 12))]
    prompts = data.sample_prompts(rows, 40, (2, 8), seed=0)
    assert len(prompts) == 40 and {p[0] for p in prompts[:4]} == {0, 1, 2, 3}
    assert all(2 <= len(p) <= min(8, len(rows[p[0]]) - 2) for p in prompts)


@pytest.fixture
def clean(monkeypatch):
    for name in ("PRESET", "SEED", "MODEL", "DATASET", "ARTIFACTS"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)
    return monkeypatch


def test_the_choice_of_preset_is_printed(clean, capsys):
    clean.setattr("torch.cuda.is_available", lambda: False)
    clean.setattr("torch.backends.mps.is_available", lambda: False)
    assert load_preset().name == "tiny"
    assert "no accelerator here" in capsys.readouterr().out
    clean.setenv("RLHF_PRESET", "gpt2")
    assert load_preset().name == "gpt2" and "RLHF_PRESET is set" in capsys.readouterr().out


def test_environment_variables_replace_fields(clean):
    clean.setenv("RLHF_SEED", "7")
    clean.setenv("RLHF_MODEL", "some/model")
    clean.setenv("RLHF_ARTIFACTS", "elsewhere")
    preset = load_preset("tiny")
    assert (preset.seed, preset.model, preset.folder("sft")) == (7, "some/model", Path("elsewhere/tiny/sft"))


def test_missing_artifacts_name_the_notebook(clean, tmp_path):
    clean.setenv("RLHF_ARTIFACTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="2-RM Training.ipynb"):
        load_preset("tiny").require("reward_model")


def test_a_model_of_other_settings_is_refused_with_both_values(clean, tmp_path):
    preset = replace(load_preset("tiny"), artifacts=tmp_path)
    preset.folder("sft").mkdir(parents=True)
    settings = preset.settings("sft") | {"made_from": {"base": "0123"}}
    (preset.folder("sft") / "artifact.json").write_text(json.dumps({"settings": settings, "steps": 7}))
    assert replace(preset, ppo_lr=1.0).require("sft") == preset.folder("sft")  # made no difference to it
    with pytest.raises(ValueError, match=r"sft_lr': \(0.003, 0.25\).*1-SFT"):
        replace(preset, sft_lr=0.25).require("sft")


def test_models_are_told_apart_by_their_weights_and_vocabulary(clean, tmp_path):
    """The value that the checkpoints of earlier runs hold: of the digests of files, in the order of their names."""
    preset = replace(load_preset("tiny"), artifacts=tmp_path)
    folder = preset.folder("sft")
    folder.mkdir(parents=True)
    assert preset.settings("reward_model", made_from=("sft",))["made_from"] == {"sft": None}
    for name in ("tokenizer.json", "model.safetensors", "checkpoint.safetensors", "config.json", "artifact.json"):
        (folder / name).write_text(name)
    parts = "".join(hashlib.sha256(name.encode()).hexdigest() for name in ("model.safetensors", "tokenizer.json"))
    expected = hashlib.sha256(parts.encode()).hexdigest()[:16]
    assert preset.settings("reward_model", made_from=("sft",))["made_from"] == {"sft": expected}


def test_whole_sentences_end_like_one():
    sentences = ["a film .", "of saucy", "what a film !", "why ?", ". no"]
    assert data.whole_sentences(sentences) == ["a film .", "what a film !", "why ?"]


SCRIPTS = [
    "naïve café .", "Ψάπφω .", "фильм !", "فيلم رائع", "चलचित्र", "电影很好。", "ፊልም",
    "e\u0301\u0301" * 9, "👩‍👩‍👧‍👦 👍🏽",
    "\u202egnikcab\u202c .", "a\u200db\u200c\ufeff", "\0", "\x01\x1b[31m\x7f", "a <|endoftext|> b",
    "\n\t\r\n .", "a" * 300,
]  # fmt: skip
TEXT = st.sampled_from(SCRIPTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(texts=st.lists(TEXT, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_and_ends_once(texts):
    tokenizer = data.load_tokenizer(str(TINY / "base"))
    rows = data.encode(texts, tokenizer, 60)
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows):
        if row[-1] != tokenizer.eos_token_id:
            assert len(row) == 60, "cut, and yet shorter than it may be"
            continue
        labels = data.lm_labels(*data.pad([row, [5] * 60], tokenizer.pad_token_id))
        assert (labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 0]
        back = tokenizer.decode(row[:-1], clean_up_tokenization_spaces=False)
        assert back.removeprefix(" ") == text.removeprefix(" ")  # tiny's tokenizer puts a space before


@pytest.mark.skipif(not HUB_CACHE.exists(), reason="no Hub cache beside the project")
def test_real_sst2_through_the_real_code(tmp_path):
    shutil.copytree(HUB_CACHE, tmp_path / "hf", symlinks=True)  # the libraries write lock files
    code = (
        "from rlhf_helpers.data import *; d = load_sentences('stanfordnlp/sst2');"
        "print({k: len(v) for k, v in d.items()});"
        "t = load_tokenizer('openai-community/gpt2'); r = encode(d['validation']['sentence'], t, 64);"
        "print(t.pad_token_id, all(x.count(50256) == 1 for x in r))"
    )
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "'train': 67349, 'validation': 872, 'test': 1821" in done.stdout, done.stderr[-500:]
    assert "50256 True" in done.stdout
