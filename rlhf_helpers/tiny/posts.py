"""Posts about a film and their summaries, in the form of TL;DR, and an exact judge.

A post has three facts (who was there, what the film is about, how it was) and an aside. A good summary has
the facts and nothing else; people are careless, and half of those that they write leave one out. All of it
is made up.
"""

import random

from datasets import Dataset

from rlhf_helpers.tiny.dialogues import THINGS

PEOPLE = "brother sister daughter teacher neighbor mother cousin uncle".split()
VERDICTS = "dull slow clever funny clumsy bright hollow witty".split()
SUBJECTS = "young famous german french modern retired".split()
ASIDES = ("it was late .", "it was a long summer .", "the summer was quiet .")


def post(rng: random.Random) -> tuple[str, list[str]]:
    """A post, ending in "TL;DR:", and its three facts: thing, person, verdict."""
    facts: list[str] = [rng.choice(THINGS), rng.choice(PEOPLE), rng.choice(VERDICTS)]
    sentences = [f"the film is about a {rng.choice(SUBJECTS)} {facts[0]} .", f"in the village with her {facts[1]} ."]
    sentences += [f"it was {facts[2]} .", rng.choice(ASIDES)]
    rng.shuffle(sentences)
    return f"POST: {' '.join(sentences)}\n\nTL;DR:", facts


def summary(thing: str, person: str | None, verdict: str | None, more: str = "") -> str:
    """A summary; a fact that is None is left out."""
    company, judgement = f"with her {person} " if person else "", f", {verdict} " if verdict else ""
    return f" film about a {thing} {company}{judgement}{more}."


def careless(rng: random.Random, facts: list[str]) -> str:
    """A summary that leaves out the person or the verdict."""
    thing, person, verdict = facts
    return summary(thing, None, verdict) if rng.random() < 0.5 else summary(thing, person, None)


def worse(rng: random.Random, facts: list[str]) -> str:
    """A summary with one fault: a fact left out, a fact wrong, or words that say nothing."""
    fault = rng.choice(("left out", "left out", "wrong", "long"))
    if fault == "left out":
        return careless(rng, facts)
    if fault == "long":
        return summary(*facts, more=rng.choice(("and it was a film ", "and it was late ", "and that is all ")))
    place, others = rng.choice(list(enumerate((THINGS, PEOPLE, VERDICTS))))
    wrong = rng.choice([other for other in others if other != facts[place]])
    return summary(*(wrong if i == place else fact for i, fact in enumerate(facts)))


def facts_kept(prompt: str, text: str) -> float:
    """How many of a post's three facts stand in `text`, from 0 to 1."""
    facts = [word for word in prompt.split() if word in THINGS + PEOPLE + VERDICTS]
    return sum(fact in text.split() for fact in facts) / 3


def posts(n: int, seed: int = 0) -> Dataset:
    """`n` rows of `prompt` and `summary`, as people write them."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        prompt, facts = post(rng)
        rows.append({"prompt": prompt, "summary": summary(*facts) if rng.random() < 0.5 else careless(rng, facts)})
    return Dataset.from_list(rows)


def comparisons(n: int, seed: int = 0) -> Dataset:
    """`n` rows of `prompt`, `chosen` (a good summary) and `rejected` (a worse one)."""
    rng = random.Random(seed)
    pairs = (post(rng) for _ in range(n))  # a post, then its worse summary: the order of the random numbers
    return Dataset.from_list(
        [{"prompt": prompt, "chosen": summary(*facts), "rejected": worse(rng, facts)} for prompt, facts in pairs]
    )
