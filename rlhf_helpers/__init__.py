"""RLHF in Notebooks: the helpers that the notebooks share.

One file an idea, in the order of the data: presets -> data -> models -> rollouts -> ppo -> training, which
import nothing below them; then evaluation, judges, health and plots; for beyond/ also beyond/.
The public names load on first use, so that the set-up cell can ask for this package before torch is imported.
"""

from importlib import import_module

_HOME = {"load_preset": "presets", "RewardModel": "models", "PolicyWithValueHead": "models"}
_HOME |= {"sample_rollouts": "rollouts"}
_HOME |= dict.fromkeys(["token_logprobs", "kl_penalised_rewards", "gae", "whiten", "ppo_loss"], "ppo")
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
