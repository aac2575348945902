"""The set-up cell of the notebooks: installs what is missing and replaces nothing."""

import ctypes
import importlib
import platform
import subprocess
import sys
import tempfile
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

PROJECT = "rlhf-in-notebooks"
SHOWN = ("torch", "transformers", "datasets", "matplotlib")


def requirements(extra: str = "") -> list[Requirement]:
    """What the series needs, and an extra ("beyond"): from pyproject.toml in a checkout, else as installed."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"] if pyproject.exists() else {}
    if project.get("name") == PROJECT:  # else it is a fork's that copied the helpers
        lines = project["dependencies"] + project["optional-dependencies"].get(extra, [])
    else:
        lines = metadata.requires(PROJECT) or []
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def installed_versions() -> dict[str, str]:
    """Every distribution that Python would import, by normalised name, with its version."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:  # a broken installation may lack either
            versions.setdefault(canonicalize_name(name), version)  # the first on the path is imported
    return versions


def install_missing(extra: str = "") -> None:
    """Installs the missing requirements, and an extra's, with all that is there pinned to its present version.

    So on Colab, or in your own environment, pip can replace neither torch nor anything else under
    a running kernel. Prints the versions in use. Raises RuntimeError if something that is there
    is out of range, or if pip fails.
    """
    installed = installed_versions()
    missing, unfit = [], []
    for requirement in requirements(extra):
        version = installed.get(canonicalize_name(requirement.name))
        if version is None:
            missing.append(f"{requirement.name}{requirement.specifier}")  # pip would heed a marker of an extra
        elif not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} {version} is here, {requirement.specifier} is needed")
    if unfit:
        raise RuntimeError(
            f"{'; '.join(unfit)}. Nothing was replaced. Make a fresh environment (`make lab`, or conda with "
            "environment.yml), or upgrade these yourself and restart the kernel."
        )
    if missing:
        print("installing:", ", ".join(missing))
        public = {name: p for name, version in installed.items() if (p := _public(version))}
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            pins.writelines(f"{name}=={version}\n" for name, version in public.items())
            pins.flush()
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", pins.name, *missing]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not install {', '.join(missing)}:\n{done.stderr.strip()[-1500:]}")
        importlib.invalidate_caches()  # or this kernel would not see what came in while it ran
    versions = [f"{name} {metadata.version(name)}" for name in SHOWN]
    print(" | ".join([f"python {platform.python_version()}", *versions]))


def _public(version: str) -> str | None:
    """A version without its local part (2.6.0+cu124), which no index has; None if unreadable."""
    try:
        return Version(version).public
    except InvalidVersion:
        return None


def prepare() -> None:
    """What each notebook begins with: no notices, freed memory kept, and the versions in use printed."""
    quiet()
    keep_freed_memory()
    print(" | ".join([f"python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in SHOWN)]))


def quiet() -> None:
    """Turns off the progress bars and notices of transformers and datasets, which go to stderr."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # bars are plain text here
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed tensors for the next ones; elsewhere it does nothing.

    By default each large tensor is mapped afresh and the kernel clears its pages again: at GPT-2's
    size hundreds of megabytes a step, and SFT and PPO took 1.5 times as long (benchmarks/gains.py).
    """
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
