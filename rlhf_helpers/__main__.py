"""Runs notebooks headless: `python -m rlhf_helpers sft rm rlhf`, the artifacts as in Jupyter.

Without a name it is the tutorial: those three, on the preset `tiny` unless RLHF_PRESET says otherwise.
What a notebook prints is shown as it comes; the executed copy is kept beside the artifacts.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from rlhf_helpers.presets import NOTEBOOKS, load_preset

BEYOND = sorted(Path("beyond").glob("*.ipynb"))
STAGES = {stage: [Path(name)] for stage, name in zip(("sft", "rm", "rlhf"), NOTEBOOKS.values())}
STAGES |= {path.stem.partition("-")[2].lower(): [path] for path in BEYOND} | {"beyond": BEYOND}


class StreamingClient(NotebookClient):
    """Prints each section's heading as it starts, and a cell's text as it comes."""

    section = ""

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().output(outs, msg, display_id, cell_index)

    def announce(self, cell, cell_index):
        if cell.cell_type == "markdown" and (headings := re.findall("^#+ (.*)", cell.source, re.MULTILINE)):
            self.section = headings[-1]
            print("", *headings, sep="\n--- ", flush=True)


def execute(path: Path, copy: Path) -> None:
    """Runs one notebook in a fresh kernel, in its own folder, and writes the executed copy, even of one that fails."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = StreamingClient(
        notebook, timeout=None, kernel_name="python3", coalesce_streams=True, record_timing=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )  # fmt: skip
    client.on_cell_start, start = client.announce, time.perf_counter()
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"\n{path.name} failed in section {client.section!r}: {error.ename}: {error.evalue}\nSee {copy}")
    except (DeadKernelError, KeyboardInterrupt) as error:
        why = "you stopped it" if isinstance(error, KeyboardInterrupt) else "the kernel died"
        again = "Most often memory is short. Run it again: it continues from its last checkpoint."
        sys.exit(f"\n{path.name}: {why} in section {client.section!r}. {again}")
    finally:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "data" in output:  # a notebook's readers can all show these two, and only these
                    output.data = {k: v for k, v in output.data.items() if k in ("text/plain", "image/png")}
        notebook.metadata.pop("widgets", None)  # GitHub calls a notebook with these invalid
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    print(f"\n{path.name}: done in {time.perf_counter() - start:.0f} s, executed copy in {copy}", flush=True)


def before_and_after(folder: Path) -> str:
    """The table of notebook 3, as text, from its evaluation.json."""
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    columns = {
        model.upper(): {x: f"{found[x]:.3f} [{low:.3f}, {high:.3f}]" for x, (low, high) in found["intervals"].items()}
        for model, found in evaluation.items()
    }
    return pd.DataFrame(columns).to_string(col_space=26)


def main() -> None:
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a pipe of Windows can't show every character
    parser = argparse.ArgumentParser(prog="python -m rlhf_helpers", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--in-place", action="store_true", help="overwrite the notebooks' committed outputs")
    arguments = parser.parse_args(sys.argv[1:] or ["sft", "rm", "rlhf"])
    if not sys.argv[1:] and not os.environ.get("RLHF_PRESET"):
        print("RLHF_PRESET is not set: the tutorial takes tiny")
        os.environ["RLHF_PRESET"] = "tiny"
    try:
        preset = load_preset()
    except ValueError as error:
        sys.exit(str(error))
    copies = {path: preset.artifacts / preset.name / path for s in arguments.stages for path in STAGES[s]}
    for path in list(copies) or [Path("beyond")]:
        if not path.exists():
            sys.exit(f"{path} is not here: run this from the folder that holds the notebooks")
        if row := re.search(rf'"\| `{preset.name}`.* \| (.+) \| .+ \|', path.read_text("utf-8")):  # its own table
            print(f"time for {path.name}: {row[1]}", flush=True)
    for path, copy in copies.items():
        execute(path, copy)
    if arguments.in_place:  # only now that all have passed
        for path, copy in copies.items():
            shutil.copyfile(copy, path)
    if "rlhf" in arguments.stages:
        print(f"\n{before_and_after(preset.folder('policy'))}\n(95 % intervals in brackets)")
    print(f"\nModels, metrics.csv and executed notebooks are in {preset.artifacts / preset.name}. Next: `make lab`.")


if __name__ == "__main__":
    main()
