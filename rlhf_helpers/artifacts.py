"""What a saved model was made of: `artifact.json`, written beside it when all the rest is there."""

import hashlib
import json
import os
from pathlib import Path

from rlhf_helpers.environment import PROJECT, installed_versions

RECORD = "artifact.json"
CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json")
VERSIONS = (PROJECT, "torch", "transformers", "datasets", "tokenizers", "safetensors")


def record(folder: Path, settings: dict, steps: int) -> None:
    """Records the model and tokenizer in `folder`: settings, versions, and the SHA-256 of each file.

    To be called when all of them are saved: without it, or with files that it does not describe,
    `check` refuses the folder.
    """
    folder, installed = Path(folder), installed_versions()
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    about = {
        "settings": settings,
        "steps": steps,
        "versions": {name: installed.get(name) for name in VERSIONS} | {"rlhf_helpers": code.hexdigest()[:16]},
        "files": _files(folder),
    }
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / RECORD)


def check(folder: Path) -> dict:
    """What `record` wrote. Raises ValueError if the files beside it are not those that it describes."""
    about = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    files = _files(folder)
    changed = [name for name in files | about["files"] if files.get(name) != about["files"].get(name)]
    if changed:
        raise ValueError(f"{', '.join(changed)} in {folder} changed since {RECORD} was written, or were saved halfway")
    return about


def digest(folder: Path) -> str | None:
    """Of a recorded model's weights and vocabulary (its configuration, newer versions may write otherwise)."""
    path = Path(folder) / RECORD
    if not path.exists():
        return None
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    whole = "".join(files[name] for name in sorted(files) if name not in CONFIGS)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def differences(there: dict, here: dict) -> dict:
    """Name -> (there, here) where they differ, as JSON tells values apart."""
    there, here = json.loads(json.dumps([there, here]))
    return {k: (there.get(k), here.get(k)) for k in here | there if there.get(k) != here.get(k)}


def _files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that a model and its tokenizer are loaded from."""
    weights = {p.name for p in Path(folder).glob("*.safetensors") if not p.name.startswith("checkpoint")}
    names = sorted(weights | {name for name in (*CONFIGS, "tokenizer.json") if (Path(folder) / name).exists()})
    found = {}
    for name in names:
        with open(Path(folder) / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
