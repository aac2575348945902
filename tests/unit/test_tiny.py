"""The embedded preset: it needs reading, it doesn't bore, and its judge is exact."""

import random
from pathlib import Path

import pytest
from datasets import load_dataset
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from rlhf_helpers.data import load_tokenizer
from rlhf_helpers.models import load_lm
from rlhf_helpers.presets import TINY
from rlhf_helpers.tiny import grammar

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reviews():
    return load_dataset(str(TINY / "reviews"))


def test_schema_size_and_splits(reviews):
    assert reviews["train"].features["label"].names == ["negative", "positive"]
    assert set(reviews["train"].column_names) == {"sentence", "label", "idx"}
    sentences = {name: set(split["sentence"]) for name, split in reviews.items()}
    assert len(sentences["train"]) >= 20_000
    assert not sentences["train"] & (sentences["validation"] | sentences["test"])
    assert not sentences["validation"] & sentences["test"]
    assert all(sum(split["label"]) * 2 == len(split) for split in reviews.values())


def test_words(reviews):
    words = {w for s in reviews["train"]["sentence"] for w in s.split() if w.isalpha()}
    assert len(words) >= 400


def test_the_judge_agrees_with_every_label(reviews):
    for split in reviews.values():
        for sentence, label in list(zip(split["sentence"], split["label"]))[:3000]:
            assert grammar.judge(sentence.strip()) == label, sentence


def test_no_sentence_has_two_verdicts(reviews):
    for sentence in reviews["test"]["sentence"][:1000]:
        words = sentence.split()
        ends = [grammar._ends(("REVIEW", p, p), words, 0, {}) for p in (0, 1)]
        assert sum(len(words) in e for e in ends) == 1, sentence


def test_the_judge_refuses_what_is_no_review(reviews):
    rng = random.Random(0)
    for sentence in reviews["validation"]["sentence"][:200]:
        words = sentence.split()
        assert grammar.judge(" ".join(words[:-1])) is None
        assert grammar.judge(" ".join(words[::-1])) is None
    for text in ("", "the film", "ein guter film .", "the plot is an clever .", grammar.plot(rng), "🎬 ."):
        assert grammar.judge(text) is None, text


def test_a_bag_of_words_is_not_enough(reviews):
    train, validation = reviews["train"], reviews["validation"]
    for vectorizer in (CountVectorizer(), TfidfVectorizer(), CountVectorizer(ngram_range=(1, 2))):
        model = LogisticRegression(max_iter=300).fit(vectorizer.fit_transform(train["sentence"]), train["label"])
        assert model.score(vectorizer.transform(validation["sentence"]), validation["label"]) < 0.85


def test_the_base_model_and_its_tokenizer():
    base, tokenizer = load_lm(str(TINY / "base")), load_tokenizer(str(TINY / "base"))
    assert 0.8e6 < sum(p.numel() for p in base.parameters()) < 1.2e6
    assert (TINY / "base" / "model.safetensors").stat().st_size < 4_000_000
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == base.config.eos_token_id
    for text in ("the plot is clever .", "Ünïcode, 日本語 🎬", "a  b\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == " " + text  # the space that starts every word


def test_the_files_are_what_the_seed_gives(reviews, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_tiny as build

    corpus = build.corpus()
    for name, split in corpus.items():
        assert list(split["sentence"]) == list(reviews[name]["sentence"])
    rebuilt = build.tokenizer([s.rstrip() for s in corpus["train"]["sentence"]], build.plots())
    assert rebuilt.get_vocab() == load_tokenizer(str(TINY / "base")).get_vocab()
