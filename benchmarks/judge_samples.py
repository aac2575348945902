"""Notebook 3's samples before two judges that are not the reward model, with 95 % intervals.

    python benchmarks/judge_samples.py artifacts/gpt2/policy/samples.csv

The judges: VADER, a lexicon, and a classifier of word pairs (TF-IDF and logistic regression) trained
on IMDb reviews, other texts by other authors than SST-2's. The reviews are read from a folder with
train.jsonl.gz and test.jsonl.gz (columns `text` and `label`), by default ../shared/data/imdb.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from rlhf_helpers import evaluation

IMDB = Path(__file__).parents[2] / "shared" / "data" / "imdb"


def imdb_judge(folder: Path) -> evaluation.Judge:
    """Trains the classifier and prints its accuracy on reviews that it has not seen."""
    train, test = (pd.read_json(folder / f"{split}.jsonl.gz", lines=True) for split in ("train", "test"))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    judge = make_pipeline(words, LogisticRegression(C=30, max_iter=1000))
    judge.fit(train["text"], train["label"])
    print(f"IMDb judge: {judge.score(test['text'], test['label']):.3f} of {len(test)} unseen IMDb reviews right")
    return lambda texts: judge.predict(texts).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("--imdb", type=Path, default=IMDB)
    arguments = parser.parse_args()
    if not (arguments.imdb / "train.jsonl.gz").exists():
        sys.exit(f"skipped: no train.jsonl.gz in {arguments.imdb}; give a folder with IMDb reviews by --imdb")
    samples = pd.read_csv(arguments.samples, keep_default_na=False)
    for name, judge in {"IMDb": imdb_judge(arguments.imdb), "VADER": evaluation.vader_judge}.items():
        for policy, frame in samples.groupby("policy", sort=False):
            positive = pd.DataFrame({"x": judge(frame["text"].tolist())})
            low, high = evaluation.bootstrap(positive, lambda f: f["x"].mean())
            print(f"{name:>5}: {policy} {positive['x'].mean():.3f} positive [{low:.3f}, {high:.3f}] of {len(frame)}")
    for policy, frame in samples.groupby("policy", sort=False):
        print(f"\nten of {policy}, in order")
        print("\n".join(f"  {text}" for text in frame["text"][:10]))


if __name__ == "__main__":
    main()
