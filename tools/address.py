"""Carries the repository's address from pyproject.toml to wherever else it stands.

`make address` writes it into CITATION.cff, each notebook's set-up cell, the badges of Colab and Kaggle under
each notebook's title and those in the README's tables. A notebook that has none yet gets them. Run
again, it changes nothing.
"""

import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import nbformat

BADGES = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}/blob/main/{path}) "
    "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
    "(https://kaggle.com/kernels/welcome?src={address}/blob/main/{path})"
)
ANY_BADGE = r"\[!\[Open in (?:Colab|Kaggle)\]\([^)]*\)\]\([^)]*\)"


def repository(root: Path) -> str:
    """The address in pyproject.toml. Raises ValueError if Colab could not open it."""
    address = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(f"Repository is {address!r}; Colab opens https://github.com/<owner>/<name> only")
    return address


def badges(address: str, path: str) -> str:
    """They open the notebook at `path` (from the root) in Colab and in Kaggle."""
    colab = address.replace("https://github.com", "https://colab.research.google.com/github")
    return BADGES.format(colab=colab, address=address, path=quote(path))


def once(pattern: str, new: str, text: str, where: Path) -> str:
    """`text` with the one match replaced. Raises ValueError if there is none, or more."""
    text, n = re.subn(pattern, lambda _: new, text, flags=re.M)
    if n != 1:
        raise ValueError(f"{where}: {pattern!r} stands there {n} times, not once")
    return text


def carry(root: Path) -> list[Path]:
    """Writes the address everywhere; the files that changed."""
    address, texts = repository(root), {}
    citation, readme = root / "CITATION.cff", root / "README.md"
    cited = citation.read_text(encoding="utf-8")
    texts[citation] = once(r"^repository-code: .*$", f"repository-code: {address}", cited, citation)
    texts[readme] = re.sub(  # the first column of a table
        rf"^(\| \[[^]]+\]\(([^)]+\.ipynb)\))((?: {ANY_BADGE})*) \|",
        lambda row: f"{row[1]} {badges(address, row[2].replace('%20', ' '))} |",
        readme.read_text(encoding="utf-8"),
        flags=re.M,
    )
    for path in sorted([*root.glob("*.ipynb"), *root.glob("beyond/*.ipynb")]):
        notebook = nbformat.read(path, as_version=4)
        title, first = notebook.cells[0], next(c for c in notebook.cells if c.cell_type == "code")
        heading, _, rest = re.sub(rf"^(?:{ANY_BADGE} ?)+\n+", "", title.source, flags=re.M).partition("\n")
        title.source = f"{heading}\n\n{badges(address, path.relative_to(root).as_posix())}\n\n{rest.lstrip()}"
        first.source = once(r"git\+https://[^\"]+", f"git+{address}", first.source, path)
        texts[path] = nbformat.writes(notebook) + "\n"
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(texts[path], encoding="utf-8")
    return changed


if __name__ == "__main__":
    try:
        changed = carry(Path(__file__).parents[1])
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(f"changed {path.name}" for path in changed) or "the address is the same everywhere")
