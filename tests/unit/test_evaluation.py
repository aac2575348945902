"""Judges: what they say, and what they refuse."""

import numpy as np
import pytest
import torch
from transformers import GPT2ForSequenceClassification

from rlhf_helpers import evaluation
from rlhf_helpers.data import encode, pad
from rlhf_helpers.models import RewardModel


def save_classifier(folder, lm, tokenizer):
    """Says "positive" (the last class) for texts that end in "good"."""
    lm.config.num_labels, lm.config.pad_token_id = 2, 0
    model = GPT2ForSequenceClassification(lm.config).eval()
    model.config.id2label = {0: "down", 1: "up"}
    with torch.no_grad():
        for block in model.transformer.h:  # nothing but the last word decides
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        model.transformer.wpe.weight.zero_()
        good, others = tokenizer("good")["input_ids"][0], list(range(1, 6))
        hidden = model.transformer.ln_f(model.transformer.wte.weight)
        model.score.weight[0], model.score.weight[1] = hidden[others].mean(0), hidden[good]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_classifier_judge(tmp_path, lm, tokenizer):
    save_classifier(tmp_path, lm, tokenizer)
    judge = evaluation.classifier_judge(str(tmp_path))
    texts = ["the plot is good", "good", "the plot"]
    assert np.array_equal(judge(texts), [1.0, 1.0, 0.0])


def test_a_reward_model_judges_by_its_own_scores(tmp_path, lm, tokenizer):
    """One output is the log-odds, of a text that ends in end-of-text, whatever the batch."""
    judge = RewardModel(lm).eval()
    torch.nn.init.normal_(judge.model.score.weight)
    judge.save_pretrained(tmp_path, tokenizer)
    texts = ["the plot is good", "good", "the plot is very dull and not bright"]
    with torch.no_grad():
        scores = judge(*pad(encode(texts, tokenizer), tokenizer.pad_token_id))
    assert np.allclose(evaluation.classifier_log_odds(str(tmp_path))(texts), scores, atol=1e-4)
    assert np.array_equal(evaluation.classifier_judge(str(tmp_path))(texts), (scores > 0).double())


def test_classifier_judge_does_not_unpickle(tmp_path, lm, tokenizer):
    model = save_classifier(tmp_path, lm, tokenizer)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError):
        evaluation.classifier_judge(str(tmp_path))


def test_vader_judge():
    texts = ["a wonderful , moving film .", "a terrible , boring film .", "the film is long ."]
    assert evaluation.vader_judge(texts).tolist() == [1.0, 0.0, 0.0]
