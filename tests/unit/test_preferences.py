"""Pairs in one form, DPO against TRL's, rankings and RLOO against their equations."""

import copy
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import Dataset, load_dataset

from rlhf_helpers import data
from rlhf_helpers.beyond import preferences
from rlhf_helpers.checks import check
from rlhf_helpers.data import encode
from rlhf_helpers.evaluation import response_logprob
from rlhf_helpers.rollouts import sample_rollouts
from rlhf_helpers.tiny import dialogues, posts

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def test_given_responses_are_laid_out_as_sampled_ones(lm, tokenizer, prompts):
    sampled = sample_rollouts(lm, prompts, tokenizer, 6)
    written = [ids[m == 1].tolist() for ids, m in zip(sampled.response_ids, sampled.response_mask)]
    laid_out = preferences.given_responses(prompts, written, tokenizer.pad_token_id)
    assert torch.equal(laid_out.input_ids, sampled.input_ids)
    assert torch.equal(laid_out.attention_mask, sampled.attention_mask)
    assert torch.allclose(response_logprob(lm, laid_out), sampled.logprobs.sum(1), atol=1e-4)


def test_response_loss_equals_transformers_own(lm):
    prompts, responses = [[1, 2], [3, 4, 6]], [[5, 9, 8, 0], [8, 0]]
    expected = sum(  # row by row, without padding; the labels of the prompt are masked
        lm(input_ids=torch.tensor([p + r]), labels=torch.tensor([[-100] * len(p) + r])).loss * len(r)
        for p, r in zip(prompts, responses)
    ) / sum(map(len, responses))
    ours = preferences.response_loss(lm, preferences.given_responses(prompts, responses, pad_id=0))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_dpo_loss_equals_trls(lm, other_lm, tokenizer, tmp_path):
    """From text on: TRL's tokens, batch and loss against ours."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    rows = [("the film", " is good", " is dull and bad"), ("it is not a plot", " , but bright", " .")]
    rows = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row)) for row in rows])
    arguments = trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False)
    trainer = trl.DPOTrainer(lm, other_lm, arguments, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer._compute_loss(lm.eval(), batch, return_outputs=False)

    prompts = encode(rows["prompt"], tokenizer, end=False)
    sides = [preferences.given_responses(prompts, encode(rows[x], tokenizer), 0) for x in ("chosen", "rejected")]
    logprobs = [response_logprob(model, side) for model in (lm, other_lm) for side in sides]
    loss, _ = preferences.dpo_loss(*logprobs, beta=0.3)
    assert torch.isclose(loss, expected, atol=1e-5)


HUMAN = "\n\nHuman: which film ?\n\nAssistant:"
POST = {"subreddit": "films", "title": "t", "post": "p"}
FORMS = {  # a row in which "a" is preferred to "b", and what makes it one without a preference
    "plain": ({"prompt": "x", "chosen": "a", "rejected": "b"}, {"chosen": " b "}),
    "no prompt": ({"prompt": "x", "chosen": "a", "rejected": "b"}, {"prompt": ""}),
    "missing": ({"prompt": "x", "chosen": "a", "rejected": "b"}, {"chosen": None}),
    "hh": ({"chosen": HUMAN + " a", "rejected": HUMAN + " b"}, {"rejected": "y\n\nAssistant: b"}),
    "shp": ({"history": "x", "human_ref_A": "b", "human_ref_B": "a", "labels": 0}, {"labels": 2}),
    "tldr": ({"info": POST, "summaries": [{"text": "b"}, {"text": "a"}], "choice": 1}, {"choice": 2}),
    "judged": (
        {"query": "x", "postprocessed_response": "b", "reference_responses": "a", "preferred": "reference"},
        {"preferred": "both"},
    ),
}


@pytest.mark.parametrize("row, without", FORMS.values(), ids=FORMS)
def test_every_form_becomes_one_and_rows_without_a_preference_are_left_out(row, without, capsys):
    (pair,) = preferences.to_preferences(Dataset.from_list([row, row | without]), "mine")
    assert (pair["chosen"].strip(), pair["rejected"].strip()) == ("a", "b")
    assert pair["prompt"] in ("x", HUMAN, "SUBREDDIT: r/films\n\nTITLE: t\n\nPOST: p\n\nTL;DR:")
    assert "mine: 1 of 2 rows" in capsys.readouterr().out


def test_made_up_pairs_are_rightly_ranked():
    pairs = preferences.to_preferences(dialogues.dialogues(300))
    assert len(pairs) == 300 and len(set(pairs["prompt"])) > 150
    for pair in pairs:
        better, worse = (dialogues.quality(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        assert better > worse, pair
    for pair in posts.comparisons(300):
        better, worse = (posts.facts_kept(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        longer = len(pair["rejected"].split()) > len(pair["chosen"].split())
        assert better == 1 and (worse < 1 or longer), pair


TEMPLATE = (  # in words of the small vocabulary: "bright" opens the user's turn, "dull" the assistant's
    "{% for m in messages %}{{ 'bright ' if m['role'] == 'user' else 'dull ' }}{{ m['content'] }} , {% endfor %}"
    "{% if add_generation_prompt %}dull {% endif %}"
)


def test_beyond_2_asks_a_chat_model_by_its_template_and_cuts_no_question(tokenizer):
    """By its own cells. A model without a template, as `tiny` is, runs in the notebook itself."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    page = {"re": re, "data": data, "check": check, "preferences": preferences, "tokenizer": tokenizer}
    for cell in nbformat.read(ROOT / "beyond" / "2-Preferences.ipynb", as_version=4).cells:
        if cell.id in ("chat-turns", "chat-ids", "chat-check"):
            exec(cell.source, page)
    said = [("user", "the film"), ("assistant", "is good ."), ("user", "which film ?")]
    asked = [{"role": role, "content": text} for role, text in said]
    whole, last = (
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        for turns in (asked, asked[-1:])
    )
    dialogue = "\n\nHuman: the film\n\nAssistant: is good .\n\nHuman: which film ?\n\nAssistant:"
    lengths = {len(whole): whole, len(whole) - 1: last, len(last): last, len(last) - 1: []}
    assert all(page["prompt_ids"](dialogue, room) == ids for room, ids in lengths.items())
    page["check_chat"]([whole])
    with pytest.raises(ValueError, match="1 prompts, such as number .1., are raw text.*prompt_ids"):
        page["check_chat"]([whole, encode([dialogue], tokenizer, end=False)[0]])


@pytest.mark.skipif(not (DATA / "hh-rlhf").exists(), reason="the real HH-RLHF is not here")
def test_the_real_hh_rlhf_loads():
    path = DATA / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    pairs = preferences.to_preferences(load_dataset("json", data_files=str(path), split="train"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert 0.98 * len(rows) < len(pairs) <= len(rows)
    chosen = {row["chosen"] for row in rows}
    assert all(pair["prompt"] + pair["chosen"] in chosen for pair in pairs)


@pytest.mark.skipif(not (DATA / "tldr").exists(), reason="the real TL;DR is not here")
def test_the_real_judged_summaries_load(capsys):
    path = DATA / "tldr" / "summaries-judged.csv.gz"
    rows = load_dataset("csv", data_files=str(path), split="train")
    pairs = preferences.to_preferences(rows, "TL;DR")
    assert 900 <= len(pairs) <= 1000 and "hold no preference" in capsys.readouterr().out
    references = {row["query"]: row for row in rows if row["preferred"] == "reference"}
    for pair in pairs:
        row = references.get(pair["prompt"])
        assert row is None or pair["chosen"] in (row["reference_responses"], row["postprocessed_response"])
    assert all(prompt.endswith("TL;DR:") for prompt in pairs["prompt"])
