"""The set-up cell of the notebooks: no notices, freed memory kept, and the versions in use."""

import ctypes
import platform
import warnings
from importlib import metadata

SHOWN = ("torch", "transformers", "datasets", "matplotlib")


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
    size hundreds of megabytes per step, and SFT and PPO took 1.5 times as long (docs/speed.md).
    """
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
