"""A small grammar of film reviews: the judge of what tools/build_tiny.py writes with it, and exact.

Every symbol of the grammar has a polarity, 1 for praise and 0 for blame. In a
production `X` has the polarity of the whole and `~X` the opposite one; `X?` and
`~X?` are written so, and may be read with either:

    REVIEW -> ~OPENING? , BUT CLAUSE .

is praise when its second half is, whatever its first half says. Writing and
judging read the same table, so the judge's verdict is exact. No symbol can
contain itself: the language is finite, and every review ends.
"""

import functools
from pathlib import Path

GROUPS = ("STORY", "LOOK", "TEAM", "PARTS", "WORK")
NEGATIVE, POSITIVE, EITHER = 0, 1, 2  # EITHER: read as any polarity


def _text(name):
    """The text file of that name beside this one, without its comments."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#")) + "\n"


def _load():
    """Read rules.txt, group_rules.txt and words.txt into {(symbol, polarity): [(weight, production), ...]}.

    A production is a tuple of words (str) and parts (symbol, polarity written, polarity read).
    (symbol, EITHER) has the productions of both polarities.
    """
    table = {}

    def add(name, symbols, weight=1, polarities=(NEGATIVE, POSITIVE)):
        for polarity in polarities:
            production = tuple(_resolve(symbol, polarity) for symbol in symbols)
            table.setdefault((name, polarity), []).append((weight, production))

    of_groups = _text("group_rules.txt")
    rules = _text("rules.txt") + "".join(of_groups.replace("@", group) for group in GROUPS)
    for line in rules.splitlines():
        if ":" in line:
            name, line = line.split(":")
        for symbols in filter(None, map(str.split, line.split("|"))):
            weight = int(symbols.pop(0)) if symbols[0].isdigit() else 1
            add(name, symbols, weight)
    for entry in _text("words.txt").split():
        if entry.isupper():
            name = entry.lstrip("+-")
            polarities = {"+": (POSITIVE,), "-": (NEGATIVE,)}.get(entry[0], (NEGATIVE, POSITIVE))
        else:
            add(name, entry.split("_"), polarities=polarities)
    for name in {name for name, _ in table}:
        table[name, EITHER] = table[name, POSITIVE] + table[name, NEGATIVE]
    return table


def _resolve(symbol, polarity):
    """Turn `X`, `~X`, `X?` or `~X?`, inside a whole of this polarity, into a part."""
    name = symbol.strip("~?")
    if not name.isupper():
        return symbol
    written = 1 - polarity if symbol[0] == "~" else polarity
    return name, written, EITHER if symbol[-1] == "?" else written


GRAMMAR = _load()
# An adjective is written beside the nouns that it suits and read beside any: "the score is witty"
# may be odd, but it is well formed and its sentiment is plain.
READING = GRAMMAR | {
    (f"{group}_ADJ", polarity): [p for other in GROUPS for p in GRAMMAR[f"{other}_ADJ", polarity]]
    for group in GROUPS
    for polarity in (NEGATIVE, POSITIVE, EITHER)
}


def judge(text: str) -> int | None:
    """Judge a review by parsing it: 1 praise, 0 blame, None if it is not a review."""
    words = text.split()
    memo = {}
    for polarity in (NEGATIVE, POSITIVE):
        if len(words) in _ends(("REVIEW", polarity, polarity), words, 0, memo):
            return polarity
    return None


def well_formed(text: str) -> bool:
    """Tell whether the text is one whole review of this grammar."""
    return judge(text) is not None


@functools.cache
def _first_words(part):
    """The words a part can begin with, so that parsing skips hopeless productions."""
    if isinstance(part, str):
        return frozenset([part])
    return frozenset().union(*(_first_words(p[0]) for _, p in READING[part[0], part[2]]))


def _ends(part, words, start, memo):
    """Find where the part may end if it begins at `start`: a set of positions."""
    if start == len(words) or words[start] not in _first_words(part):
        return set()
    if isinstance(part, str):
        return {start + 1}
    if (part, start) not in memo:
        found = set()
        for _, production in READING[part[0], part[2]]:
            reached = {start}
            for inner in production:
                reached = {e for s in reached for e in _ends(inner, words, s, memo)}
            found |= reached
        memo[part, start] = found
    return memo[part, start]
