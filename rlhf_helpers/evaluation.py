"""How good is a policy? Judges, perplexity, diversity, win rate, and their uncertainty."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.checks import check, loading, positions
from rlhf_helpers.data import decode, length_bucketed, lm_labels, pad
from rlhf_helpers.models import LanguageModel
from rlhf_helpers.ppo import token_logprobs
from rlhf_helpers.rollouts import Rollouts, response_outputs, sample_rollouts
from rlhf_helpers.tiny import grammar

Judge = Callable[[list[str]], np.ndarray]  # texts -> 1 for each judged positive, else 0


def grammar_judge(texts: list[str]) -> np.ndarray:
    """Exact on the embedded corpus: 1 where the grammar parses a text as positive, else 0."""
    return np.array([float(grammar.judge(text) == 1) for text in texts])


def vader_judge(texts: list[str]) -> np.ndarray:
    """VADER, a lexicon with rules (Hutto & Gilbert 2014): 1 where its compound score is >= 0.05.

    The threshold is its authors'; a text without a sentiment word is not positive. The first 5,000
    characters are read: VADER's time grows with the square of them.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    vader = SentimentIntensityAnalyzer()
    return np.array([float(vader.polarity_scores(text[:5000])["compound"] >= 0.05) for text in texts])


def classifier_log_odds(name_or_path: str) -> Callable[[list[str]], np.ndarray]:
    """A text classifier of transformers: texts -> log-odds that each is positive, (N,).

    Its positive class is the last; one with a single output gives the log-odds itself, as `RewardModel` and
    `imdb_judge` do, and reads texts that end in end-of-text. Take one that was trained on other data than the
    reward model. Raises OSError if it can't be had or has no safetensors, ValueError if it is broken.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with loading(f"the judge {name_or_path!r}"):
        model = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    longest = int(min(tokenizer.model_max_length, positions(model.config), 512))
    end = (tokenizer.eos_token or "") if model.config.num_labels == 1 else ""

    @torch.no_grad()
    def log_odds(texts: list[str]) -> np.ndarray:
        found = np.zeros(len(texts))
        for rows in length_bucketed([len(text) for text in texts], 64, seed=0):
            ended = [texts[i] + end for i in rows]
            batch = tokenizer(
                ended, padding=True, padding_side="right", truncation=True, max_length=longest, return_tensors="pt"
            )
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            found[rows] = logits[:, -1] if logits.shape[1] == 1 else logits[:, -1] - logits[:, :-1].logsumexp(-1)
        return found

    return log_odds


def classifier_judge(name_or_path: str) -> Judge:
    """A judge that goes by the sign of `classifier_log_odds`."""
    log_odds = classifier_log_odds(name_or_path)
    return lambda texts: (log_odds(texts) > 0).astype(float)


JUDGES: dict[str, Judge] = {"grammar": grammar_judge, "vader": vader_judge}


@torch.no_grad()
def mean_nll(lm: PreTrainedModel, rows: list[list[int]], pad_id: int, batch: int = 64) -> float:
    """Negative log-likelihood in nats a token of token id rows; its exp is the perplexity.

    The first token of a row has no prediction and is not counted.
    """
    rows = [row for row in rows if len(row) > 1]
    check(rows, "nothing to predict: no row has two tokens")
    lm.eval()
    total = count = 0
    for indices in length_bucketed([len(row) for row in rows], batch, seed=0):
        ids, mask = (x.to(lm.device) for x in pad([rows[i] for i in indices], pad_id))
        labels = lm_labels(ids, mask)[:, 1:]
        logprobs = token_logprobs(lm(input_ids=ids, attention_mask=mask).logits[:, :-1], ids[:, 1:])
        total -= logprobs[labels != -100].sum().item()
        count += (labels != -100).sum().item()
    return total / count


def response_logprob(model: LanguageModel, rollouts: Rollouts) -> torch.Tensor:
    """log pi(response | prompt) of each row, summed over its tokens, (B,)."""
    logits, _, where = response_outputs(model, rollouts)
    logprobs = token_logprobs(logits, rollouts.response_ids[where])
    return logprobs.new_zeros(len(rollouts)).index_add(0, where[0], logprobs)


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Distinct n-grams of words over all (Li et al. 2016), 0 if there are none; compare equal numbers of texts."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def evaluate(
    policy: LanguageModel,
    reference: LanguageModel,
    base: LanguageModel,
    reward: Callable,
    judge: Judge,
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    seed: int,
    batch: int = 128,
) -> pd.DataFrame:
    """One sampled response a prompt, judged; one row each.

    Columns: `prompt`, `text`, `reward`, `judge_positive`, `kl` (to the reference, nats a
    response, k1), `nll` (under the base model, nats, summed), `length` (tokens), `eos_rate` (0/1).
    The same seed gives every policy the same random numbers.
    """
    check(prompts and batch >= 1, f"no prompts, or none at a time: {len(prompts)}, in batches of {batch}")
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    frames = []
    for start in range(0, len(prompts), batch):
        rollouts = sample_rollouts(policy, prompts[start : start + batch], tokenizer, max_new_tokens, generator)
        logprobs, ref, under_base = (response_logprob(model, rollouts) for model in (policy, reference, base))
        columns = {
            "reward": reward(rollouts.input_ids, rollouts.attention_mask),
            "kl": logprobs - ref,
            "nll": -under_base,
            "length": rollouts.response_mask.sum(1),
            "eos_rate": rollouts.ended.float(),
        }
        frame = pd.DataFrame({name: x.float().cpu().numpy() for name, x in columns.items()})
        frame.insert(0, "prompt", decode(rollouts.prompt_ids, tokenizer))
        frame.insert(1, "text", rollouts.texts(tokenizer))
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    frame["judge_positive"] = judge(frame["text"].tolist())
    if judge is grammar_judge:
        frame["well_formed"] = [float(grammar.well_formed(text)) for text in frame["text"]]
    return frame


def bootstrap(frame: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of a statistic over rows (1,000 resamples)."""
    check(len(frame), "there are no rows to draw from")
    rng = np.random.default_rng(seed)
    draws = [statistic(frame.iloc[rng.integers(len(frame), size=len(frame))]) for _ in range(1000)]
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]


def jackknife(texts: list[str], statistic: Callable[[list[str]], float], groups: int = 20) -> list[float]:
    """95 % interval by leaving out one of `groups` groups at a time.

    For distinct-n, where a bootstrap would repeat texts and so see less diversity than there is.
    """
    check(len(texts) >= 2, f"two texts are needed, so that one can be left out, and there are {len(texts)}")
    whole, groups = statistic(texts), min(groups, len(texts))
    left_out = np.array([statistic([t for i, t in enumerate(texts) if i % groups != g]) for g in range(groups)])
    error = math.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    return [whole - 1.96 * error, whole + 1.96 * error]


def summarise(frame: pd.DataFrame) -> dict:
    """The figures of one policy, and under `intervals` the 95 % interval of each."""
    means = ["reward", "judge_positive", "kl", "eos_rate", "length"]
    means += ["well_formed"] if "well_formed" in frame else []
    statistics: dict[str, Callable] = {name: lambda f, name=name: float(f[name].mean()) for name in means}
    statistics["perplexity"] = lambda f: float(math.exp(f["nll"].sum() / f["length"].sum()))
    summary = {name: statistic(frame) for name, statistic in statistics.items()}
    intervals = {name: bootstrap(frame, statistic) for name, statistic in statistics.items()}
    summary["distinct_2"] = distinct_n(frame["text"].tolist())
    intervals["distinct_2"] = jackknife(frame["text"].tolist(), distinct_n)
    return summary | {"intervals": intervals}


def win_rate(ours: pd.Series, theirs: pd.Series) -> float:
    """Share of prompts on which `ours` scores higher; a tie is half a win."""
    check(len(ours) == len(theirs) > 0, f"{len(ours)} and {len(theirs)} scores can't be compared one by one")
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def best_of_n_kl(n: int) -> float:
    """KL of the best of n samples to the policy they come from, in nats: ln n - (n - 1) / n.

    An upper bound, tight where no two samples tie (Beirami et al., arXiv 2401.01879).
    """
    check(n >= 1, f"n is {n}, but must be 1 or more")
    return math.log(n) - (n - 1) / n


def save_json(path: Path, value: dict) -> None:
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
