"""data.py and presets.py."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers import data
from rlhf_helpers.presets import TINY, load_preset

ROOT = Path(__file__).parents[2]
GOOD = [{"text": f"the film is good {i} ", "label": i % 2} for i in range(60)]


def test_a_text_column_is_stripped_and_missing_splits_are_cut(data_set, capsys):
    loaded = data.load_sentences(data_set(GOOD))
    assert set(loaded) == {"train", "validation", "test"} and len(loaded["train"]) < 60
    assert all(s == s.strip() for s in loaded["train"]["sentence"])
    assert "no split 'validation'" in capsys.readouterr().out


def test_real_sst2_through_the_real_code(hub_cache):
    code = (
        "from rlhf_helpers.data import *; d = load_sentences('stanfordnlp/sst2');"
        "print({k: len(v) for k, v in d.items()});"
        "t = load_tokenizer('openai-community/gpt2'); r = encode(d['validation']['sentence'], t, 64);"
        "print(t.pad_token_id, all(x.count(50256) == 1 for x in r))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "'train': 67349, 'validation': 872, 'test': 1821" in done.stdout, done.stderr[-500:]
    assert "50256 True" in done.stdout


def test_whole_sentences_end_like_one():
    sentences = ["a film .", "of saucy", "what a film !", "why ?", ". no"]
    assert data.whole_sentences(sentences) == ["a film .", "what a film !", "why ?"]


def test_each_row_has_one_supervised_end(tokenizer):
    rows = data.encode(["the film is good", "bad"], tokenizer, 32)
    ids, mask = data.pad(rows, tokenizer.pad_token_id)
    labels = data.lm_labels(ids, mask)
    assert (labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]
    assert ((labels == -100) == (mask == 0)).all()
    assert data.encode(["the film is good"], tokenizer, 3) == [rows[0][:3]]
    assert data.encode(["the film is good"], tokenizer, end=False) == [rows[0][:-1]]


SCRIPTS = ["naïve фильм !", "فيلم 电影很好。", "e\u0301\u0301", "👩\u200d👩\u200d👧", "\u202egnik\u202c"]
SCRIPTS += ["\0\x1b[31m\x7f", "a <|endoftext|> b", "\n\t\r\n .", "a" * 300]
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
        assert row.count(tokenizer.eos_token_id) == 1
        back = tokenizer.decode(row[:-1], clean_up_tokenization_spaces=False)
        assert back.removeprefix(" ") == text.removeprefix(" ")  # tiny's tokenizer puts a space before


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


def test_hardware_and_variables_choose_the_preset_and_it_is_printed(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert load_preset().name == "tiny" and "no accelerator here" in capsys.readouterr().out
    for name, value in {"PRESET": "gpt2", "SEED": "7", "MODEL": "some/model", "ARTIFACTS": "elsewhere"}.items():
        monkeypatch.setenv(f"RLHF_{name}", value)
    preset = load_preset()
    assert (preset.seed, preset.model, preset.folder("sft")) == (7, "some/model", Path("elsewhere/gpt2/sft"))
    assert "RLHF_PRESET is set" in capsys.readouterr().out


@pytest.fixture
def preset(tmp_path):
    """With a finished model of notebook 1, in form."""
    preset = replace(load_preset("tiny"), artifacts=tmp_path)
    folder = preset.folder("sft")
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "model.safetensors", "checkpoint.safetensors", "config.json"):
        (folder / name).write_text(name)
    settings = preset.settings("sft") | {"made_from": {"base": "0123"}}
    (folder / "artifact.json").write_text(json.dumps({"settings": settings, "steps": 7}))
    return preset


def test_a_missing_model_names_its_notebook(preset):
    with pytest.raises(FileNotFoundError, match="2-RM Training.ipynb"):
        preset.require("reward_model")


def test_a_model_of_other_settings_is_refused_with_both_values(preset):
    assert replace(preset, ppo_lr=1.0).require("sft") == preset.folder("sft")  # made no difference to it
    with pytest.raises(ValueError, match=r"sft_lr': \(0.003, 0.25\).*1-SFT"):
        replace(preset, sft_lr=0.25).require("sft")


def test_models_are_told_apart_by_their_weights_and_vocabulary(preset):
    def made_from():
        return preset.settings("reward_model", made_from=("sft",))["made_from"]["sft"]

    assert made_from() == "6e45070ba915b49b", "checkpoints of earlier versions would be refused"
    for changed in ("config.json", "checkpoint.safetensors", "tokenizer.json", "model.safetensors"):
        before = made_from()
        (preset.folder("sft") / changed).write_text("others")
        assert (made_from() != before) == (changed in ("tokenizer.json", "model.safetensors")), changed
