"""What the precision of the output matrix costs, and what it gives: log-probabilities of real tokens, several ways.

    RLHF_PRESET=smollm2 python benchmarks/heads.py

The trunk computes in bfloat16 once. From its states log-probabilities are then made in bfloat16, in bfloat16 with the
mean row of the matrix taken away (softmax does not see it, and the logits get smaller), and in fp32; each is compared
with float64 from the same states. The last column is another thing: how far the trunk's own rounding moves a
log-probability when the same rows are grouped otherwise, which no head can mend.
"""

import time

import pandas as pd
import torch

from rlhf_helpers import data, models
from rlhf_helpers.environment import prepare
from rlhf_helpers.ppo import token_logprobs
from rlhf_helpers.presets import load_preset

ROWS, RUNS = 32, 5


@torch.no_grad()
def main() -> None:
    prepare()
    preset = load_preset()
    tokenizer, lm = data.load_tokenizer(preset.model), models.load_lm(preset.model)
    sentences = data.load_sentences(preset.dataset, seed=preset.seed)["validation"]["sentence"][:ROWS]
    rows = data.encode(sentences, tokenizer, preset.max_tokens)

    def states(group):
        ids, mask = data.pad(group, tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = models.hidden_states(lm, ids, mask)
        return hidden[:, :-1][mask[:, 1:] == 1].float(), ids[:, 1:][mask[:, 1:] == 1]

    hidden, tokens = states(rows)
    weight = lm.get_output_embeddings().weight
    rounded, centred = weight.bfloat16(), (weight - weight.mean(0)).bfloat16()
    exact = token_logprobs(hidden.double() @ weight.double().T, tokens).double()
    ways = {
        "bfloat16": lambda: hidden.bfloat16() @ rounded.T,
        "bfloat16, mean row taken away": lambda: hidden.bfloat16() @ centred.T,
        "fp32": lambda: hidden @ weight.T,
    }
    regrouped = torch.cat([states([row])[0] for row in rows])
    moved = token_logprobs(regrouped @ weight.T, torch.cat([states([row])[1] for row in rows])).double()
    found = []
    for name, way in ways.items():
        seconds = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            logits = way()
            seconds.append(time.perf_counter() - start)
        error = (token_logprobs(logits, tokens).double() - exact).abs()
        found.append(
            {"head": name, "seconds": min(seconds), "largest error": error.max().item(), "mean": error.mean().item()}
        )
    table = pd.DataFrame(found)
    table["trunk, grouped otherwise"] = (moved - exact).abs().max().item()
    print(f"{len(tokens)} tokens, logits from {logits.min():.0f} to {logits.max():.0f}")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
