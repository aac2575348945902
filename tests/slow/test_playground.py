"""The playground behind its page: what is typed, what is computed. The page itself: test_pages.py."""

import os
import shutil
from dataclasses import replace

import playground
import pytest
import torch
import untrained

from rlhf_helpers import rollouts
from rlhf_helpers.beyond.loops import new_run
from rlhf_helpers.models import PolicyWithValueHead


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    return playground.load(untrained.make(tmp_path_factory.mktemp("artifacts")))


def test_each_token_has_the_reward_of_its_prefix(play, monkeypatch):
    monkeypatch.setattr(playground.grammar, "judge", lambda text: [0, 1, None][len(text) % 3])
    prompt, end = playground.read_prompt("it is a", play), play.tokenizer.eos_token_id
    streamed = {name: [] for name in play.policies}
    results = {name: playground.complete(play, name, prompt, 1, streamed[name].append) for name in play.policies}
    assert list(results) == ["base", "SFT", "PPO"] and len({r["text"] for r in results.values()}) == 3
    for name, result in results.items():
        generator = torch.Generator().manual_seed(1)
        rollout = rollouts.sample_rollouts(play.policies[name], [prompt], play.tokenizer, 40, generator)
        ids = rollout.input_ids[0].tolist()
        assert prompt + streamed[name] == ids, "what appears is not what was sampled"
        assert result["text"].startswith("it is a") and result["ended"] == (ids[-1] == end)
        ids = ids[:-1] if result["ended"] else ids
        assert [text for text, _ in result["tokens"]] == [play.tokenizer.decode(i).strip() for i in ids]
        for i, (_, score) in enumerate(result["tokens"]):
            prefix = torch.tensor([[*ids[: i + 1], end]])
            assert score == pytest.approx(play.reward(prefix, torch.ones_like(prefix)).item(), abs=1e-3)
        whole = play.reward(rollout.input_ids, rollout.attention_mask).item()
        assert result["score"] == pytest.approx(whole, abs=1e-3)
        verdict = ["negative", "positive", "not a sentence of the grammar"][len(result["text"]) % 3]
        assert result["verdicts"] == [f"Grammar: {verdict}"]
    assert len({round(score, 2) for _, score in results["SFT"]["tokens"]}) > 1


def test_without_a_grammar_a_text_that_sft_would_hardly_write_is_called_unlikely(play):
    other = replace(play, preset=replace(play.preset, judge="vader", second_judge="a/judge"))
    other.second_judge = lambda texts: [float("good" in text) for text in texts]
    prompt = playground.read_prompt("the film is", play)
    rollout = rollouts.sample_rollouts(play.policies["SFT"], [prompt], play.tokenizer, 40)
    for limit, says in ((0.0, "unlikely as a review"), (99.0, "as likely as a review of SFT")):
        vader, judge, likely = playground.verdicts(replace(other, unlikely=limit), rollout, "the film is good .")
        assert (vader, judge) == ("VADER: positive", "judge: positive") and likely.startswith(says)
    nats = (-rollout.logprobs.sum() / rollout.response_mask.sum()).item()
    assert f"SFT gives it {nats:.2f} nats per token" in likely
    assert playground.verdicts(other, rollout, "a dull film .")[:2] == ["VADER: not positive", "judge: negative"]
    assert 0 < play.unlikely < 9


def test_the_policy_of_beta_0_is_taken_from_its_finished_run(play, tmp_path):
    preset = untrained.make(tmp_path)
    assert "Reward hacking" in play.notes[0] and playground.free_policy(preset) is None
    free = PolicyWithValueHead(preset.model)
    for beta in (preset.ppo_beta, 0.0):
        folder, priced = preset.folder("policy") / "beta_0", replace(preset, ppo_beta=beta)
        run = new_run(folder, free, priced, "policy", steps=1, lr=1e-3)
        run.settings.pop("lr")
        next(iter(run))
        assert playground.free_policy(preset) is None, "it is not finished"
        list(run)
        found = playground.free_policy(preset)
        assert (found is None) == (beta > 0), "a run of another price is no run of beta 0"
        shutil.rmtree(folder)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.parameters(), free.lm.parameters()))


def test_the_preset_that_was_finished_last_is_taken_with_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_ARTIFACTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no preset with all three notebooks finished"):
        playground.finished_preset()
    untrained.make(tmp_path, ppo_beta=0.3)
    for stage in ("sft", "reward_model", "policy"):
        shutil.copytree(tmp_path / "tiny" / stage, tmp_path / "smollm2" / stage)
    os.utime(tmp_path / "smollm2" / "policy" / "artifact.json", (1, 1))
    preset, why = playground.finished_preset()
    assert (preset.name, preset.ppo_beta) == ("tiny", 0.3) and why.endswith("smollm2, tiny, this one last")
    assert why in capsys.readouterr().out
    os.utime(tmp_path / "tiny" / "policy" / "artifact.json", (0, 0))
    assert playground.finished_preset()[0].name == "smollm2"
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    assert playground.finished_preset()[0].name == "tiny"


WRONG = {
    " \t \n ": "is empty",
    "a" * 301: "longer than 300 characters",
    "the film " * 12: "24 tokens, and there is room for 23",
    "the\x1b[31mfilm": "control character U[+]001B",
}


def test_what_cannot_be_a_prompt_or_a_seed(play):
    for text, says in WRONG.items():
        with pytest.raises(ValueError, match=says):
            playground.read_prompt(text, play)
    for value in (None, -1, 0.5):
        with pytest.raises(ValueError, match="whole number from 0 to 2147483647"):
            playground.read_seed(value)


def test_what_is_typed_is_text(play):
    ids = playground.read_prompt(" <|endoftext|> été 🎬 ", play)
    assert play.tokenizer.eos_token_id not in ids and play.tokenizer.decode(ids).strip() == "<|endoftext|> été 🎬"
