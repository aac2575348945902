"""How good is a policy? Perplexity, diversity, win rate, and their uncertainty."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.data import decode, length_bucketed, lm_labels, pad
from rlhf_helpers.judges import Judge, grammar_judge
from rlhf_helpers.models import LanguageModel
from rlhf_helpers.ppo import token_logprobs
from rlhf_helpers.rollouts import Rollouts, response_outputs, sample_rollouts


@torch.no_grad()
def mean_nll(lm: PreTrainedModel, rows: list[list[int]], pad_id: int, batch: int = 64) -> float:
    """Negative log-likelihood of token id rows, nats per token; a row's first, which nothing predicts, is left out."""
    rows = [row for row in rows if len(row) > 1]
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
    logits, _, token_index = response_outputs(model, rollouts)
    logprobs = token_logprobs(logits, rollouts.response_ids[token_index])
    return logprobs.new_zeros(len(rollouts)).index_add(0, token_index[0], logprobs)


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Distinct n-grams of words over all (Li et al. 2016), 0 if there are none; compare equal numbers of texts."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def evaluate(
    policy: LanguageModel, reference: LanguageModel, base: LanguageModel, reward: Callable, judge: Judge,
    prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, seed: int, batch: int = 128,
) -> pd.DataFrame:  # fmt: skip
    """One sampled response to each prompt, judged; one row each.

    Columns: `prompt`, `text`, `reward`, `judge_positive`, `kl` (to the reference, nats per
    response, k1), `nll` (under the base model, nats, summed), `length` (tokens), `eos_rate` (0/1).
    The same seed gives every policy the same random numbers, until a response ends earlier than another policy's.
    """
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    frames = []
    for start in range(0, len(prompts), batch):
        rollouts = sample_rollouts(policy, prompts[start : start + batch], tokenizer, max_new_tokens, generator)
        logprobs, ref, under_base = (response_logprob(model, rollouts) for model in (policy, reference, base))
        texts = {"prompt": decode(rollouts.prompt_ids, tokenizer), "text": rollouts.texts(tokenizer)}
        columns = {
            "reward": reward(rollouts.input_ids, rollouts.attention_mask),
            "kl": logprobs - ref,
            "nll": -under_base,
            "length": rollouts.response_mask.sum(1),
            "eos_rate": rollouts.ended,
        }
        frames.append(pd.DataFrame(texts | {name: x.float().cpu().numpy() for name, x in columns.items()}))
    frame = pd.concat(frames, ignore_index=True)
    frame["judge_positive"] = judge(frame["text"].tolist())
    if judge is grammar_judge:
        from rlhf_helpers.tiny import grammar

        frame["well_formed"] = [float(grammar.well_formed(text)) for text in frame["text"]]
    return frame


def bootstrap(frame: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of a statistic over rows (1,000 resamples)."""
    rng = np.random.default_rng(seed)
    draws = [statistic(frame.iloc[rng.integers(len(frame), size=len(frame))]) for _ in range(1000)]
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]


def jackknife(texts: list[str], statistic: Callable[[list[str]], float], groups: int = 20) -> list[float]:
    """95 % interval by leaving out one group at a time: a bootstrap's repeated texts would look less diverse."""
    groups = min(groups, len(texts))
    left_out = np.array([statistic([t for i, t in enumerate(texts) if i % groups != g]) for g in range(groups)])
    error = math.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    return [statistic(texts) - 1.96 * error, statistic(texts) + 1.96 * error]


def summarise(frame: pd.DataFrame) -> dict:
    """The figures of one policy, and under `intervals` the 95 % interval of each."""
    means = [x for x in ("reward", "judge_positive", "kl", "eos_rate", "length", "well_formed") if x in frame]
    statistics: dict[str, Callable] = {name: lambda f, name=name: float(f[name].mean()) for name in means}
    statistics["perplexity"] = lambda f: float(math.exp(f["nll"].sum() / f["length"].sum()))
    summary = {name: statistic(frame) for name, statistic in statistics.items()}
    intervals = {name: bootstrap(frame, statistic) for name, statistic in statistics.items()}
    summary["distinct_2"] = distinct_n(frame["text"].tolist())
    intervals["distinct_2"] = jackknife(frame["text"].tolist(), distinct_n)
    return summary | {"intervals": intervals}


def best_of_n_kl(n: int) -> float:
    """KL of the best of n samples to their policy: ln n - (n - 1) / n nats, less if samples tie (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def save_json(path: Path, value: dict) -> None:
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
