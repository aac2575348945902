"""Artifacts of a preset without the training: the models of notebooks 1 to 3 in form, recorded like them."""

from dataclasses import replace
from pathlib import Path

import torch

from rlhf_helpers import data
from rlhf_helpers.beyond.loops import new_run
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.presets import Preset, load_preset


def make(folder: Path, name: str = "tiny", **changes) -> Preset:
    preset = replace(load_preset(name), artifacts=folder, **changes)
    tokenizer, lm = data.load_tokenizer(preset.model), load_lm(preset.model)
    torch.manual_seed(0)
    for stage in ("sft", "reward_model", "policy"):
        for weights in lm.parameters():  # base, SFT and PPO differ
            weights.data += 0.02 * torch.randn_like(weights)
        tokenizer.save_pretrained(preset.folder(stage))
        if stage == "reward_model":
            model = RewardModel(lm)
            torch.nn.init.normal_(model.model.score.weight)  # it starts at zero, and would score all alike
            model.save_pretrained(preset.folder(stage), tokenizer)  # which then pads with a token of its own
        else:
            model = PolicyWithValueHead(lm) if stage == "policy" else lm
            model.save_pretrained(preset.folder(stage))
        run = new_run(preset.folder(stage), model, preset, stage, steps=1, lr=1e-3)
        run.settings = preset.settings(stage)
        run.record()
    return preset
