"""judges.py and evaluation.py."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2ForSequenceClassification

from rlhf_helpers import evaluation, judges
from rlhf_helpers.data import encode, pad

TEXTS = ["the plot is good", "good", "the plot is very dull and not bright", "it"]


def test_a_classifier_judges_by_its_last_class_whatever_the_batch(tmp_path, lm, tokenizer):
    lm.config.num_labels, lm.config.pad_token_id = 3, 0
    model = GPT2ForSequenceClassification(lm.config).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    alone = torch.cat([model(torch.tensor([tokenizer(text)["input_ids"]])).logits for text in TEXTS]).softmax(-1)
    positive = (alone[:, 2] > 0.5).double()
    assert np.array_equal(judges.classifier_judge(str(tmp_path))(TEXTS), positive) and positive.unique().numel() == 2


def test_a_reward_model_judges_by_its_own_scores(tmp_path, reward_model, tokenizer):
    """One output is the log-odds, of a text that ends in end-of-text, whatever the batch."""
    reward_model.save_pretrained(tmp_path, tokenizer)
    scores = reward_model(*pad(encode(TEXTS, tokenizer), tokenizer.pad_token_id))
    assert np.allclose(judges.classifier_log_odds(str(tmp_path))(TEXTS), scores, atol=1e-4)
    assert np.array_equal(judges.classifier_judge(str(tmp_path))(TEXTS), (scores > 0).double())
    assert scores.min() < 0 < scores.max(), "one verdict for all: weak test"


def test_mean_nll_is_the_loss_of_transformers(lm):
    rows = [[1, 2, 3, 0], [4, 5, 0], [1, 6, 7, 8, 9, 0]]
    total = sum(lm(input_ids=(x := torch.tensor([r])), labels=x).loss.item() * (len(r) - 1) for r in rows)
    assert evaluation.mean_nll(lm, rows, 0, batch=2) == pytest.approx(total / sum(len(r) - 1 for r in rows), abs=1e-4)


def test_distinct_n():
    assert evaluation.distinct_n(["a b a b"]) == pytest.approx(2 / 3)
    assert evaluation.distinct_n(["a b", "a b"]) == 0.5


def test_intervals_cover_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(40):
        frame = pd.DataFrame({"x": rng.normal(size=60)})
        low, high = evaluation.bootstrap(frame, lambda f: f["x"].mean(), seed)
        hits += low < 0 < high
    assert 33 <= hits <= 40
    words = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(200)]
    low, high = evaluation.jackknife(words, evaluation.distinct_n)
    assert low < evaluation.distinct_n(words) < high


def test_best_of_n_kl_against_simulation():
    """For a continuous score the best of n has density n F^(n-1), so KL = E[ln(n F^(n-1))]."""
    best = np.random.default_rng(0).random((200_000, 8)).max(1)
    assert evaluation.best_of_n_kl(8) == pytest.approx(np.log(8 * best**7).mean(), abs=0.01)
    assert evaluation.best_of_n_kl(1) == 0


def test_evaluate_compares_like_with_like(lm, other_lm, tokenizer, prompts):
    def length(ids, mask):
        return mask.sum(1).float()

    def frame(policy):
        return evaluation.evaluate(policy, lm, other_lm, length, judges.vader_judge, prompts, tokenizer, 6, seed=1)

    one = frame(lm)
    assert one["kl"].abs().max() < 1e-4 and (one["reward"] >= one["length"] + 1).all()
    pd.testing.assert_frame_equal(one, frame(lm))
    assert frame(other_lm)["kl"].mean() > 0
    summary = evaluation.summarise(one)
    assert {"reward", "kl", "perplexity", "distinct_2"} < set(summary["intervals"]) == set(summary) - {"intervals"}
