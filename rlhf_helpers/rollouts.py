"""Rollouts: prompts in, sampled responses and their log-probabilities out."""

from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from rlhf_helpers.data import pad
from rlhf_helpers.models import position_ids


@dataclass
class Rollouts:
    """B prompts of up to P tokens, left-padded, and responses of up to T tokens, right-padded.

    Prompt and response meet in one column, so that a batch of any lengths is one rectangle:
    `. . p p p | r r r e .` (e: end-of-text, real and sampled; dots: padding, masked).
    """

    prompt_ids: torch.Tensor  # (B, P)
    prompt_mask: torch.Tensor  # (B, P)
    response_ids: torch.Tensor  # (B, T)
    response_mask: torch.Tensor  # (B, T), 1 up to and including the end-of-text
    logprobs: torch.Tensor  # (B, T), recorded while sampling; 0 on padding
    ended: torch.Tensor  # (B,), whether the response reached its end-of-text

    @property
    def input_ids(self) -> torch.Tensor:
        """(B, P + T)"""
        return torch.cat([self.prompt_ids, self.response_ids], 1)

    @property
    def attention_mask(self) -> torch.Tensor:
        """(B, P + T)"""
        return torch.cat([self.prompt_mask, self.response_mask], 1)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __getitem__(self, rows) -> "Rollouts":
        """The rollouts of some rows (a slice or a tensor of indices)."""
        return Rollouts(*(getattr(self, field.name)[rows] for field in fields(self)))

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Each prompt with its response, without special tokens or padding."""
        return tokenizer.batch_decode(self.input_ids, skip_special_tokens=True)


@torch.no_grad()
def sample_rollouts(
    policy: nn.Module,
    prompts: list[list[int]] | list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """One response to each prompt (text or token ids), sampled together with a KV cache.

    Samples at temperature 1 from the whole distribution: the log-probabilities recorded are
    then those of the policy itself, which the ratio and the KL are about (trl#235). `policy`
    is a `PolicyWithValueHead` or any causal language model of transformers. A row stops at its
    own end-of-text, the batch when all have. Raises ValueError for no prompt, an empty one, or
    one that does not fit into the model's positions with its response.
    """
    rows = [tokenizer(p, add_special_tokens=False)["input_ids"] if isinstance(p, str) else p for p in prompts]
    lm = getattr(policy, "lm", policy)
    _check_prompts(rows, max_new_tokens, lm.config.max_position_embeddings)
    eos, device = tokenizer.eos_token_id, lm.device

    prompt_ids, prompt_mask = (x.to(device) for x in pad(rows, tokenizer.pad_token_id, side="left"))
    mask, next_ids, next_positions = prompt_mask, prompt_ids, position_ids(prompt_mask)
    alive = torch.ones(len(rows), dtype=torch.bool, device=device)
    cache, ids, alive_at, logprobs = DynamicCache(config=lm.config), [], [], []
    was_training = policy.training
    policy.eval()
    for _ in range(max_new_tokens):
        logits = policy(
            input_ids=next_ids, attention_mask=mask, position_ids=next_positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )[0][:, -1]  # fmt: skip
        distribution = logits.float().log_softmax(-1)
        sampled = torch.multinomial(distribution.exp(), 1, generator=generator)
        ids.append(sampled.squeeze(1).where(alive, tokenizer.pad_token_id))
        logprobs.append(distribution.gather(1, sampled).squeeze(1).where(alive, 0.0))
        alive_at.append(alive)
        alive = alive & (ids[-1] != eos)
        if not alive.any():
            break
        mask = torch.cat([mask, alive_at[-1].long()[:, None]], 1)
        next_ids, next_positions = ids[-1][:, None], next_positions[:, -1:] + 1
    policy.train(was_training)
    return Rollouts(
        prompt_ids, prompt_mask, torch.stack(ids, 1), torch.stack(alive_at, 1).long(), torch.stack(logprobs, 1), ~alive
    )


def _check_prompts(rows: list[list[int]], max_new_tokens: int, positions: int) -> None:
    if not rows or max_new_tokens < 1:
        raise ValueError(f"nothing to sample: {len(rows)} prompts, max_new_tokens={max_new_tokens}")
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {i} is empty. To start from nothing, make the prompt end-of-text.")
        if len(row) + max_new_tokens > positions:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens; with {max_new_tokens} new ones that is more than the "
                f"model's {positions} positions. Shorten the prompt or max_new_tokens."
            )


def response_outputs(model: nn.Module, rollouts: Rollouts) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (B, T, V) that predict each response token and, of a policy, values (B, T).

    The logits at one column predict the next, so these are the last T + 1 columns without the
    last: the off-by-one that hides best. A model without a value head gives None for values.
    """
    mask = rollouts.attention_mask
    outputs = model(
        input_ids=rollouts.input_ids, attention_mask=mask, position_ids=position_ids(mask),
        logits_to_keep=rollouts.response_ids.shape[1] + 1,
    )  # fmt: skip
    values = outputs[1][:, :-1] if isinstance(outputs, tuple) else None
    return outputs[0][:, :-1], values
