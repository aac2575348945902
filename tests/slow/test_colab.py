"""Each notebook's set-up cell as on Colab: packages of other versions are there, a checkout is not.

The environment is fresh: its packages are hard links to installed ones, so that pip may do what it
likes with them. "bumped" takes those of the environment that runs the tests, and tells pip that some
are newer than any index has; "newest" takes the newest of everything, which `make test-colab` installs.
The cells run unaltered, in a kernel with a stand-in of google.colab; only git is told that the
repository's address is this folder. A package index must answer, as it must on Colab.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlhf_helpers.presets import NOTEBOOKS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PATHS = [ROOT / name for name in NOTEBOOKS.values()] + sorted((ROOT / "beyond").glob("*.ipynb"))
COLAB_LACKS = {"vadersentiment", "rouge-score"}
BUMPED = {"torch": "2.99.0+cu999", "numpy": "2.99.0", "pandas": "3.99.0", "transformers": "5.99.0"}
NEWEST = ROOT / ".colab"
SECRET = "hf_" + "plantedForThisTest" * 2

GOOGLE_COLAB = {  # as googlecolab/colabtools has it, but for where the secret comes from
    "__init__": "from google.colab import userdata",
    "_kernel": "import ipykernel.ipkernel\nfrom google.colab import _shell\n\n"
    "class Kernel(ipykernel.ipkernel.IPythonKernel):\n    shell_class = _shell.Shell",
    "_shell": "import numpy, pandas\nfrom ipykernel import zmqshell\n\n"
    "class Shell(zmqshell.ZMQInteractiveShell):\n    pass",
    "errors": "class Error(Exception):\n    pass",
    "userdata": "from pathlib import Path\nfrom google.colab import errors\n\n"
    "class NotebookAccessError(Exception):\n    pass\n\nclass SecretNotFoundError(errors.Error):\n    pass\n\n"
    "def get(key):\n    path = Path('../secrets') / key\n    if not path.exists():\n"
    "        raise SecretNotFoundError(key)\n    return path.read_text()",
}

CHECK = """
from huggingface_hub import get_token
from rlhf_helpers import data, presets
data.load_tokenizer(presets.load_preset("tiny").model)
assert "site-packages" in data.__file__, data.__file__
print("token:", len(get_token() or ""))
"""


def cells(path: Path) -> tuple[str, str]:
    """A notebook's set-up cell and, together, all of its imports."""
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    nodes = [node for source in code for node in ast.parse(source).body]
    return code[0], "\n".join(ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom))


def wanted(installed: dict[str, metadata.Distribution]) -> set[str]:
    """What Colab has of the project's requirements, and theirs."""
    extra = PROJECT["optional-dependencies"]["beyond"]
    todo, found = ["pip", *PROJECT["dependencies"], *extra], set()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name in installed and name not in found | COLAB_LACKS:
            found.add(name)
            todo += installed[name].requires or []
    return found


def link(distribution: metadata.Distribution, site: Path, version: str | None) -> None:
    """The distribution's files, hard-linked into `site`; its records say `version`, if one is given."""
    old = f"-{distribution.version}.dist-info"
    for file in distribution.files or []:
        if {"..", "include", "tests"} & set(file.parts) or not file.locate().exists():
            continue  # commands, C headers and tests: half of all files, and no cell needs them
        target = site / (str(file).replace(old, f"-{version}.dist-info") if version else file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if version and file.name in ("METADATA", "RECORD") and file.parent.name.endswith(old):
            text = file.read_text().replace(old, f"-{version}.dist-info")
            target.write_text(text.replace(f"\nVersion: {distribution.version}\n", f"\nVersion: {version}\n", 1))
        else:
            try:
                os.link(file.locate(), target)
            except OSError:  # another file system
                shutil.copy2(file.locate(), target)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> dict[str, str]:
    """The environment in which git finds this folder's present state at the repository's address."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "README.md", "LICENSE", "rlhf_helpers"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": PROJECT["urls"]["Repository"],
    }


@pytest.fixture(params=["bumped", "newest"])
def machine(request):
    """A folder with Colab's habits: `python`, `home`, `content` (where notebooks run) and `secrets`."""
    search = [str(p) for p in NEWEST.glob("lib/python*/site-packages")] if request.param == "newest" else sys.path
    if not search:
        pytest.skip("the newest of everything is not installed; make test-colab does it")
    folder = ROOT / "artifacts" / "test" / "colab"  # beside .venv: hard links don't cross file systems
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder / "python", with_pip=False, symlinks=True)
    (site,) = (folder / "python").glob("lib/python*/site-packages")
    installed = {}
    for distribution in metadata.distributions(path=search):
        installed.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution)
    bumped = request.param == "bumped"
    for name in wanted(installed) if bumped else installed:
        link(installed[name], site, BUMPED.get(name) if bumped else None)
    (site / "google" / "colab").mkdir(parents=True)
    for name, source in GOOGLE_COLAB.items():
        (site / "google" / "colab" / f"{name}.py").write_text(source + "\n")
    for name in ("home", "content", "secrets"):
        (folder / name).mkdir()
    yield folder
    shutil.rmtree(folder)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change, but for compiled ones."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


def run(machine: Path, address: dict[str, str], *sources: str) -> str:
    """What the cells printed, in a fresh kernel of that machine."""
    python = machine / "python" / "bin" / "python"
    spec = {
        "display_name": "Colab",
        "language": "python",
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    }
    spec["argv"].append("--IPKernelApp.kernel_class=google.colab._kernel.Kernel")
    kernels = machine / "kernels" / "colab"
    kernels.mkdir(parents=True, exist_ok=True)
    (kernels / "kernel.json").write_text(json.dumps(spec))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_", "HF_", "PYTHON", "VIRTUAL_ENV"))}
    env = inherited | address | {"HOME": str(machine / "home"), "COLAB_RELEASE_TAG": "release", "COLAB_GPU": ""}
    env |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    manager = AsyncKernelManager(
        kernel_name="colab", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels.parent)])
    )
    resources = {"metadata": {"path": str(machine / "content")}}
    NotebookClient(notebook, km=manager, timeout=300, resources=resources).execute(env=env)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)


SET_UPS = {cells(path)[0]: [p for p in PATHS if cells(p)[0] == cells(path)[0]] for path in PATHS}


@pytest.mark.parametrize("cell", SET_UPS, ids=[", ".join(p.stem for p in paths) for paths in SET_UPS.values()])
def test_set_up_changes_nothing_that_is_there(cell, machine, address):
    python = machine / "python" / "bin" / "python"
    index = [python, "-m", "pip", "download", "-q", "--no-deps", "-d", machine / "home", "vaderSentiment"]
    if subprocess.run(index, capture_output=True).returncode:
        pytest.skip("no package index answers")
    imports = "\n".join(cells(path)[1] for path in SET_UPS[cell])
    (site,) = (machine / "python").glob("lib/python*/site-packages")
    before = files(site)
    printed = run(machine, address, cell, imports, CHECK)
    after = files(site)
    changed = sorted(name for name in before if after.get(name) != before[name])
    assert not changed, f"{len(changed)} files of preinstalled packages changed, the first {changed[:5]}"
    added = {name.partition("-")[0].lower() for name in after.keys() - before.keys() if name.endswith("METADATA")}
    assert added >= {"rlhf_in_notebooks", "vadersentiment"}, added
    assert re.search("installing: .*vaderSentiment", printed) and "token: 0" in printed, printed

    (machine / "secrets" / "HF_TOKEN").write_text(SECRET)  # and the session restarted
    printed += run(machine, address, cell, CHECK)
    assert f"token: {len(SECRET)}" in printed and SECRET not in printed
    assert printed.count("installing:") == 1, "the second time there was nothing to install"
    assert files(site) == after
    for folder in ("home", "content"):
        for path in (machine / folder).rglob("*"):
            assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
