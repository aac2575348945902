"""The playground behind its page: what is typed, what is computed. The page itself: browser/test_pages.py."""

import playground
import pytest
import torch
import untrained

from rlhf_helpers import judges, rollouts


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    return playground.load(untrained.make(tmp_path_factory.mktemp("artifacts")))


def test_each_token_has_the_reward_of_its_prefix(play, monkeypatch):
    monkeypatch.setitem(judges.JUDGES, "grammar", lambda texts: [len(text) % 2 for text in texts])
    prompt, end = playground.read_prompt("it is a", play), play.tokenizer.eos_token_id
    results = playground.complete(play, prompt, seed=1)
    assert list(results) == ["base", "SFT", "PPO"] and len({r["text"] for r in results.values()}) == 3
    for name, result in results.items():
        generator = torch.Generator().manual_seed(1)
        rollout = rollouts.sample_rollouts(play.policies[name], [prompt], play.tokenizer, 40, generator)
        ids = rollout.input_ids[0].tolist()
        assert result["text"].startswith("it is a") and result["ended"] == (ids[-1] == end)
        ids = ids[:-1] if result["ended"] else ids
        assert [text for text, _ in result["tokens"]] == [play.tokenizer.decode(i).strip() for i in ids]
        for i, (_, score) in enumerate(result["tokens"]):
            prefix = torch.tensor([[*ids[: i + 1], end]])
            assert score == pytest.approx(play.reward(prefix, torch.ones_like(prefix)).item(), abs=1e-3)
        whole = play.reward(rollout.input_ids, rollout.attention_mask).item()
        assert result["score"] == pytest.approx(whole, abs=1e-3)
        assert result["verdict"] == ("positive" if len(result["text"]) % 2 else "not positive")
    assert len({result["verdict"] for result in results.values()}) == 2
    assert len({round(score, 2) for _, score in results["SFT"]["tokens"]}) > 1


@pytest.mark.parametrize("text, says", [
    (" \t \n ", "is empty"),
    ("a" * 301, "longer than 300 characters"),
    ("the film " * 12, "24 tokens, and there is room for 23"),
    ("the\x1b[31mfilm", "control character U[+]001B"),
])  # fmt: skip
def test_what_cannot_be_a_prompt(play, text, says):
    with pytest.raises(ValueError, match=says):
        playground.read_prompt(text, play)


def test_what_is_typed_is_text(play):
    ids = playground.read_prompt(" <|endoftext|> été 🎬 ", play)
    assert play.tokenizer.eos_token_id not in ids and play.tokenizer.decode(ids).strip() == "<|endoftext|> été 🎬"


def test_a_missing_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(playground, "find_spec", lambda name: True)
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    monkeypatch.setenv("RLHF_ARTIFACTS", str(tmp_path))
    with pytest.raises(SystemExit, match="holds no finished model. Run '1-SFT.ipynb'"):
        playground.main()


@pytest.mark.parametrize("value", [None, -1, 0.5])
def test_what_cannot_be_a_seed(value):
    with pytest.raises(ValueError, match="whole number from 0 to 2147483647"):
        playground.read_seed(value)
