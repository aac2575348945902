"""Who pays for shorter responses: the reward, the end penalty or the KL? After notebook 3, with the same preset.

    RLHF_PRESET=smollm2 python benchmarks/length.py

The policy gradient moves the mean length by the covariance of length and return, and the return of a response is
a sum: the reward model's score where it ended, the penalty where it did not, and the price of its KL. So the
covariance is a sum as well. Each part, divided by the variance of the length, says how many standard deviations of
reward one token more is worth: before PPO, when the KL is 0, and after it.
"""

import pandas as pd
import torch
from trained import notebook_3

from rlhf_helpers import models
from rlhf_helpers.environment import prepare
from rlhf_helpers.evaluation import response_logprob
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import autocast

prepare()
torch.set_grad_enabled(False)
preset = load_preset()
run, tuned = notebook_3(preset), models.load_lm(str(preset.require("policy"))).to(preset.device)


def parts_of_the_return(lm, batch) -> pd.DataFrame:
    with autocast(preset):
        kl = response_logprob(lm, batch) - response_logprob(run.reference, batch)
    score = run.reward(batch.input_ids, batch.attention_mask)
    return pd.DataFrame({
        "length": batch.response_mask.sum(1).cpu(),
        "ended": batch.ended.double().cpu(),
        "reward model's score": (score * batch.ended).cpu(),
        "end penalty": (preset.ppo_no_eos_score * ~batch.ended).cpu(),
        "price of the KL": (-preset.ppo_beta * kl).cpu(),
    })  # fmt: skip


table = {}
for name, lm, batches in (("before", run.reference, run.samples), ("after", tuned, run.sample(tuned, 512))):
    found = pd.concat(parts_of_the_return(lm, batch) for batch in batches).astype(float)
    slopes = found.cov()["length"][2:] / found["length"].var()
    table[name] = pd.concat([found[["length", "ended"]].mean(), slopes])
    table[name]["sum of the three"] = slopes.sum()
print(pd.DataFrame(table).round(3).to_string())
