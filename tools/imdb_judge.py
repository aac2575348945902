"""A judge that is not the reward model: a classifier on the preset's base, trained on IMDb reviews and nothing else.

    python tools/imdb_judge.py                        # stanfordnlp/imdb of the Hub
    python tools/imdb_judge.py --data FOLDER          # files with the columns text and label

It learns from pieces of 8 to 64 tokens, the beginning and the end of each review, in lower case as SST-2 is written,
since it will judge single sentences. It ends with its accuracy on the preset's own validation sentences.
"""

import argparse
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import data, environment, evaluation, judges, models, presets, training
from rlhf_helpers.presets import IMDB_JUDGE as FOLDER

TOKENS, EXAMPLES, BATCH, LR = (8, 64), 8_000, 32, 5e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="stanfordnlp/imdb", help="Hub id or folder, columns text and label")
    arguments = parser.parse_args()
    environment.prepare()
    preset = presets.load_preset()
    tokenizer = data.load_tokenizer(preset.model)
    sentences = data.load_sentences(preset.dataset, seed=preset.seed)["validation"]
    reviews = data.load_rows(arguments.data, split="train")

    rng = random.Random(preset.seed)
    texts = [re.sub(r"<br\s*/?>|\s+", " ", text).lower().strip() for text in reviews["text"]]
    examples = []
    for ids, label in zip(data.encode(texts, tokenizer, end=False), reviews["label"]):
        for first in (True, False):
            n = rng.randint(*TOKENS)
            examples.append(((ids[:n] if first else ids[-n:]) + [tokenizer.eos_token_id], float(label)))
    examples = rng.sample(examples, min(EXAMPLES, len(examples)))

    torch.manual_seed(preset.seed)
    judge = models.RewardModel(preset.model).to(preset.device)
    batches = data.length_bucketed([len(ids) for ids, _ in examples], BATCH, preset.seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, fused=True)
    run = training.Run(
        FOLDER.with_name("imdb-judge-run"), judge, optimizer,
        training.linear_schedule(optimizer, len(batches)), steps=len(batches), seed=preset.seed,
        settings={"model": preset.model, "data": arguments.data, "precision": preset.precision}, checkpoints=5,
    )  # fmt: skip
    for step in run:
        rows, labels = zip(*(examples[i] for i in batches[step]))
        ids, mask = (x.to(preset.device) for x in data.pad(list(rows), tokenizer.pad_token_id))
        with training.autocast(preset):
            loss = binary_cross_entropy_with_logits(judge(ids, mask), torch.tensor(labels).to(preset.device))
        run.step([loss])
        run.scheduler.step()
        run.log(loss=loss, tokens=mask.sum())
    judge.save_pretrained(FOLDER, tokenizer)

    verdicts = judges.classifier_judge(str(FOLDER))(list(sentences["sentence"]))
    right = pd.DataFrame({"x": (verdicts == np.array(sentences["label"])).astype(float)})
    low, high = evaluation.bootstrap(right, lambda frame: frame["x"].mean())
    print(f"{FOLDER}: accuracy on {len(right)} validation sentences {right['x'].mean():.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
