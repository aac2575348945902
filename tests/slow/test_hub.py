"""A local stand-in of the Hub: a full success, a refused token, a cut connection, a second try; no token is written."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import REASON, Hub
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_helpers import evaluation, hub
from rlhf_helpers.models import PolicyWithValueHead, RewardModel
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import Run, linear_schedule

CARD = {"about": "A policy that was aligned.", "prompt": "the film is"}
FIGURES = {"ppo": {"reward": 1.2345, "intervals": {"reward": [1.125, 1.375]}, "kl": 2.5}}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Hub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the back-off
        yield running


def finished(stage, model, tokenizer, tmp_path):
    """What a notebook leaves behind, and what it may leave there besides."""
    preset = replace(load_preset("tiny"), artifacts=tmp_path / "artifacts", dataset=str(tmp_path / "of" / "mine"))
    folder, weights = preset.folder(stage), list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.1)
    scheduler, settings = linear_schedule(optimizer, 3), preset.settings(stage)
    run = Run(folder, model, optimizer, scheduler, steps=3, seed=0, settings=settings)
    for _ in run:
        run.log(loss=run.step(sum((p**2).sum() for p in weights)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    evaluation.save_json(folder / "evaluation.json", FIGURES)
    for private in ("samples.csv", "responses.json", "judged.jsonl", "checkpoint.part"):
        (folder / private).write_text("private")
    return folder


@pytest.fixture
def policy(lm, tokenizer, tmp_path):
    return finished("policy", PolicyWithValueHead(lm), tokenizer, tmp_path)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def received(server, repo_id, under):
    """What the server got, as a folder that is called like the repository."""
    for name, content in server.repos[repo_id].items():
        (under / repo_id).mkdir(parents=True, exist_ok=True)
        (under / repo_id / name).write_bytes(content)
    return under / repo_id


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


def test_a_policy_arrives_byte_for_byte_with_its_card_and_loads(server, policy, lm, tmp_path):
    before = contents(policy)
    said = hub.push(policy, "someone/reviews", **CARD)
    got = server.repos["someone/reviews"]
    assert {"README.md", "model.safetensors", "tokenizer.json", "evaluation.json", "metrics.csv"} <= set(got)
    assert all(content == (policy / name).read_bytes() for name, content in got.items())
    assert b"private" not in got.values() and not any("checkpoint" in name for name in got)
    assert contents(policy) == before | {Path("README.md"): got["README.md"]}, "something here was changed"
    assert "private" in said and server.private == {"someone/reviews"} and server.commits == 1
    card = huggingface_hub.ModelCard(got["README.md"].decode())
    assert "| ppo reward | 1.234 | [1.125, 1.375] |" in card.text and CARD["about"] in card.text
    assert str(tmp_path) not in card.content, "the path of a folder is private"
    theirs = AutoModelForCausalLM.from_pretrained(received(server, "someone/reviews", tmp_path), use_safetensors=True)
    assert torch.equal(logits(theirs, [1, 2, 3]), logits(lm, [1, 2, 3]))


def test_a_reward_model_gives_the_same_scores(server, lm, tokenizer, tmp_path):
    model, ids = RewardModel(lm).eval(), [1, 2, 3, 0]
    hub.push(finished("reward_model", model, tokenizer, tmp_path), "someone/judge", **CARD)
    there = received(server, "someone/judge", tmp_path / "there")
    theirs = AutoModelForSequenceClassification.from_pretrained(there, use_safetensors=True)
    score = model(torch.tensor([ids]), torch.ones(1, 4, dtype=torch.long))
    assert torch.allclose(logits(theirs, ids)[:, 0], score, atol=1e-6)


@pytest.mark.parametrize(
    "token, repo_id, reason",
    [
        ("hf_" + "x" * 34, "someone/reviews", "Invalid credentials"),
        ("right", "another/reviews", 'rights to create a model under the namespace "another"'),
    ],
    ids=["wrong token", "name of another"],
)
def test_a_refusal_says_why_and_how_to_log_in(server, policy, token, repo_id, reason, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token.replace("right", server.token))
    with pytest.raises(PermissionError) as refused:
        hub.push(policy, repo_id, **CARD)
    for said in (reason, "notebook_login()", "Colab", "HF_TOKEN"):
        assert said in str(refused.value), said
    assert "hf_" not in str(refused.value), "the token is in the message"
    assert not server.repos


@pytest.mark.parametrize("step", ["create", "batch", "object", "commit", "committed"])
def test_a_cut_connection_loses_nothing_and_a_second_try_succeeds(server, policy, step):
    before = contents(policy)
    server.cuts[step] = 99
    with pytest.raises(Exception):  # noqa: B017 - httpx's own, or what the helper makes of it
        hub.push(policy, "someone/reviews", **CARD)
    assert contents(policy).items() >= before.items()
    assert step == "committed" or not server.repos.get("someone/reviews"), "half a model is there"
    server.cuts.clear()
    hub.push(policy, "someone/reviews", **CARD)
    assert server.repos["someone/reviews"]["model.safetensors"] == before[Path("model.safetensors")]


def test_without_a_name_nothing_is_sent(server, policy):
    said = hub.push(policy, None, **CARD)
    assert "nothing was pushed" in said and "model.safetensors" in said and "private" not in said
    assert not server.seen


def test_a_token_is_written_nowhere(server, policy, tmp_path, capfd):
    hub.push(policy, "someone/reviews", **CARD)
    assert f"Bearer {server.token}" in {authorization for _, _, authorization in server.seen}
    said = "".join(capfd.readouterr()).encode()
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()] + list(
        server.repos["someone/reviews"].values()
    )
    assert not any(server.token.encode() in content for content in [said, *written])


def test_a_gated_model_says_why_and_how(tmp_path):
    with Hub() as hub:
        hub.repos["someone/gated"] = {"config.json": b"{}"}
        hub.gated.add("someone/gated")
        places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
        source = "from rlhf_helpers.models import load_lm; load_lm('someone/gated')"
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=os.environ | places)
    assert done.returncode == 1
    for said in ("ConnectionError", REASON, "someone/gated", "notebook_login()", "Colab", "HF_TOKEN"):
        assert said in done.stderr, said
