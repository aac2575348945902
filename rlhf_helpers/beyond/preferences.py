"""Learning from preferences: pairs in one form, responses that were given, DPO's loss.

A preference is a prompt and two responses, the first preferred. Sources: Bradley & Terry
(1952), DPO (arXiv 2305.18290).
"""

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from rlhf_helpers.checks import check, check_shapes
from rlhf_helpers.data import pad
from rlhf_helpers.models import LanguageModel
from rlhf_helpers.ppo import token_logprobs
from rlhf_helpers.rollouts import Rollouts, response_outputs

ASSISTANT = "\n\nAssistant:"  # HH-RLHF's mark of the assistant's turn


def given_responses(prompts: list[list[int]], responses: list[list[int]], pad_id: int, device: str = "cpu") -> Rollouts:
    """Rollouts of responses that somebody wrote, as token ids that end in end-of-text.

    `response_logprob` then scores them; the log-probabilities at sampling are unknown, and 0.
    """
    check(len(prompts) == len(responses), f"{len(prompts)} prompts and {len(responses)} responses")
    for i, pair in enumerate(zip(prompts, responses)):
        check(all(pair), f"pair {i} has an empty prompt or response")
    parts = (*pad(prompts, pad_id, side="left"), *pad(responses, pad_id))
    logprobs, ended = torch.zeros(parts[-1].shape), torch.ones(len(prompts), dtype=torch.bool)
    return Rollouts(*(part.to(device) for part in (*parts, logprobs, ended)))


def response_loss(lm: LanguageModel, rollouts: Rollouts) -> torch.Tensor:
    """The language-model loss on the responses only, a scalar: nats per response token."""
    logits, _, token_index = response_outputs(lm, rollouts)
    return -token_logprobs(logits, rollouts.response_ids[token_index]).mean()


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of direct preference optimisation, a scalar, and its statistics.

        implicit reward = beta (log pi(response) - log pi_ref(response))
        loss            = -mean log sigmoid(implicit reward of chosen - of rejected)

    Each tensor is (B,): the log-probability of a whole response. Statistics: `accuracy` (how often the
    chosen one has the larger implicit reward), `margin` and `chosen_reward` (means, in units of the
    reward). Source: arXiv 2305.18290, equation 7.
    """
    check_shapes(chosen, rejected, ref_chosen, ref_rejected)
    chosen_reward, rejected_reward = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    margin = chosen_reward - rejected_reward
    stats = {"accuracy": (margin > 0).float(), "margin": margin, "chosen_reward": chosen_reward}
    return -logsigmoid(margin).mean(), {name: x.mean().item() for name, x in stats.items()}


def to_preferences(rows: Dataset, name: str = "the data set") -> Dataset:
    """A preference data set in one form: columns `prompt`, `chosen` and `rejected`, all text.

    Understands that form; Anthropic's HH-RLHF (two dialogues, alike up to the last answer); SHP; OpenAI's TL;DR
    comparisons; and summaries judged against a reference: `FORMS` has their columns. Rows that hold no preference
    are left out, and how many is printed. Raises ValueError, naming the columns, for others, and if no row is left.
    """
    columns = rows.column_names
    forms = [read for needed, read in FORMS.items() if set(needed) <= set(columns)]
    known = "; ".join(", ".join(needed) for needed in FORMS)
    check(forms, f"{name} has columns {columns}; a preference data set has one of these sets: {known}")
    names = ("prompt", "chosen", "rejected")
    pairs = rows.map(lambda row: dict(zip(names, forms[0](row))), remove_columns=columns).filter(_is_preference)
    if len(pairs) < len(rows):
        print(f"{name}: {len(rows) - len(pairs)} of {len(rows)} rows hold no preference and are left out")
    check(len(pairs), f"{name}: no row holds a preference")
    return pairs


def _is_preference(row: dict) -> bool:
    texts = all(isinstance(row[x], str) and row[x].strip() for x in ("prompt", "chosen", "rejected"))
    return texts and row["chosen"].strip() != row["rejected"].strip()


def _dialogues(row: dict) -> tuple[str, str, str]:
    """HH-RLHF: the prompt is everything up to the last "Assistant:", and must be the same in both."""
    head, turn, answer = str(row["chosen"] or "").rpartition(ASSISTANT)
    prompt, other = head + turn, str(row["rejected"] or "")
    return prompt, answer, other.removeprefix(prompt) if prompt and other.startswith(prompt) else ""


def _answers(row: dict) -> tuple[str, str, str]:
    """SHP: label 1 says that A is preferred."""
    a, b = row["human_ref_A"], row["human_ref_B"]
    return row["history"], *{1: (a, b), 0: (b, a)}.get(row["labels"], ("", ""))


def _summaries(row: dict) -> tuple[str, str, str]:
    """OpenAI's comparisons: a Reddit post in the form of Stiennon et al. (arXiv 2009.01325, appendix)."""
    post, texts, choice = row["info"] or {}, [summary["text"] for summary in row["summaries"] or ()], row["choice"]
    if not {"subreddit", "title", "post"} <= set(post) or len(texts) != 2 or choice not in (0, 1):
        return "", "", ""
    prompt = f"SUBREDDIT: r/{post['subreddit']}\n\nTITLE: {post['title']}\n\nPOST: {post['post']}\n\nTL;DR:"
    return prompt, texts[choice], texts[1 - choice]


def _judged(row: dict) -> tuple[str, str, str]:
    """A summary and a reference, `preferred` one of "ours", "reference" and nothing."""
    ours, reference = row["postprocessed_response"], row["reference_responses"]
    pairs = {"ours": (ours, reference), "reference": (reference, ours)}
    return row["query"], *pairs.get(row["preferred"], ("", ""))


FORMS = {  # columns -> how to read prompt, chosen and rejected from a row
    ("prompt", "chosen", "rejected"): lambda row: (row["prompt"], row["chosen"], row["rejected"]),
    ("chosen", "rejected"): _dialogues,
    ("history", "human_ref_A", "human_ref_B", "labels"): _answers,
    ("info", "summaries", "choice"): _summaries,
    ("query", "postprocessed_response", "reference_responses", "preferred"): _judged,
}
