"""Who pays for shorter responses: the reward, the end penalty or the KL? After notebook 3, with the same preset.

    RLHF_PRESET=smollm2 python benchmarks/length.py

The policy gradient moves the mean length by the covariance of length and return, and the return of a response is a sum:
the reward model's score where it ended, the penalty where it did not, and the price of its KL. So the covariance is a
sum as well, and each part divided by the variance of the length says how many standard deviations of reward one token
more is worth. Printed for the policy before PPO (its KL is 0) and after.
"""

import pandas as pd
import torch

from rlhf_helpers import data, models, rollouts
from rlhf_helpers.beyond import loops
from rlhf_helpers.environment import prepare
from rlhf_helpers.evaluation import response_logprob
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import autocast

PROMPTS, BATCH = 512, 128


@torch.no_grad()
def main() -> None:
    prepare()
    preset = load_preset()
    sft = models.freeze(models.load_lm(str(preset.require("sft")))).to(preset.device)
    ppo = models.freeze(models.load_lm(str(preset.require("policy")))).to(preset.device)
    reward_model = models.freeze(models.RewardModel.from_pretrained(preset.require("reward_model"))).to(preset.device)
    tokenizer = data.load_tokenizer(str(preset.folder("sft")))
    sentences = data.load_sentences(preset.dataset, seed=preset.seed)["test"]["sentence"]
    rows = data.encode(sentences, tokenizer, preset.max_tokens)
    prompts = data.sample_prompts(rows, PROMPTS, preset.ppo_prompt_tokens, seed=preset.seed + 1)

    def sample(lm):
        generator = torch.Generator(preset.device).manual_seed(preset.seed)
        parts = [prompts[i : i + BATCH] for i in range(0, PROMPTS, BATCH)]
        with autocast(preset):
            return [rollouts.sample_rollouts(lm, p, tokenizer, preset.ppo_new_tokens, generator) for p in parts]

    samples = {"before": sample(sft), "after": sample(ppo)}
    reward = loops.normalised(reward_model, samples["before"], preset)
    figures = {}
    for name, lm in (("before", sft), ("after", ppo)):
        parts = samples[name]
        ended = torch.cat([part.ended for part in parts])
        length = torch.cat([part.response_mask.sum(1) for part in parts]).double()
        score = torch.cat([reward(part.input_ids, part.attention_mask) for part in parts]).double()
        with autocast(preset):
            kl = torch.cat([response_logprob(lm, part) - response_logprob(sft, part) for part in parts]).double()
        returns = {
            "reward model's score": score * ended,
            "end penalty": preset.ppo_no_eos_score * (~ended).double(),
            "price of the KL": -preset.ppo_beta * kl,
        }
        slope = {
            part: torch.cov(torch.stack([length, x]))[0, 1].item() / length.var().item() for part, x in returns.items()
        }
        figures[name] = {"mean length": length.mean().item(), "ended": ended.double().mean().item()}
        figures[name] |= {f"{part}, per token more": x for part, x in slope.items()} | {"sum": sum(slope.values())}
    print(pd.DataFrame(figures).round(4).to_string())


if __name__ == "__main__":
    main()
