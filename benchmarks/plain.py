"""A contender of `speed.py`: the loops that most tutorials show, in fp32.

    python benchmarks/plain.py sft|rm|ppo

Supervised and reward-model training take random batches, padded to the longest row. PPO samples each
prompt alone, scores each response alone and learns in minibatches of 4.
"""

import random
import sys
from functools import partial

import torch
import workload
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torch.nn.utils import clip_grad_norm_
from transformers import GPT2ForSequenceClassification

from rlhf_helpers.data import lm_labels
from rlhf_helpers.data import pad as pad_rows
from rlhf_helpers.ppo import gae, kl_penalised_rewards, ppo_loss, token_logprobs, whiten

MINIBATCH = 4


def reward_model() -> GPT2ForSequenceClassification:
    config = workload.language_model().config
    config.num_labels = 1
    return GPT2ForSequenceClassification(config)


def step(loss, model, optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def random_batches(n: int) -> list[list[int]]:
    order = random.Random(0).sample(range(n), n)
    return [order[i : i + workload.BATCH] for i in range(0, n, workload.BATCH)]


def sft() -> None:
    rows, _ = workload.phrases()
    lm = workload.language_model().train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=workload.LEARNING_RATE)

    def train(batches):
        for batch in batches:
            ids, mask = pad_rows([rows[i] for i in batch], workload.END)
            step(lm(input_ids=ids, attention_mask=mask, labels=lm_labels(ids, mask)).loss, lm, optimizer)

    batches = random_batches(len(rows))
    workload.measure(partial(train, batches), partial(train, batches[:1]))


def rm() -> None:
    rows, labels = workload.phrases()
    model = reward_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.LEARNING_RATE)

    def train(batches):
        for batch in batches:
            ids, mask = pad_rows([rows[i] for i in batch], workload.END)
            scores = model(input_ids=ids, attention_mask=mask).logits[:, 0]
            step(binary_cross_entropy_with_logits(scores, labels[batch]), model, optimizer)

    batches = random_batches(len(rows))
    workload.measure(partial(train, batches), partial(train, batches[:1]))


def ppo() -> None:
    prompts = workload.prompts()
    policy, reference, scorer = workload.language_model(), workload.language_model().eval(), reward_model().eval()
    value_head = torch.nn.Linear(policy.config.n_embd, 1)
    parameters = torch.nn.ModuleList([policy, value_head])
    optimizer = torch.optim.Adam(parameters.parameters(), lr=workload.LEARNING_RATE, eps=1e-5)

    def responses(model, ids, mask, starts):
        """Logits and last states that predict the response tokens, each (B, T, .)."""
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        columns = starts[:, None] + torch.arange(workload.NEW_TOKENS) - 1
        rows = torch.arange(len(ids))[:, None]
        return out.logits[rows, columns], out.hidden_states[-1][rows, columns], ids[rows, columns + 1]

    def update():
        policy.eval()  # no dropout, or the first ratio is not 1
        old = []
        with torch.no_grad():
            for prompt in prompts:
                prompt = torch.tensor([prompt])
                ids = policy.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0,
                    max_new_tokens=workload.NEW_TOKENS, min_new_tokens=workload.NEW_TOKENS,
                )  # fmt: skip
                mask, start = torch.ones_like(ids), torch.tensor([prompt.shape[1]])
                logits, states, tokens = responses(policy, ids, mask, start)
                logprobs, values = token_logprobs(logits, tokens), value_head(states).squeeze(-1)
                ref_logits, _, _ = responses(reference, ids, mask, start)
                score = scorer(input_ids=ids, attention_mask=mask).logits[:, 0]
                ones = torch.ones_like(logprobs)
                rewards = kl_penalised_rewards(score, logprobs, token_logprobs(ref_logits, tokens), ones, 0.1)
                old.append((ids[0], start, logprobs, values, *gae(rewards, values, ones)))
        ids, starts, logprobs, values, advantages, returns = zip(*old)
        logprobs, values, advantages, returns = map(torch.cat, (logprobs, values, advantages, returns))
        advantages = whiten(advantages, torch.ones_like(advantages))
        for _ in range(workload.EPOCHS):
            for some in torch.randperm(len(ids)).split(MINIBATCH):
                width = max(len(ids[i]) for i in some)
                batch = torch.stack([pad(ids[i], (0, width - len(ids[i])), value=workload.END) for i in some])
                mask = torch.stack([pad(torch.ones_like(ids[i]), (0, width - len(ids[i]))) for i in some])
                logits, states, tokens = responses(policy, batch, mask, torch.cat([starts[i] for i in some]))
                loss, _ = ppo_loss(
                    token_logprobs(logits, tokens), value_head(states).squeeze(-1), logprobs[some], values[some],
                    advantages[some], returns[some], torch.ones_like(logprobs[some]),
                )  # fmt: skip
                step(loss, parameters, optimizer)

    workload.measure(update, update)


if __name__ == "__main__":
    {"sft": sft, "rm": rm, "ppo": ppo}[sys.argv[1]]()
