"""Writes the numbers of the pages to explore: docs/explore/explore.json and gallery.json, from a finished run.

    RLHF_PRESET=smollm2 python tools/explore.py

Needs notebook 3's `policy` (with its critic, samples.csv and beta_0/samples.csv), the reward model and the SFT
model under RLHF_ARTIFACTS. Nothing is trained; ten minutes on one CPU core.
"""

import json
import math
import sys
from pathlib import Path

import pandas as pd
import torch

from rlhf_helpers import data, evaluation, ppo
from rlhf_helpers.models import PolicyWithValueHead
from rlhf_helpers.presets import load_preset
from rlhf_helpers.rollouts import sample_rollouts
from rlhf_helpers.training import autocast

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "beyond"))

import playground  # noqa: E402  # pyrefly: ignore[missing-import]

PROMPTS = 40


def rounded(x, digits: int) -> list:
    return [round(v, digits) for v in x.tolist()]


def token_by_token(play: playground.Playground, prompt: list[int], row) -> dict:
    """A row of samples.csv with the reward of each of its beginnings, as the playground gives it."""
    (ids,) = data.encode([row.text], play.tokenizer, end=False)
    rewards = playground.rewards_so_far(play, ids)
    return {
        "tokens": [[str(play.tokenizer.decode(i)), round(reward, 2)] for i, reward in zip(ids, rewards)],
        "prompt_tokens": len(prompt),
        "reward": round(float(row.reward), 2),
        "ended": bool(row.eos_rate),
    }


def gallery(play: playground.Playground, prompts: list[list[int]], folder: Path) -> list[dict]:
    """The first prompts of the validation split with the responses of four policies; base's are sampled here."""
    preset = play.preset
    judge = playground.judges.JUDGES[preset.judge]
    base, sft = play.policies["base"], play.policies["SFT"]
    with autocast(preset):
        of_base = evaluation.evaluate(
            base, sft, base, play.reward, judge, prompts[:PROMPTS], play.tokenizer, preset.ppo_new_tokens, preset.seed
        )
    samples = pd.read_csv(folder / "samples.csv", index_col="policy")
    frames = {
        "base": of_base,
        "SFT": samples.loc["sft"],
        "PPO": samples.loc["ppo"],
        "PPO, beta 0": pd.read_csv(folder / "beta_0" / "samples.csv"),
    }
    return [
        {name: token_by_token(play, prompts[i], frame.iloc[i]) for name, frame in frames.items()}
        for i in range(PROMPTS)
    ]


@torch.no_grad()
def dissected(play: playground.Playground, rows: list[list[int]], folder: Path) -> dict:
    """The response of notebook 3 whose value moves most, with what GAE makes its advantages of."""
    preset, tokenizer = play.preset, play.tokenizer
    prompts = data.sample_prompts(rows, preset.ppo_batch, preset.ppo_prompt_tokens, preset.seed)
    policy = PolicyWithValueHead.from_pretrained(folder)
    torch.manual_seed(preset.seed)
    with autocast(preset):
        batch = sample_rollouts(policy, prompts, tokenizer, preset.ppo_new_tokens)
        found = ppo.collect_experience(
            policy, play.policies["SFT"], play.reward, batch, beta=preset.ppo_beta,
            no_eos_score=preset.ppo_no_eos_score, rows_at_once=preset.ppo_minibatch,
        )  # fmt: skip
    real = batch.response_mask == 1
    moved = found.values.masked_fill(~real, -math.inf).amax(1) - found.values.masked_fill(~real, math.inf).amin(1)
    row = int(moved.masked_fill(~batch.ended, -1.0).argmax())
    response = [str(tokenizer.decode(i)) for i in batch.response_ids[row][real[row]]]
    return {
        "prompt": data.decode(batch.prompt_ids[row : row + 1], tokenizer)[0],
        "tokens": [*response[:-1], "(end)"],
        "score": round(found.scores[row].item(), 4),
        "rewards": rounded(found.rewards[row][real[row]], 4),
        "values": rounded(found.values[row][real[row]], 4),
    }


def drawn_scores(play: playground.Playground, prompts: list[list[int]]) -> list[list[float]]:
    """Notebook 3's sixteen SFT responses to each of 64 prompts: rewards, a list for each prompt."""
    generator = torch.Generator(play.preset.device).manual_seed(play.preset.seed)
    with autocast(play.preset):
        drawn = [
            sample_rollouts(play.policies["SFT"], prompts, play.tokenizer, play.preset.ppo_new_tokens, generator)
            for _ in range(16)
        ]
    scores = torch.stack([play.reward(part.input_ids, part.attention_mask) for part in drawn])
    return [rounded(row, 3) for row in scores.T]


def write(name: str, found) -> None:
    path = ROOT / "docs" / "explore" / f"{name}.json"
    path.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path, path.stat().st_size, "bytes")


def main() -> None:
    preset = load_preset()
    folder, play = preset.require("policy"), playground.load(preset)
    reviews = data.load_sentences(preset.dataset, preset.seed)
    test, held_out = (
        data.encode(reviews[x]["sentence"], play.tokenizer, preset.max_tokens) for x in ("test", "validation")
    )
    prompts = data.sample_prompts(held_out, preset.eval_prompts, preset.ppo_prompt_tokens, preset.seed)
    some = data.sample_prompts(held_out, 64, preset.ppo_prompt_tokens, preset.seed)
    write("explore", {"response": dissected(play, test, folder), "drawn": drawn_scores(play, some)})
    write("gallery", gallery(play, prompts, folder))


if __name__ == "__main__":
    main()
