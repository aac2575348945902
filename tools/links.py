"""Asks every outside link of the notebooks and pages whether it is still there: `make links`.

Exits 1 if one is gone. Where none answers there is no network, and nothing is said of any.
"""

import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def collect(root: Path) -> dict[str, set[str]]:
    """Each http(s) link and the files that it stands in."""
    found = defaultdict(set)
    for path in [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("*.ipynb"), *root.glob("beyond/*.ipynb")]:
        for link in re.findall(r"\]\((https?://[^)\s\"\\#]+)", path.read_text(encoding="utf-8")):
            found[link].add(path.name)
    return found


def ask(link: str) -> str:
    """ "ok", "gone" (404, 410), "silent" (no answer), or another status, as 403 where programs aren't welcome."""
    request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError as error:
        return "gone" if error.code in (404, 410) else str(error.code)
    except OSError:
        return "silent"
    return "ok"


def main(root: Path = ROOT) -> int:
    found = collect(root)
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(ask, found)))
    if set(answers.values()) == {"silent"}:
        print(f"skipped: none of {len(found)} outside links answers, so there is no network here")
        return 0
    for link, answer in sorted(answers.items()):
        if answer != "ok":
            print(f"{answer:>6}  {link}  ({', '.join(sorted(found[link]))})")
    print(f"{list(answers.values()).count('ok')} of {len(found)} outside links answer")
    return int("gone" in answers.values())


if __name__ == "__main__":
    sys.exit(main())
