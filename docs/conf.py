"""The series as a static site: `make book`. Sphinx with MyST-NB shows the notebooks as committed, and runs nothing."""

import json
import re
import shutil
import tomllib
from functools import partial
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project, author, copyright = "RLHF in Notebooks", "its contributors", "its contributors, MIT licence"
extensions = ["myst_nb"]
nb_execution_mode = "off"
root_doc = "README"
PAGES = ["*.ipynb", "beyond/*.ipynb", "docs/*.md", "docs/explore/*.md", "CONTRIBUTING.md"]
include_patterns = ["README.md", *PAGES]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
myst_heading_slug_func = partial(re.sub, " ", "-")  # as Jupyter names anchors; a function of ours is not picklable
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = project
html_favicon = "favicon.svg"
html_static_path = ["site.css", "explore/explore.css", "explore/explore.js", "explore/gallery.js"]
html_css_files = ["site.css", "explore.css"]
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "source_repository": about["urls"]["Repository"],
    "source_branch": "main",
    "source_directory": "",
}
OTHERS = [p for pattern in PAGES for p in sorted(ROOT.glob(pattern))]
CONTENTS = "\n".join(["\n\n```{toctree}\n:hidden:\n", *(p.relative_to(ROOT).as_posix() for p in OTHERS), "```\n"])


CELLS = {c["id"]: c for c in json.loads((ROOT / "3-RLHF.ipynb").read_text(encoding="utf-8"))["cells"]}


def as_mathml(block: bool):
    """Formulas as MathML, which browsers draw themselves: no script, no fonts, nothing to download."""

    def visit(self, node):
        self.body.append(convert(node.astext(), display="block" if block else "inline"))
        raise nodes.SkipNode

    return visit, None


def cell(match) -> str:
    """What `<!-- cell ID -->` stands for: the code of that cell of notebook 3, as it is now."""
    return "```python\n" + "".join(CELLS[match[1]]["source"]) + "\n```"


def data(match) -> str:
    """What `<!-- data FILE -->` stands for: docs/explore/FILE in the page, so that it can be opened from a disk too."""
    text = (ROOT / "docs" / "explore" / match[1]).read_text(encoding="utf-8").strip().replace("</", "<\\/")
    return f'<script type="application/json" id="data">{text}</script>'


def prepare(app, docname, source):
    """The front page lists the others; a badge is a picture on somebody else's server, so its text stands for it."""
    source[0] = re.sub(r"<!-- cell (\w+) -->", cell, source[0])
    source[0] = re.sub(r"<!-- data (\S+) -->", data, source[0])
    source[0] = re.sub(r"!\[([^]]*)\]\(https://[^)]*\.svg\)", r"\1", source[0])
    if docname == root_doc:
        source[0] += CONTENTS


def copy_front_page(app, exception):
    if not exception:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app):
    app.add_html_math_renderer("mathml", as_mathml(block=False), as_mathml(block=True))
    app.connect("source-read", prepare)
    app.connect("build-finished", copy_front_page)
