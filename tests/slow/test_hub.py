"""Pushing to a local stand-in of the Hub: a full success, a refused token, a cut connection, and a second try."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import Hub
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_helpers import evaluation, hub
from rlhf_helpers.models import PolicyWithValueHead, RewardModel
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import Run, linear_schedule

CARD = {"about": "A policy that was aligned.", "prompt": "the film is"}
FIGURES = {
    "sft": {"reward": -0.5, "intervals": {"reward": [-0.75, -0.25]}},
    "ppo": {"reward": 1.2345, "intervals": {"reward": [1.125, 1.375]}, "kl": 2.5},
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Hub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the back-off
        yield running


def finished(folder, model, tokenizer, settings, figures=None):
    """What a notebook leaves behind, and what it may leave there besides."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    run = Run(folder, model, optimizer, linear_schedule(optimizer, 3), steps=3, seed=0, settings=settings)
    for _ in run:
        run.log(loss=run.step(sum((p**2).sum() for p in weights)))
    if isinstance(model, RewardModel):
        model.save_pretrained(folder, tokenizer)
    else:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if figures:
        evaluation.save_json(folder / "evaluation.json", figures)
    for private in ("samples.csv", "responses.json", "judged.jsonl", "checkpoint.part", "beta_0/model.safetensors"):
        (folder / private).parent.mkdir(exist_ok=True)
        (folder / private).write_text("private")
    return folder


@pytest.fixture
def preset(tmp_path):
    return replace(load_preset("tiny"), artifacts=tmp_path / "artifacts", dataset=str(tmp_path / "of" / "mine"))


@pytest.fixture
def policy(preset, lm, tokenizer):
    settings = preset.settings("policy")
    return finished(preset.folder("policy"), PolicyWithValueHead(lm), tokenizer, settings, FIGURES)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def received(server, repo_id, under):
    """What the server got, as a folder that is called like the repository."""
    for name, data in server.repos[repo_id].items():
        (under / repo_id).mkdir(parents=True, exist_ok=True)
        (under / repo_id / name).write_bytes(data)
    return under / repo_id


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


def code_of(card):
    return card.split("```python\n")[1].split("```")[0]


def test_a_policy_arrives_byte_for_byte_and_loads(server, policy, lm, tokenizer, tmp_path, monkeypatch, capsys):
    before = contents(policy)
    said = hub.push(policy, "someone/reviews", **CARD)
    got = server.repos["someone/reviews"]
    assert set(got) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "value_head.safetensors",
        "tokenizer.json", "tokenizer_config.json", "evaluation.json", "metrics.csv",
    }  # fmt: skip
    assert all(data == (policy / name).read_bytes() for name, data in got.items())
    assert contents(policy) == before | {Path("README.md"): got["README.md"]}, "something here was changed"
    assert f"{server.url}/someone/reviews/commit/" in said and server.commits == 1
    assert "private" in said and server.private == {"someone/reviews"}

    there = received(server, "someone/reviews", tmp_path / "there")
    model = AutoModelForCausalLM.from_pretrained(there, use_safetensors=True)
    assert torch.equal(logits(model, [1, 2, 3]), logits(lm, [1, 2, 3]))
    monkeypatch.chdir(tmp_path / "there")  # so that the card's own code finds it by its id
    capsys.readouterr()
    exec(code_of(got["README.md"].decode()), {})
    assert capsys.readouterr().out.startswith("the film is")


def test_the_card_holds_the_runs_own_figures(server, policy, tmp_path):
    hub.push(policy, "someone/reviews", **CARD)
    card = huggingface_hub.ModelCard(server.repos["someone/reviews"]["README.md"].decode())
    assert (
        "| ppo reward | 1.234 | [1.125, 1.375] |" in card.text
        and "| sft reward | -0.5 | [-0.750, -0.250] |" in card.text
    )
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {"reward": 1.2345, "kl": 2.5}
    assert card.data.pipeline_tag == "text-generation" and card.data.license == "mit" and card.data.base_model is None
    for said in (
        "tiny model",
        CARD["about"],
        "RLHF_PRESET=tiny RLHF_SEED=0 make tutorial`",
        "| ppo_lr | 0.0008 |",
        "3 steps",
    ):
        assert said in card.text, said
    assert str(tmp_path) not in card.content and "a local folder" in card.text, "the path of a folder is private"
    (policy / "evaluation.json").unlink()
    last = json.loads(json.dumps(hub.pd.read_csv(policy / "metrics.csv")["loss"].iloc[-1]))
    assert f"| last step loss | {last:.4g} |" in str(hub.model_card(policy, "a/b", **CARD))


def test_of_a_model_and_data_of_the_hub_the_card_says_so(preset, lm, tokenizer, tmp_path):
    settings = preset.settings("policy") | {
        "name": "gpt2",
        "model": "openai-community/gpt2",
        "dataset": "stanfordnlp/sst2",
    }
    card = hub.model_card(finished(tmp_path / "policy", PolicyWithValueHead(lm), tokenizer, settings), "a/b", **CARD)
    assert card.data.base_model == "openai-community/gpt2" and card.data.datasets == ["stanfordnlp/sst2"]
    assert "tiny model" not in card.text and "make tutorial beyond" in card.text


def test_a_reward_model_gives_the_same_scores(server, preset, lm, tokenizer, tmp_path, monkeypatch, capsys):
    model = RewardModel(lm).eval()
    folder = finished(
        preset.folder("reward_model"), model, tokenizer, preset.settings("reward_model"), {"accuracy": 0.75}
    )
    hub.push(folder, "someone/judge", **CARD | {"about": "A reward model."})
    there = received(server, "someone/judge", tmp_path / "there")
    theirs = AutoModelForSequenceClassification.from_pretrained(there, use_safetensors=True)
    ids = [1, 2, 3, 0]
    score = model(torch.tensor([ids]), torch.ones(1, 4, dtype=torch.long))
    assert torch.allclose(logits(theirs, ids)[:, 0], score, atol=1e-6)
    monkeypatch.chdir(tmp_path / "there")
    capsys.readouterr()
    exec(code_of(server.repos["someone/judge"]["README.md"].decode()), {})
    own = AutoTokenizer.from_pretrained(there)("the film is<eos>")["input_ids"]
    assert capsys.readouterr().out.strip() == str(logits(theirs, own).requires_grad_()).replace(
        "requires_grad=True", "grad_fn=<IndexBackward0>"
    )


def test_an_adapter_goes_up_with_a_base_that_others_can_have(server, preset, lm, tokenizer, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e .[beyond]")
    settings = preset.settings("policy")
    base = finished(tmp_path / "base", lm, tokenizer, settings)
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"))
    run = finished(tmp_path / "run", model, tokenizer, settings)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="base is only on this machine"):
        hub.push(tmp_path / "adapter", "someone/puns", run=run, **CARD)
    assert not server.repos
    hub.push(base, "someone/base", **CARD)
    hub.push(tmp_path / "adapter", "someone/puns", base="someone/base", run=run, **CARD)
    assert {"adapter_model.safetensors", "metrics.csv"} <= set(server.repos["someone/puns"])
    assert str(tmp_path) not in server.repos["someone/puns"]["adapter_config.json"].decode()
    assert (
        huggingface_hub.ModelCard(server.repos["someone/puns"]["README.md"].decode()).data.base_model == "someone/base"
    )
    for repo_id in server.repos:
        received(server, repo_id, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    again = AutoModelForCausalLM.from_pretrained("someone/puns", use_safetensors=True)
    assert torch.allclose(logits(again, [1, 2, 3]), logits(model, [1, 2, 3]), atol=1e-6)


@pytest.mark.parametrize(
    "token, repo_id, reason",
    [
        ("hf_" + "x" * 34, "someone/reviews", "Invalid credentials"),
        (None, "someone/reviews", "Invalid username or password"),
        ("right", "another/reviews", 'rights to create a model under the namespace "another"'),
    ],
    ids=["wrong token", "no token", "name of another"],
)
def test_a_refusal_says_why_and_how_to_log_in(server, policy, token, repo_id, reason, monkeypatch):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv(
        "HF_TOKEN", token.replace("right", server.token)
    )
    before = contents(policy)
    with pytest.raises(PermissionError) as refused:
        hub.push(policy, repo_id, **CARD)
    for said in (reason, "notebook_login()", "Colab", "HF_TOKEN", "run this cell again"):
        assert said in str(refused.value), said
    assert "hf_" not in str(refused.value), "the token is in the message"
    assert not server.repos and contents(policy).items() >= before.items()
    monkeypatch.setenv("HF_TOKEN", server.token)
    hub.push(policy, "someone/reviews", **CARD)
    assert server.repos["someone/reviews"]["model.safetensors"] == before[Path("model.safetensors")]


@pytest.mark.parametrize("step", ["create", "batch", "object", "commit", "committed"])
def test_a_cut_connection_loses_nothing_and_a_second_try_succeeds(server, policy, step):
    before = contents(policy)
    server.cuts[step] = 99
    with pytest.raises(ConnectionError, match=r"(?s)someone/reviews can't be pushed now.*run this cell again"):
        hub.push(policy, "someone/reviews", **CARD)
    assert contents(policy).items() >= before.items()
    assert step == "committed" or not server.repos.get("someone/reviews"), "half a model is there"
    server.cuts.clear()
    sent = set(server.objects)
    server.seen.clear()
    hub.push(policy, "someone/reviews", **CARD)
    assert all(data == (policy / name).read_bytes() for name, data in server.repos["someone/reviews"].items())
    assert server.repos["someone/reviews"]["model.safetensors"] == before[Path("model.safetensors")]
    assert not any(path.endswith(oid) for _, path, _ in server.seen for oid in sent), "sent twice"
    assert server.commits == 1


def test_one_cut_is_got_over_in_the_same_push(server, policy):
    server.cuts["object"] = 1
    hub.push(policy, "someone/reviews", **CARD)
    assert server.repos["someone/reviews"]["model.safetensors"] == (policy / "model.safetensors").read_bytes()


def test_a_push_again_replaces_what_has_changed(server, policy):
    hub.push(policy, "someone/reviews", **CARD)
    evaluation.save_json(policy / "evaluation.json", {"ppo": {"reward": 7.0}})
    hub.push(policy, "someone/reviews", **CARD)
    assert json.loads(server.repos["someone/reviews"]["evaluation.json"]) == {"ppo": {"reward": 7.0}}
    assert b"| ppo reward | 7 |" in server.repos["someone/reviews"]["README.md"] and server.commits == 2


def test_without_a_name_nothing_is_sent(server, policy):
    before = contents(policy)
    said = hub.push(policy, None, **CARD)
    assert "nothing was pushed" in said and "README.md, config.json, evaluation.json" in said and "private" not in said
    assert not server.seen and contents(policy) == before


@pytest.mark.parametrize("name", ["a/b/c", "some one/x", "someone/", "-x/y", "someone/" + "x" * 100])
def test_a_name_that_cannot_be_is_refused(server, policy, name):
    with pytest.raises(ValueError, match="can't be the name of a model"):
        hub.push(policy, name, **CARD)
    assert not server.seen


def test_a_model_that_is_not_finished_is_not_pushed(server, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no finished model"):
        hub.push(tmp_path, "someone/reviews", **CARD)
    assert not server.seen
