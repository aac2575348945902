"""Pairs in one form, DPO against TRL's, rankings and RLOO against their equations."""

import copy
import gzip
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from rlhf_helpers import data, ppo
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


def test_dpo_loss_equals_trls(lm, tokenizer, tmp_path):
    """From text on: TRL's tokens, batch and loss against ours."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    rows = [("the film", " is good", " is dull and bad"), ("it is not a plot", " , but bright", " .")]
    rows = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row)) for row in rows])
    reference = type(lm)(lm.config).eval()
    arguments = trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False)
    trainer = trl.DPOTrainer(lm, reference, arguments, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer._compute_loss(lm.eval(), batch, return_outputs=False)

    prompts = encode(rows["prompt"], tokenizer, end=False)
    sides = [preferences.given_responses(prompts, encode(rows[x], tokenizer), 0) for x in ("chosen", "rejected")]
    logprobs = [response_logprob(model, side) for model in (lm, reference) for side in sides]
    loss, _ = preferences.dpo_loss(*logprobs, beta=0.3)
    assert torch.isclose(loss, expected, atol=1e-5)


scores = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


@given(scores)
def test_ranking_loss_is_the_mean_over_pairs(r):
    r = torch.tensor(r)
    pairs = [-logsigmoid(r[i] - r[j]) for i, j in combinations(range(len(r)), 2)]
    assert torch.isclose(preferences.ranking_loss(r[None]), sum(pairs) / len(pairs), atol=1e-5)


@given(scores)
def test_rloo_leaves_one_out(r):
    expected = [x - (sum(r) - x) / (len(r) - 1) for x in r]
    two_prompts = torch.tensor(r + [10 * x for x in r])
    advantages = preferences.rloo_advantages(two_prompts, len(r))
    assert torch.allclose(advantages, torch.tensor(expected + [10 * x for x in expected]), atol=1e-3)


def test_rloo_leaves_the_value_head_alone(policy, prompts, collected, step_of):
    e = collected(policy, [prompt for prompt in prompts for _ in "ab"])
    one_a_response = preferences.rloo_advantages(e.rewards.sum(1), k=2)[:, None] * e.rollouts.response_mask
    e = replace(e, advantages=one_a_response)
    assert torch.allclose(e.advantages[::2, 0], -e.advantages[1::2, 0], atol=1e-5), "two responses, one advantage"
    weights = policy.value_head.weight.clone(), policy.lm.transformer.wte.weight.clone()
    step = step_of(torch.optim.SGD(policy.parameters(), lr=0.1))
    ppo.ppo_update(policy, e, step, epochs=1, minibatch=4, max_kl=1e9, value_coef=0.0)
    assert torch.equal(policy.value_head.weight, weights[0])
    assert not torch.equal(policy.lm.transformer.wte.weight, weights[1])


HUMAN = "\n\nHuman: which film ?\n\nAssistant:"
POST = {"subreddit": "films", "title": "t", "post": "p"}
FORMS = {
    "plain": {"prompt": "x", "chosen": "a", "rejected": "b"},
    "hh": {"chosen": HUMAN + " a", "rejected": HUMAN + " b"},
    "shp": {"history": "x", "human_ref_A": "b", "human_ref_B": "a", "labels": 0},
    "tldr": {"info": POST, "summaries": [{"text": "b"}, {"text": "a"}], "choice": 1},
    "judged": {"query": "x", "postprocessed_response": "b", "reference_responses": "a", "preferred": "reference"},
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_every_form_becomes_one(row):
    (pair,) = preferences.to_preferences(Dataset.from_list([row]))
    assert (pair["chosen"].strip(), pair["rejected"].strip()) == ("a", "b")
    assert pair["prompt"] in ("x", HUMAN, "SUBREDDIT: r/films\n\nTITLE: t\n\nPOST: p\n\nTL;DR:")


BROKEN = [
    {"prompt": "", "chosen": "a", "rejected": "b"},
    {"prompt": "x", "chosen": "a", "rejected": " a "},
    {"prompt": "x", "chosen": None, "rejected": "b"},
]


def test_rows_without_a_preference_are_left_out(capsys):
    (pair,) = preferences.to_preferences(Dataset.from_list([FORMS["plain"], *BROKEN]), "mine")
    assert pair["prompt"] == "x"
    assert "mine: 3 of 4 rows" in capsys.readouterr().out


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


def test_made_up_dialogues_are_in_hhs_form_and_rightly_ranked():
    pairs = preferences.to_preferences(dialogues.dialogues(300))
    assert len(pairs) == 300 and len(set(pairs["prompt"])) > 150
    for pair in pairs:
        better, worse = (dialogues.quality(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        assert better > worse, pair


def test_made_up_summaries_are_rightly_ranked():
    for pair in posts.comparisons(300):
        better, worse = (posts.facts_kept(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        longer = len(pair["rejected"].split()) > len(pair["chosen"].split())
        assert better == 1 and (worse < 1 or longer), pair


TEMPLATE = (  # in words of the small vocabulary: "bright" opens the user's turn, "dull" the assistant's
    "{% for m in messages %}{{ 'bright ' if m['role'] == 'user' else 'dull ' }}{{ m['content'] }} , {% endfor %}"
    "{% if add_generation_prompt %}dull {% endif %}"
)
LONG = "\n\nHuman: the film\n\nAssistant: is good .\n\nHuman: which film ?\n\nAssistant:"


@pytest.fixture(params=[None, TEMPLATE], ids=["no template", "template"])
def page(request, tokenizer):
    """The functions of Beyond 2 that lay out a dialogue, from its own cells."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = request.param
    names = {"re": re, "data": data, "check": check, "preferences": preferences, "tokenizer": tokenizer}
    for cell in nbformat.read(ROOT / "beyond" / "2-Preferences.ipynb", as_version=4).cells:
        if cell.id in ("chat-turns", "chat-ids", "chat-check"):
            exec(cell.source, names)
    return names


def test_a_dialogue_is_laid_out_by_the_chat_template_where_there_is_one(page):
    tokenizer = page["tokenizer"]
    ids = page["prompt_ids"](LONG, 1000)
    if tokenizer.chat_template:
        said = [("user", "the film"), ("assistant", "is good ."), ("user", "which film ?")]
        asked = [{"role": role, "content": text} for role, text in said]
        assert ids == tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    else:
        assert ids == encode([LONG], tokenizer, end=False)[0]


def test_a_long_dialogue_loses_its_first_turns(page):
    last = page["prompt_ids"]("\n\nHuman: which film ?\n\nAssistant:", 1000)
    assert page["prompt_ids"](LONG, len(last)) == last
    assert page["prompt_ids"](LONG, len(last) - 1) == [], "a question is never cut"


def test_raw_text_is_an_error_where_the_model_has_a_chat_template(page):
    prompts = [page["prompt_ids"](LONG, 1000), encode([LONG], page["tokenizer"], end=False)[0]]
    page["check_chat"](prompts[:1])
    if page["tokenizer"].chat_template:
        with pytest.raises(ValueError, match="1 prompts, such as number .1., are raw text.*prompt_ids"):
            page["check_chat"](prompts)
