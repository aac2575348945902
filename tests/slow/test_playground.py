"""The playground behind its page: what is typed, what is computed. The page itself: browser/test_playground_page.py."""

import re
from dataclasses import replace
from pathlib import Path

import nbformat
import playground
import pytest
import torch
import untrained

from rlhf_helpers import data, evaluation, rollouts, training
from rlhf_helpers.models import RewardModel
from rlhf_helpers.plots import BLUE, ORANGE
from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    return playground.load(untrained.make(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def reward_of_notebook_3(play):
    """The cell of notebook 3 that normalises the reward, run: its reward model, mean and deviation."""
    cells = nbformat.read(ROOT / NOTEBOOKS["policy"], as_version=4).cells
    (source,) = [c.source for c in cells if c.cell_type == "code" and "def reward(batch)" in c.source]
    sentences = data.load_sentences(play.preset.dataset)["test"]["sentence"]
    names = {
        "preset": play.preset, "tokenizer": play.tokenizer, "reference": play.policies["SFT"],
        "ppo_rows": data.encode(sentences, play.tokenizer, play.preset.max_tokens),
        "reward_model": RewardModel.from_pretrained(play.preset.folder("reward_model")),
        "torch": torch, "data": data, "rollouts": rollouts, "training": training,
    }  # fmt: skip
    exec(source, names)
    return names


def test_each_token_has_the_reward_of_its_prefix(play, reward_of_notebook_3):
    model, mean, deviation = (reward_of_notebook_3[name] for name in ("reward_model", "mean", "deviation"))
    prompt = playground.read_prompt("it is a", play)
    results = playground.complete(play, prompt, seed=1)
    assert list(results) == ["base", "SFT", "PPO"] and len({r["text"] for r in results.values()}) == 3
    for name, result in results.items():
        generator = torch.Generator().manual_seed(1)
        rollout = rollouts.sample_rollouts(play.policies[name], [prompt], play.tokenizer, 40, generator)
        ids = rollout.input_ids[0].tolist()
        assert result["text"] == data.decode([ids], play.tokenizer)[0] and result["text"].startswith("it is a")
        assert result["ended"] == (ids[-1] == play.tokenizer.eos_token_id)
        ids = ids[:-1] if result["ended"] else ids
        assert [text for text, _ in result["tokens"]] == [play.tokenizer.decode(i).strip() for i in ids]
        for i, (_, score) in enumerate(result["tokens"]):
            alone = torch.tensor([ids[: i + 1] + [play.tokenizer.eos_token_id]])
            with torch.no_grad():
                expected = (model(alone, torch.ones_like(alone)) - mean) / deviation
            assert score == pytest.approx(expected.item(), abs=1e-3)
        assert result["score"] == pytest.approx(reward_of_notebook_3["reward"](rollout).item(), abs=1e-3)
    assert len({round(score, 2) for _, score in results["SFT"]["tokens"]}) > 1


def test_the_same_seed_gives_the_same_text(play):
    prompt = playground.read_prompt("the film", play)
    torch.manual_seed(5)
    once = playground.complete(play, prompt, seed=3)
    torch.manual_seed(6)
    assert playground.complete(play, prompt, seed=3) == once
    assert playground.complete(play, prompt, seed=4)["SFT"]["text"] != once["SFT"]["text"]


def test_the_judge_of_the_preset_reads_prompt_and_response(play, monkeypatch):
    asked = []

    def judge(texts):
        asked.extend(texts)
        return [len(asked) % 2]

    monkeypatch.setitem(evaluation.JUDGES, "grammar", judge)
    results = playground.complete(play, playground.read_prompt("the film", play), seed=0)
    assert asked == [r["text"] for r in results.values()]
    assert [r["verdict"] for r in results.values()] == ["positive", "not positive", "positive"]
    monkeypatch.setitem(evaluation.JUDGES, "vader", lambda texts: [0.0])
    vader = replace(play, preset=replace(play.preset, judge="vader"))
    results = playground.complete(vader, playground.read_prompt("the film", play), seed=0)
    assert {r["verdict"] for r in results.values()} == {"not positive"} and len(asked) == 3


@pytest.mark.parametrize("text, says", [
    ("", "is empty"),
    (" \t \n ", "is empty"),
    ("a" * 301, "longer than 300 characters"),
    (" " * 301, "longer than 300 characters"),
    ("the film " * 12, "24 tokens, and there is room for 23"),
    ("the\x00film", "control character U[+]0000"),
    ("the\tfilm", "control character U[+]0009"),
    ("the\x1b[31mfilm", "control character U[+]001B"),
    ("the \ud83d film", "control character U[+]D83D"),
])  # fmt: skip
def test_what_cannot_be_a_prompt(play, text, says):
    with pytest.raises(ValueError, match=says):
        playground.read_prompt(text, play)


def test_the_longest_prompt_is_completed(play):
    prompt = playground.read_prompt("the film " * 11 + "the", play)
    assert len(prompt) == 23
    results = playground.complete(play, prompt, seed=0)
    assert all(len(r["tokens"]) <= play.preset.max_tokens - 1 for r in results.values())


@pytest.mark.parametrize("text", ["<|endoftext|>", "<img src=x onerror=alert(1)>", "été 电影 🎬", "the film ."])
def test_what_is_typed_is_text(play, text):
    ids = playground.read_prompt(f"  {text} ", play)
    assert play.tokenizer.eos_token_id not in ids
    assert play.tokenizer.decode(ids).strip() == text
    assert playground.complete(play, ids, seed=0)["base"]["text"].startswith(text)


@pytest.mark.parametrize("value", [None, -1, 0.5, 2**31, float("nan"), float("inf")])
def test_what_cannot_be_a_seed(value):
    with pytest.raises(ValueError, match="whole number from 0 to 2147483647"):
        playground.read_seed(value)


def test_seeds():
    assert playground.read_seed(0) == 0 and playground.read_seed(2.0**31 - 1) == 2**31 - 1


def test_words(play):
    assert playground.words("the film , the plot's end.") == ["the", "film", ",", "plot", "'", "s", "end", "."]
    assert {"film", "plot", ",", "."} <= play.seen and not {"spaceship", "The", "<"} & play.seen
    assert all(word in play.seen for example in play.examples for word in playground.words(example))


def test_colours_diverge_around_zero():
    assert playground.colour(0)[-2:] == "00"
    assert playground.colour(1).startswith(BLUE) and playground.colour(-1).startswith(ORANGE)
    depth = [int(playground.colour(score)[-2:], 16) for score in (-9, -2, -1, 0, 1, 2, 9)]
    assert depth == depth[::-1] and depth[3] < depth[4] < depth[5] == depth[6] == 0x99


def run_main(monkeypatch, folder, there=True):
    monkeypatch.setattr(playground, "find_spec", lambda name: there)
    monkeypatch.setattr(playground, "serve", lambda play: pytest.fail("it served"))
    for name in ("SEED", "MODEL", "DATASET"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    monkeypatch.setenv("RLHF_ARTIFACTS", str(folder))
    with pytest.raises(SystemExit) as ended:
        playground.main()
    return ended.value.code


def test_a_missing_or_damaged_artifact_is_named(monkeypatch, tmp_path):
    assert re.search("holds no finished model. Run '1-SFT.ipynb' first", run_main(monkeypatch, tmp_path))
    preset = untrained.make(tmp_path)
    (preset.folder("policy") / "artifact.json").unlink()
    assert re.search("holds no finished model. Run '3-RLHF.ipynb' first", run_main(monkeypatch, tmp_path))
    with (preset.folder("reward_model") / "config.json").open("a") as file:
        file.write(" ")
    assert re.search("config.json in .* changed since .* Run '2-RM Training", run_main(monkeypatch, tmp_path))


def test_without_nicegui_it_says_how_to_get_it(monkeypatch, tmp_path):
    assert "`make play` installs it" in run_main(monkeypatch, tmp_path, there=None)
