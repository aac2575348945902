"""What can't be loaded is named where that shows, with the ways out."""

from contextlib import contextmanager

LOG_IN = (
    "To log in: `from huggingface_hub import notebook_login; notebook_login()` in a cell of Jupyter; in Colab a "
    "secret called HF_TOKEN (the key on the left); elsewhere HF_TOKEN in the environment."
)
WAYS_OUT = (
    "Ways out: check the name; connect to the network once, after which the cache serves; give a local folder "
    "(RLHF_MODEL, RLHF_DATASET); or set RLHF_PRESET=tiny, which needs no network. If the repository is gated, ask "
    f"for access on its page and log in. {LOG_IN}"
)


@contextmanager
def loading(what: str):
    """Around what loads a model or data: an error then says what it was, why, and the ways out.

    Raises ConnectionError if it can't be had, ValueError if what is there won't do.
    """
    try:
        yield
    except OSError as error:
        raise ConnectionError(f"can't load {what}: {error}\n{WAYS_OUT}") from error
    except Exception as error:  # of safetensors, pyarrow, datasets ...
        raise ValueError(
            f"can't load {what}: {error}\nWeights must be whole and safetensors, data in files of a known kind. "
            "Pickles, and code that a repository brings along, are never run here."
        ) from error
