"""Notebook 3's samples before two judges that are not the reward model, with 95 % intervals.

    python benchmarks/judge_samples.py artifacts/smollm2/policy/samples.csv

The judges: VADER, a lexicon, and the classifier of `make judge`, which was trained on IMDb reviews, other texts by
other authors than SST-2's. Of the classifier also the mean probability and the mean logit are shown.
"""

import argparse

import numpy as np
import pandas as pd

from rlhf_helpers import evaluation, judges
from rlhf_helpers.imdb_judge import FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="+", help="samples.csv of notebook 3")
    parser.add_argument("--judge", default=str(FOLDER), help="Hub id or folder of a classifier")
    arguments = parser.parse_args()
    log_odds = judges.classifier_log_odds(arguments.judge)
    for path in arguments.samples:
        samples = pd.read_csv(path)
        groups = samples.groupby("policy", sort=False) if "policy" in samples else [("", samples)]
        for name, rows in groups:
            texts = rows["text"].fillna("").tolist()
            logit = log_odds(texts)
            figures = {"VADER: positive": judges.JUDGES["vader"](texts)}
            figures |= {
                "IMDb: positive": (logit > 0).astype(float),
                "IMDb: probability": 1 / (1 + np.exp(-logit)),
                "IMDb: logit": logit,
            }
            for figure, x in figures.items():
                low, high = evaluation.bootstrap(pd.DataFrame({"x": x}), lambda frame: frame["x"].mean())
                print(f"{path} {name}, {len(texts)} texts, {figure} {x.mean():.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
