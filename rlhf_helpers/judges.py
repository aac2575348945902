"""Who judges a text: a grammar's parser, a lexicon, or a classifier that was trained on other data."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rlhf_helpers.checks import loading
from rlhf_helpers.data import length_bucketed, positions

Judge = Callable[[list[str]], np.ndarray]  # texts -> 1 for each judged positive, else 0


def grammar_judge(texts: list[str]) -> np.ndarray:
    """Exact on the embedded corpus: 1 where the grammar parses a text as positive, else 0."""
    from rlhf_helpers.tiny import grammar

    return np.array([float(grammar.judge(text) == 1) for text in texts])


def vader_judge(texts: list[str]) -> np.ndarray:
    """VADER, a lexicon with rules (Hutto & Gilbert 2014): 1 where its compound score is >= 0.05.

    The threshold is its authors'. The first 5,000 characters are read: the time grows with the square of them.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    vader = SentimentIntensityAnalyzer()
    return np.array([float(vader.polarity_scores(text[:5000])["compound"] >= 0.05) for text in texts])


def classifier_log_odds(name_or_path: str) -> Callable[[list[str]], np.ndarray]:
    """A text classifier of transformers: texts -> log-odds that each is positive, (N,).

    Its positive class is the last; one with a single output gives the log-odds itself, as `RewardModel` does, and
    reads texts that end in end-of-text. Raises ConnectionError if it can't be had, ValueError if it is broken.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with loading(f"the judge {name_or_path!r}"):
        model = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    longest = int(min(tokenizer.model_max_length, positions(model.config), 512))
    fitted = {"padding": True, "padding_side": "right", "truncation": True, "max_length": longest}
    end = (tokenizer.eos_token or "") if model.config.num_labels == 1 else ""

    @torch.no_grad()
    def log_odds(texts: list[str]) -> np.ndarray:
        found = np.zeros(len(texts))
        for rows in length_bucketed([len(text) for text in texts], 64, seed=0):
            batch = tokenizer([texts[i] + end for i in rows], return_tensors="pt", **fitted)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            found[rows] = logits[:, -1] if logits.shape[1] == 1 else logits[:, -1] - logits[:, :-1].logsumexp(-1)
        return found

    return log_odds


def classifier_judge(name_or_path: str) -> Judge:
    """A judge that goes by the sign of `classifier_log_odds`."""
    log_odds = classifier_log_odds(name_or_path)
    return lambda texts: (log_odds(texts) > 0).astype(float)


JUDGES: dict[str, Judge] = {"grammar": grammar_judge, "vader": vader_judge}
