"""A local stand-in of the Hub: a full success, a refused token, a cut connection, a second try; no token is written."""

from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import REASON, Hub
from transformers import AutoModelForCausalLM

from rlhf_helpers import evaluation, hub
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import Run, linear_schedule

CARD = {"about": "A policy that was aligned.", "prompt": "the film is"}
FIGURES = {"ppo": {"reward": 1.2345, "intervals": {"reward": [1.125, 1.375]}, "kl": 2.5}}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Hub() as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the back-off
        yield running


@pytest.fixture
def finished(tokenizer, tmp_path):
    """Makes what a notebook leaves behind, and what it may leave there besides."""

    def finished(stage, model):
        preset = replace(load_preset("tiny"), artifacts=tmp_path / "artifacts", dataset=str(tmp_path / "of" / "mine"))
        folder, weights = preset.folder(stage), list(model.parameters())
        optimizer = torch.optim.SGD(weights, lr=0.1)
        scheduler, settings = linear_schedule(optimizer, 3), preset.settings(stage)
        run = Run(folder, model, optimizer, scheduler, steps=3, seed=0, settings=settings)
        for _ in run:
            run.log(loss=run.step([sum((p**2).sum() for p in weights)]))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        evaluation.save_json(folder / "evaluation.json", FIGURES)
        for private in ("samples.csv", "responses.json", "judged.jsonl", "checkpoint.part"):
            (folder / private).write_text("private")
        return folder

    return finished


@pytest.fixture
def policy(lm, finished):
    return finished("policy", PolicyWithValueHead(lm))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_policy_arrives_byte_for_byte_with_its_card_and_loads(server, policy, lm, tmp_path):
    before = contents(policy)
    said = hub.push(policy, "someone/reviews", **CARD)
    got = server.repos["someone/reviews"]
    weights = {"model.safetensors", "model.safetensors.index.json", "value_head.safetensors"}
    assert weights | {"README.md", "tokenizer.json", "evaluation.json", "metrics.csv"} <= set(got)
    assert all(content == (policy / name).read_bytes() for name, content in got.items())
    assert b"private" not in got.values() and not any("checkpoint" in name for name in got)
    assert contents(policy) == before | {Path("README.md"): got["README.md"]}, "something here was changed"
    assert "private" in said and server.private == {"someone/reviews"} and server.commits == 1
    card = huggingface_hub.ModelCard(got["README.md"].decode())
    assert "| ppo reward | 1.234 | [1.125, 1.375] |" in card.text and CARD["about"] in card.text
    assert str(tmp_path) not in card.content, "the path of a folder is private"
    (tmp_path / "got").mkdir()
    for name, content in got.items():
        (tmp_path / "got" / name).write_bytes(content)
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "got", use_safetensors=True), torch.tensor([[1, 2]])
    assert torch.equal(theirs.eval()(ids).logits, lm.eval()(ids).logits)


def test_the_card_of_a_reward_model_says_how_to_score(server, finished, lm):
    hub.push(finished("reward_model", RewardModel(lm)), "someone/judge", **CARD)
    card = huggingface_hub.ModelCard(server.repos["someone/judge"]["README.md"].decode())
    assert card.data.pipeline_tag == "text-classification" and "'the film is' + tokenizer.eos_token" in card.text


def test_a_refusal_says_why_and_how_to_log_in(server, policy, monkeypatch):
    another = 'rights to create a model under the namespace "another"'
    for repo_id, token, reason in (
        ("another/reviews", server.token, another), ("someone/reviews", "hf_" + "x" * 34, "Invalid credentials"),
    ):  # fmt: skip
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PermissionError) as refused:
            hub.push(policy, repo_id, **CARD)
        for said in (reason, "notebook_login()", "Colab", "HF_TOKEN"):
            assert said in str(refused.value), said
        assert "hf_" not in str(refused.value), "the token is in the message"
    assert not server.repos


@pytest.mark.parametrize("step", ["create", "preupload", "commit", "committed"])
def test_a_cut_connection_loses_nothing_and_a_second_try_succeeds(server, policy, step):
    before = contents(policy)
    server.cut = step
    with pytest.raises(ConnectionError, match="Run this cell again"):
        hub.push(policy, "someone/reviews", **CARD)
    assert contents(policy).items() >= before.items()
    assert step == "committed" or not server.repos.get("someone/reviews"), "half a model is there"
    server.cut = None
    hub.push(policy, "someone/reviews", **CARD)
    assert server.repos["someone/reviews"]["model.safetensors"] == before[Path("model.safetensors")]


def test_without_a_name_nothing_is_sent_and_a_token_is_written_nowhere(server, policy, tmp_path, capfd):
    said = hub.push(policy, None, **CARD)
    assert "nothing was pushed" in said and "model.safetensors" in said and "private" not in said
    assert not server.seen
    hub.push(policy, "someone/reviews", **CARD)
    assert f"Bearer {server.token}" in server.seen
    written = [*contents(tmp_path).values(), *server.repos["someone/reviews"].values()]
    written.append("".join(capfd.readouterr()).encode())
    assert not any(server.token.encode() in content for content in written)


def test_a_gated_model_says_why_and_how(server):
    with pytest.raises(ConnectionError) as refused:
        load_lm("someone/gated")
    for said in (REASON, "someone/gated", "notebook_login()", "Colab", "HF_TOKEN"):
        assert said in str(refused.value), said
