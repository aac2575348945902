"""Dialogues about films in the form of HH-RLHF, written by a seeded grammar, and their exact judge.

Somebody asks for a film with a thing in it. There are four kinds of answer, best first: polite and to the
point, to the point, beside the point, and none at all. All of it is made up.
"""

import random

from datasets import Dataset

THINGS = "detective soldier photograph sailor letter train garden painting pianist cook pilot map".split()
QUESTIONS = (
    "can you suggest a {} film about a {} ?",
    "what {} film should i watch if i like a {} ?",
    "is there a {} film with a {} in it ?",
    "i want to see a {} picture about a {} .",
    "do you know a {} story of a {} ?",
)
KINDS = "comedy drama thriller documentary romance mystery".split()
QUALITIES = "warm clever funny quiet modern famous".split()
OPENINGS = ("yes , with pleasure .", "sure , happy to help .", "of course .")
NO_ANSWERS = ("i do not know .", "no .", "that is a dull question .", "find it yourself .", "who cares .")
LEVELS = 4


def answer(rng: random.Random, thing: str, level: int) -> str:
    """An answer of a level from 0 (none) to 3 (polite and about `thing`)."""
    if level == 0:
        return rng.choice(NO_ANSWERS)
    about = thing if level >= 2 else rng.choice([other for other in THINGS if other != thing])
    film = f"try a {rng.choice(QUALITIES)} {rng.choice(KINDS)} about a {about} ."
    return f"{rng.choice(OPENINGS)} {film}" if level == 3 else film


def points(prompt: str, text: str) -> tuple[bool, bool, bool]:
    """Whether `text` answers at all, is about the thing asked for, and is polite; the last two only if it answers."""
    words, asked = text.split(), [thing for thing in THINGS if thing in prompt.split()]
    answers = "try" in words and bool(asked)
    return answers, answers and asked[-1] in words, answers and text.strip().startswith(OPENINGS)


def quality(prompt: str, text: str) -> int:
    """The points of an answer, from 0 to 3."""
    return sum(points(prompt, text))


def dialogues(n: int, seed: int = 0) -> Dataset:
    """`n` rows of `chosen` and `rejected`, each a dialogue of one question and one answer."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        thing = rng.choice(THINGS)
        question = rng.choice(QUESTIONS).format(rng.choice(QUALITIES), thing)
        levels = sorted(rng.sample(range(LEVELS), 2), reverse=True)
        chosen, rejected = (f"\n\nHuman: {question}\n\nAssistant: {answer(rng, thing, level)}" for level in levels)
        rows.append({"chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)
