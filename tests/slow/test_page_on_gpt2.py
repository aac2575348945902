"""Notebook 3 up to its training on a model with GPT-2's own settings, dropout among them, which tiny has not."""

import nbformat
import pytest
import untrained
from nbclient import NotebookClient
from test_project import ROOT

SHARED = ROOT.parent / "shared"


@pytest.mark.skipif(not SHARED.exists(), reason="../shared, with a small GPT-2 and SST-2, is not here")
def test_notebook_3_passes_its_checks_before_the_training(tmp_path, monkeypatch, hub_cache):
    found = {"MODEL": SHARED / "models" / "gpt2-mini", "PRESET": "gpt2", "ARTIFACTS": tmp_path}
    for name, value in found.items():
        monkeypatch.setenv(f"RLHF_{name}", str(value))
    untrained.make(tmp_path, "gpt2")
    notebook = nbformat.read(ROOT / "3-RLHF.ipynb", as_version=4)
    training = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("### Training"))
    del notebook.cells[training:]
    NotebookClient(notebook, kernel_name="python3", timeout=None, resources={"metadata": {"path": ROOT}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells[-12:] for o in cell.get("outputs", []))
    assert "'ratio_max': 1.0" in printed and "in float32" in printed
