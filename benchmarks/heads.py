"""What the precision of the output matrix costs and gives: log-probabilities of real tokens, several ways.

    RLHF_PRESET=smollm2 python benchmarks/heads.py

"Mean row taken away": softmax does not see it, and the logits get smaller. All start from the same states of
a bfloat16 trunk and are compared with float64. The last row is what no head can mend: how far the trunk's own
rounding moves a log-probability when rows are grouped otherwise.
"""

from timeit import repeat

import pandas as pd
import torch

from rlhf_helpers import data, models
from rlhf_helpers.environment import prepare
from rlhf_helpers.presets import load_preset

prepare()
torch.set_grad_enabled(False)
preset = load_preset()
tokenizer, lm = data.load_tokenizer(preset.model), models.load_lm(preset.model)
sentences = data.load_sentences(preset.dataset, seed=preset.seed)["validation"]["sentence"][:32]
rows = data.encode(sentences, tokenizer, preset.max_tokens)
tokens = torch.tensor([token for row in rows for token in row[1:]])


def states(group):
    """What predicts the tokens of some rows, (N, d)."""
    ids, mask = data.pad(group, tokenizer.pad_token_id)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return models.hidden_states(lm, ids, mask)[:, :-1][mask[:, 1:] == 1].float()


def logprobs(logits):
    return logits.double().log_softmax(-1)[range(len(tokens)), tokens]


hidden, weight = states(rows), lm.get_output_embeddings().weight
rounded, centred = weight.bfloat16(), (weight - weight.mean(0)).bfloat16()
exact, found = logprobs(hidden.double() @ weight.double().T), {}
ways = {
    "bfloat16": lambda: hidden.bfloat16() @ rounded.T,
    "bfloat16, mean row taken away": lambda: hidden.bfloat16() @ centred.T,
    "fp32": lambda: hidden @ weight.T,
}
for name, way in ways.items():
    error = (logprobs(way()) - exact).abs()
    seconds = min(repeat(way, number=1, repeat=6))
    found[name] = {"seconds": seconds, "largest error": error.max(), "mean error": error.mean()}
moved = (logprobs(torch.cat([states([row]) for row in rows]) @ weight.T) - exact).abs()
found["trunk, grouped otherwise"] = {"largest error": moved.max(), "mean error": moved.mean()}
print(f"{len(tokens)} tokens, logits from {way().min():.0f} to {way().max():.0f}")
print(pd.DataFrame(found).T.astype(float).round(4).to_string())
