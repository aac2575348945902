"""RLHF in Notebooks: the helpers that the notebooks share.

One file an idea, in the order of the data:
presets -> data -> models -> rollouts -> ppo -> training -> health -> artifacts -> evaluation -> plots; for beyond/ also
loops, preferences, judging and parallel.

The public names can be had from here, or from the file that defines them. They load on
first use, so that the set-up cell can import this package before torch is installed.
"""

from importlib import import_module

_HOME = {
    "load_preset": "presets",
    "RewardModel": "models",
    "PolicyWithValueHead": "models",
    "sample_rollouts": "rollouts",
    "token_logprobs": "ppo",
    "kl_penalised_rewards": "ppo",
    "gae": "ppo",
    "whiten": "ppo",
    "ppo_loss": "ppo",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
