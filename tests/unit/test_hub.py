"""hub.py: what goes up and what its card says; a refusal, a cut connection, a second try.

The Hub is a stand-in of the three calls that `push` makes; what they send is huggingface_hub's own to test.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from rlhf_helpers import evaluation, hub
from rlhf_helpers.models import PolicyWithValueHead, RewardModel
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import Run, linear_schedule

CARD = {"about": "A policy that was aligned.", "prompt": "the film is"}
FIGURES = {"ppo": {"reward": 1.2345, "intervals": {"reward": [1.125, 1.375]}, "kl": 2.5}}


class Hub:
    """Holds what was pushed to it; `faults` are raised by the calls that they name."""

    def __init__(self):
        self.files, self.private, self.faults = {}, None, {}

    def answer(self, call):
        if call in self.faults:
            raise self.faults[call]

    def create_repo(self, repo_id, private, exist_ok):
        self.answer("create_repo")
        self.private = private
        return SimpleNamespace(repo_id=repo_id)

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        self.files[path_in_repo] = path_or_fileobj

    def upload_folder(self, folder_path, repo_id, allow_patterns):
        self.answer("upload_folder")
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        self.files |= {
            x: (folder_path / x).read_bytes() for x in filter_repo_objects(names, allow_patterns=allow_patterns)
        }
        return SimpleNamespace(commit_url=f"https://the.hub/{repo_id}/commit/1")


@pytest.fixture
def server(monkeypatch):
    server = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: server)
    return server


@pytest.fixture
def finished(tokenizer, tmp_path):
    """Makes what a notebook leaves behind, and what it may leave there besides."""

    def finished(stage, model):
        preset = replace(load_preset("tiny"), artifacts=tmp_path / "artifacts", dataset=str(tmp_path / "of" / "mine"))
        folder, weights = preset.folder(stage), [p for p in model.parameters() if p.requires_grad]
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


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_policy_arrives_byte_for_byte_with_its_card_and_loads(server, finished, lm, tmp_path):
    policy = finished("policy", PolicyWithValueHead(lm))
    before = contents(policy)
    said = hub.push(policy, None, **CARD)
    assert "nothing was pushed" in said and "model.safetensors" in said and "samples" not in said
    assert not server.files, "without a name nothing is sent"
    said, got = hub.push(policy, "someone/reviews", **CARD), server.files
    weights = {"model.safetensors", "model.safetensors.index.json", "value_head.safetensors"}
    assert weights | {"README.md", "tokenizer.json", "evaluation.json", "metrics.csv"} <= set(got)
    assert all(content == (policy / name).read_bytes() for name, content in got.items())
    assert b"private" not in got.values() and not any("checkpoint" in name for name in got)
    assert contents(policy) == before | {Path("README.md"): got["README.md"]}, "something here was changed"
    assert "private" in said and server.private
    card = ModelCard(got["README.md"].decode())
    assert "| ppo reward | 1.234 | [1.125, 1.375] |" in card.text and CARD["about"] in card.text
    assert str(tmp_path) not in card.content, "the path of a folder is private"
    (tmp_path / "got").mkdir()
    for name, content in got.items():
        (tmp_path / "got" / name).write_bytes(content)
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "got", use_safetensors=True), torch.tensor([[1, 2]])
    assert torch.equal(theirs.eval()(ids).logits, lm.eval()(ids).logits)


def test_the_card_of_a_reward_model_says_how_to_score(server, finished, lm):
    hub.push(finished("reward_model", RewardModel(lm)), "someone/judge", **CARD)
    card = ModelCard(server.files["README.md"].decode())
    assert card.data.pipeline_tag == "text-classification" and "'the film is' + tokenizer.eos_token" in card.text


def test_an_adapter_names_its_base_as_others_can_load_it(server, finished, lm):
    lm.add_adapter(LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    folder = finished("policy", lm)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the adapter's base is only on this machine"):
        hub.push(folder, "someone/reviews", **CARD)
    hub.push(folder, "someone/reviews", base="someone/sft", **CARD)
    assert json.loads(server.files["adapter_config.json"])["base_model_name_or_path"] == "someone/sft"
    assert "adapter_model.safetensors" in server.files and "model.safetensors" not in server.files


def test_a_refusal_says_why_and_how_to_log_in_and_a_second_try_succeeds(server, finished, lm, monkeypatch, capfd):
    """And the token is written nowhere, whatever happens."""
    monkeypatch.setenv("HF_TOKEN", token := "hf_" + "x" * 34)
    policy = finished("policy", PolicyWithValueHead(lm))
    before = contents(policy)
    response = SimpleNamespace(status_code=401, headers={}, request=None)
    server.faults["create_repo"] = HfHubHTTPError("Invalid credentials", response=response)
    with pytest.raises(PermissionError, match="(?s)Invalid credentials.*notebook_login.*Colab.*HF_TOKEN") as refused:
        hub.push(policy, "someone/reviews", **CARD)
    server.faults = {"upload_folder": ConnectionResetError("the line is cut")}
    with pytest.raises(ConnectionError, match="the line is cut. Run this cell again"):
        hub.push(policy, "someone/reviews", **CARD)
    assert contents(policy).items() >= before.items() and not server.files
    server.faults = {}
    hub.push(policy, "someone/reviews", **CARD)
    assert server.files["model.safetensors"] == before[Path("model.safetensors")]
    written = [*contents(policy).values(), *server.files.values(), *map(str.encode, capfd.readouterr())]
    assert not any(token.encode() in text for text in (*written, str(refused.value).encode()))
