"""The set-up cell on Colab: pip adds what is missing and replaces nothing that is there.

Asked of pip itself (`--dry-run`), in the environment that runs the tests and, where `make .colab/installed` has made
it, in one that has the newest of everything, as Colab has. Only the repository's address is replaced by this folder.
A package index must answer, as it must on Colab.
"""

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.utils import canonicalize_name
from test_project import ROOT, SET_UP

NEWEST = ROOT / ".colab" / "bin" / "python"


@pytest.mark.parametrize("wanted", SET_UP.values(), ids=SET_UP)
@pytest.mark.parametrize("python", [sys.executable, NEWEST], ids=["pinned", "newest"])
def test_set_up_replaces_nothing_that_is_there(wanted, python, tmp_path):
    if not (python == sys.executable or NEWEST.exists()):
        pytest.skip("the newest of everything is not installed; make .colab/installed does it")
    command = [python, "-m", "pip", "install", "-q", "--dry-run", "--report", tmp_path / "report.json"]
    done = subprocess.run([*command, f"{wanted} @ {ROOT.as_uri()}"], capture_output=True, text=True)
    if "Failed to establish a new connection" in done.stderr or "Could not find a version that sat" in done.stderr:
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    added = {canonicalize_name(x["metadata"]["name"]) for x in report["install"]}
    search = [str(p) for p in (ROOT / ".colab").glob("lib/python*/site-packages")] if python == NEWEST else sys.path
    there = {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions(path=search)}
    assert "rlhf-in-notebooks" in added and not added & there - {"rlhf-in-notebooks"}
