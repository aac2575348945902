"""How much of the variance of the returns can a critic explain, from so many responses?

    RLHF_PRESET=smollm2 python benchmarks/critic.py

1,280 responses of the SFT policy are sampled and scored; critics that start from the reward model, with a head of zeros
or with the reward model's own, learn the full returns of 1,024 of them at two rates, and forecast those of the other
256. The policy stands still, so this is the easiest case that a critic can have. Needs notebooks 1 and 2.
"""

import torch

from rlhf_helpers import data, models, ppo, rollouts
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import autocast

BATCHES, HELD_OUT, BATCH, MINIBATCH = 40, 8, 32, 16


def sampled(preset, tokenizer, reference, reward_model) -> tuple[list[tuple], float, float]:
    """Batches of (rollouts, full returns (B, T)), and mean and standard deviation of the raw scores."""
    sentences = data.load_sentences(preset.dataset, seed=preset.seed)["test"]["sentence"]
    rows = data.encode(sentences, tokenizer, preset.max_tokens)
    torch.manual_seed(preset.seed)
    raw, batches = [], []
    for i in range(BATCHES):
        prompts = data.sample_prompts(rows, BATCH, preset.ppo_prompt_tokens, 5000 + i)
        with torch.no_grad(), autocast(preset):
            batches.append(rollouts.sample_rollouts(reference, prompts, tokenizer, preset.ppo_new_tokens))
            raw.append(reward_model(batches[-1].input_ids, batches[-1].attention_mask))
    mean, std = torch.cat(raw).mean().item(), torch.cat(raw).std().item()
    found = []
    for batch, scores in zip(batches, raw):  # the SFT policy pays no KL price: the return is the score
        scores = torch.where(batch.ended, (scores - mean) / std, preset.ppo_no_eos_score)
        found.append((batch, scores[:, None] * batch.response_mask))
    return found, mean, std


def values_of(critic, batch) -> torch.Tensor:
    """The critic's forecast before each response token, (B, T)."""
    hidden = models.hidden_states(critic.critic, batch.input_ids, batch.attention_mask)
    return models.in_fp32(critic.value_head, hidden)[:, batch.prompt_ids.shape[1] - 1 : -1, 0]


def explained(critic, batches, preset) -> float:
    """Explained variance over all response tokens of the batches."""
    values, returns = [], []
    for batch, G in batches:
        with torch.no_grad(), autocast(preset):
            values.append(values_of(critic, batch)[batch.response_mask == 1])
        returns.append(G[batch.response_mask == 1])
    V, G = torch.cat(values), torch.cat(returns)
    return ppo.explained_variance(V, G, torch.ones_like(V))


def main() -> None:
    prepare()
    preset = load_preset()
    sft = str(preset.require("sft"))
    tokenizer, reference = data.load_tokenizer(sft), models.freeze(models.load_lm(sft))
    reward_model = models.freeze(models.RewardModel.from_pretrained(preset.require("reward_model")))
    batches, mean, std = sampled(preset, tokenizer, reference, reward_model)
    held_out, train = batches[:HELD_OUT], batches[HELD_OUT:]
    for head in ("zero", "reward model's"):
        for rate in (5e-5, 2e-4):
            torch.manual_seed(preset.seed)
            critic = models.PolicyWithValueHead(reference, critic=reward_model)
            if head != "zero":
                with torch.no_grad():
                    critic.value_head.weight.copy_(reward_model.model.score.weight / std)
                    critic.value_head.bias.fill_(-mean / std)
            parameters = [*critic.critic.parameters(), *critic.value_head.parameters()]
            optimizer = torch.optim.Adam(parameters, lr=rate, eps=1e-5)
            found = [explained(critic, held_out, preset)]
            for i, (batch, G) in enumerate(train, 1):
                for rows in torch.arange(BATCH).split(MINIBATCH):
                    with autocast(preset):
                        errors = values_of(critic, batch[rows]) - G[rows]
                    optimizer.zero_grad()
                    (0.5 * ppo.masked_mean(errors.square(), batch[rows].response_mask)).backward()
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                if i % 8 == 0:
                    found.append(explained(critic, held_out, preset))
            print(f"| {head} | {rate:g} | {' | '.join(f'{x:.2f}' for x in found)} |", flush=True)


if __name__ == "__main__":
    main()
