"""A contender of `speed.py`: the loops that most tutorials show, in fp32.

    python benchmarks/plain.py sft|rm|rollouts|ppo

Supervised and reward-model training take random batches, padded to the longest row. PPO samples each
prompt alone, scores each response alone and learns in minibatches of 4.
"""

import sys
from functools import partial

import torch
import workload
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_

from rlhf_helpers.data import lm_labels, pad
from rlhf_helpers.ppo import gae, kl_penalised_rewards, ppo_loss, token_logprobs, whiten

MINIBATCH = 4


def step(loss, model, optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def one_pass(model, loss_on) -> None:
    """Random batches of the phrases; `loss_on(ids, mask, labels)` is what they are trained on."""
    rows, labels = workload.phrases()
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.LEARNING_RATE)
    model.train()

    def train(batches):
        for batch in batches:
            ids, mask = pad([rows[i] for i in batch], workload.END)
            step(loss_on(ids, mask, labels[batch]), model, optimizer)

    batches = workload.random_batches([len(row) for row in rows], workload.BATCH, seed=0)
    workload.measure(partial(train, batches), partial(train, batches[: workload.WARM_UP]))


def sft() -> None:
    lm = workload.language_model()
    one_pass(lm, lambda ids, mask, _: lm(input_ids=ids, attention_mask=mask, labels=lm_labels(ids, mask)).loss)


def rm() -> None:
    model = workload.reward_model()
    one_pass(
        model,
        lambda ids, mask, labels: binary_cross_entropy_with_logits(
            model(input_ids=ids, attention_mask=mask).logits[:, 0], labels
        ),
    )


def sample(policy, prompt) -> torch.Tensor:
    """(1, P + T): a prompt with its response."""
    prompt = torch.tensor([prompt])
    return policy.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0,
        max_new_tokens=workload.NEW_TOKENS, min_new_tokens=workload.NEW_TOKENS,
    )  # fmt: skip


def rollouts() -> None:
    policy = workload.language_model().eval()

    def one_by_one(prompts):
        for prompt in prompts:
            sample(policy, prompt)

    prompts = workload.prompts()
    workload.measure(partial(one_by_one, prompts), partial(one_by_one, prompts[:MINIBATCH]))


def ppo() -> None:
    policy, reference, scorer = (
        workload.language_model(),
        workload.language_model().eval(),
        workload.reward_model().eval(),
    )
    value_head = torch.nn.Linear(policy.config.n_embd, 1)
    parameters = torch.nn.ModuleList([policy, value_head])
    optimizer = torch.optim.Adam(parameters.parameters(), lr=workload.LEARNING_RATE, eps=1e-5)

    def responses(model, ids, mask, starts):
        """Logits and last states that predict the response tokens, each (B, T, .)."""
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        columns = starts[:, None] + torch.arange(workload.NEW_TOKENS) - 1
        rows = torch.arange(len(ids))[:, None]
        return out.logits[rows, columns], out.hidden_states[-1][rows, columns], ids[rows, columns + 1]

    def update(prompts):
        policy.eval()  # no dropout, or the first ratio is not 1
        old = []
        with torch.no_grad():
            for prompt in prompts:
                ids = sample(policy, prompt)
                mask, start = torch.ones_like(ids), torch.tensor([len(prompt)])
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
                batch, mask = pad([ids[i].tolist() for i in some], workload.END)
                logits, states, tokens = responses(policy, batch, mask, torch.cat([starts[i] for i in some]))
                loss, _ = ppo_loss(
                    token_logprobs(logits, tokens), value_head(states).squeeze(-1), logprobs[some], values[some],
                    advantages[some], returns[some], torch.ones_like(logprobs[some]),
                )  # fmt: skip
                step(loss, parameters, optimizer)

    prompts = workload.prompts()
    workload.measure(partial(update, prompts), partial(update, prompts[:MINIBATCH]))


if __name__ == "__main__":
    torch.set_default_device(workload.DEVICE)
    {"sft": sft, "rm": rm, "rollouts": rollouts, "ppo": ppo}[sys.argv[1]]()
