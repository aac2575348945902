"""Rollouts: prompts in, sampled responses and their log-probabilities out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_columns
from transformers import DynamicCache, PreTrainedTokenizerBase

from rlhf_helpers import models
from rlhf_helpers.checks import check
from rlhf_helpers.data import decode, pad, positions
from rlhf_helpers.models import LanguageModel, PolicyWithValueHead, hidden_states, lm_logits


@dataclass
class Rollouts:
    """B prompts of up to P tokens, left-padded, and responses of up to T tokens, right-padded.

    Prompt and response meet in one column, so that a batch of any lengths is one rectangle:
    `. . p p p | r r r e .` (e: end-of-text, real and sampled; dots: padding, masked).
    """

    prompt_ids: Tensor  # (B, P)
    prompt_mask: Tensor  # (B, P)
    response_ids: Tensor  # (B, T)
    response_mask: Tensor  # (B, T), 1 up to and including the end-of-text
    logprobs: Tensor  # (B, T), recorded while sampling; 0 on padding
    ended: Tensor  # (B,), whether the response reached its end-of-text

    @property
    def input_ids(self) -> Tensor:
        """(B, P + T)"""
        return torch.cat([self.prompt_ids, self.response_ids], 1)

    @property
    def attention_mask(self) -> Tensor:
        """(B, P + T)"""
        return torch.cat([self.prompt_mask, self.response_mask], 1)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __getitem__(self, rows) -> "Rollouts":
        """The rollouts of some rows (a slice or a tensor of indices)."""
        return Rollouts(**{name: x[rows] for name, x in vars(self).items()})

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Each prompt with its response, without special tokens or padding."""
        return decode(self.input_ids, tokenizer)


@torch.no_grad()
def sample_rollouts(
    policy: LanguageModel, prompts: list[list[int]] | list[str], tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int, generator: torch.Generator | None = None,
    on_tokens: Callable[[Tensor, Tensor], None] | None = None,
) -> Rollouts:  # fmt: skip
    """One response to each prompt (text or token ids), sampled together with a KV cache.

    Samples at temperature 1 from the whole distribution: the log-probabilities recorded are then those of the policy
    itself, which the ratio and the KL are about (trl#235). A row stops at its own end-of-text and leaves the batch.
    `on_tokens(rows, ids)` is called as each column is sampled, with the rows still being written and a token for each,
    both (A,). Raises ValueError for no prompt, an empty one, or one that is too long for the model.
    """
    rows = [tokenizer(p, add_special_tokens=False)["input_ids"] if isinstance(p, str) else p for p in prompts]
    lm = policy.lm if isinstance(policy, PolicyWithValueHead) else policy
    check(rows and all(rows), f"no prompt, or an empty one, among {len(rows)}. To start from nothing: end-of-text.")
    longest, room = max(map(len, rows)), positions(lm.config) - max_new_tokens
    check(longest <= room, f"a prompt of {longest} tokens; {room} fit into the model's positions with the response")
    eos, device = tokenizer.eos_token_id, lm.device

    prompt_ids, prompt_mask = (x.to(device) for x in pad(rows, tokenizer.pad_token_id, side="left"))
    response_ids = torch.full((len(rows), max_new_tokens), tokenizer.pad_token_id, device=device)
    response_mask = torch.zeros_like(response_ids)
    logprobs = torch.zeros(response_ids.shape, device=device)
    alive = torch.arange(len(rows), device=device)  # the rows still being written, which the cache holds
    mask, next_ids, next_positions = prompt_mask, prompt_ids, models.position_ids(prompt_mask)
    cache = DynamicCache(config=lm.config)
    was_training = policy.training
    policy.eval()
    try:
        for t in range(max_new_tokens):
            cached = {"position_ids": next_positions, "past_key_values": cache, "use_cache": True}
            hidden = hidden_states(lm, next_ids, mask, **cached)[:, -1]
            distribution = lm_logits(lm, hidden).log_softmax(-1)
            sampled = torch.multinomial(distribution.exp(), 1, generator=generator)
            response_ids[alive, t] = sampled[:, 0]
            logprobs[alive, t] = distribution.gather(1, sampled)[:, 0]
            response_mask[alive, t] = 1
            if on_tokens:
                on_tokens(alive, sampled[:, 0])
            writing = (sampled[:, 0] != eos).nonzero()[:, 0]
            if len(writing) < len(alive):  # a finished row costs nothing from here on
                cache.batch_select_indices(writing)
                alive, mask, next_positions, sampled = (x[writing] for x in (alive, mask, next_positions, sampled))
            if len(alive) == 0:
                break
            mask = pad_columns(mask, (0, 1), value=1)
            next_ids, next_positions = sampled, next_positions[:, -1:] + 1
    finally:
        policy.train(was_training)
    ended = torch.ones(len(rows), dtype=torch.bool, device=device)
    ended[alive] = False
    response_ids, response_mask, logprobs = (x[:, : t + 1] for x in (response_ids, response_mask, logprobs))
    return Rollouts(prompt_ids, prompt_mask, response_ids, response_mask, logprobs, ended)


def response_outputs(
    model: LanguageModel, rollouts: Rollouts, rows_at_once: int = 32
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
    """What predicted each of the N real response tokens: logits (N, V), values (N,), where they are.

    "Where" is a pair of indices (row, column), each (N,): `rollouts.response_ids[token_index]` are the
    tokens predicted. A model without a value head gives None for values.

    Padding is not computed: rows go through the trunk `rows_at_once` at a time, sorted by length and moved to the
    left; and only the states that predict a response token meet the vocabulary. The state at one token predicts the
    next: the off-by-one that hides best.
    """
    logits, values, token_index = [], [], []
    for rows in rollouts.attention_mask.sum(1).argsort(stable=True).split(rows_at_once):
        part = rollouts[rows]
        input_ids = models.left_aligned(part.input_ids, part.attention_mask)
        row, column = part.response_mask.nonzero(as_tuple=True)
        before = row, part.prompt_mask.sum(1)[row] + column - 1
        if isinstance(model, PolicyWithValueHead):
            part_logits, part_values = model.heads(*(states[before] for states in model.states(input_ids)))
            values.append(part_values)
        else:
            part_logits = lm_logits(model, hidden_states(model, input_ids)[before])
        logits.append(part_logits)
        token_index.append((rows[row], column))
    row, column = (torch.cat(x) for x in zip(*token_index))
    return torch.cat(logits), torch.cat(values) if values else None, (row, column)
