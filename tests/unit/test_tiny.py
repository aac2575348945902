"""The embedded preset: its judge is exact, and its files are what the seed gives."""

from pathlib import Path

import pytest
from datasets import load_dataset

from rlhf_helpers.data import load_tokenizer
from rlhf_helpers.presets import TINY
from rlhf_helpers.tiny import grammar

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reviews():
    return load_dataset(str(TINY / "reviews"))


def test_no_sentence_is_in_two_splits_and_labels_are_even(reviews):
    sentences = [set(split["sentence"]) for split in reviews.values()]
    assert sum(map(len, sentences)) == len(set.union(*sentences)) > 20_000
    assert all(sum(split["label"]) * 2 == len(split) for split in reviews.values())


def test_the_judge_agrees_with_every_label(reviews):
    """It reads blame first, so praise that could be read as blame would show."""
    for split in reviews.values():
        for sentence, label in list(zip(split["sentence"], split["label"]))[:3000]:
            assert grammar.judge(sentence.strip()) == label, sentence


def test_the_judge_refuses_what_is_no_review(reviews):
    for sentence in reviews["validation"]["sentence"][:200]:
        words = sentence.split()
        assert grammar.judge(" ".join(words[:-1])) is None
        assert grammar.judge(" ".join(words[::-1])) is None
    for text in ("", "the film", "ein guter film .", "the plot is an clever .", "a sailor finds a letter .", "🎬 ."):
        assert grammar.judge(text) is None, text


def test_the_files_are_what_the_seed_gives(reviews, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_tiny as build

    corpus = build.corpus()
    assert all(grammar.judge(text) is None for text in build.plots()[:50]), "a plot is no review"
    for name, split in corpus.items():
        assert list(split["sentence"]) == list(reviews[name]["sentence"])
    rebuilt = build.tokenizer([s.rstrip() for s in corpus["train"]["sentence"]], build.plots())
    assert rebuilt.get_vocab() == load_tokenizer(str(TINY / "base")).get_vocab()
