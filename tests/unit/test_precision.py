"""bfloat16, and devices that compute something else than the CPU."""

import copy
from dataclasses import replace

import pytest
import torch

from rlhf_helpers import models, ppo, presets
from rlhf_helpers.models import PolicyWithValueHead, freeze, load_lm, same_on_cpu
from rlhf_helpers.presets import load_preset
from rlhf_helpers.rollouts import sample_rollouts


@pytest.fixture
def shifted(lm, tmp_path):
    """Logits from -30 to -100, as GPT-2's are: softmax does not see what all of them share, bfloat16 does."""
    with torch.no_grad():
        lm.transformer.ln_f.bias += 3.0
        direction = lm.transformer.ln_f.bias / lm.transformer.ln_f.bias.square().sum()
        lm.lm_head.weight = torch.nn.Parameter(lm.transformer.wte.weight - 65 * direction)
    lm.config.tie_word_embeddings = False
    lm.save_pretrained(tmp_path)
    return load_lm(str(tmp_path))


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_heads_do_not_round(shifted, tokenizer, prompts):
    policy = PolicyWithValueHead(shifted)
    torch.nn.init.normal_(policy.value_head.weight)
    with torch.no_grad(), bf16():
        rollouts = sample_rollouts(policy, prompts * 8, tokenizer, 8)
        hidden = models.hidden_states(shifted, *[x.long() for x in (rollouts.input_ids, rollouts.attention_mask)])
        logits, values = policy.heads(hidden, hidden)
    assert logits.dtype == values.dtype == torch.float32
    assert logits.min() > -100 and logits.max() < -30
    exact = hidden.double() @ shifted.lm_head.weight.double().T
    assert (logits.log_softmax(-1) - exact.log_softmax(-1)).abs().max() < 1e-4
    rounded = (hidden.bfloat16() @ shifted.lm_head.weight.bfloat16().T).float()
    assert (rounded.log_softmax(-1) - exact.log_softmax(-1)).abs().max() > 0.05, "the test's logits are too small"


def test_the_first_ratio_is_1_in_bfloat16(shifted, prompts, collected, step_of):
    """Rows are scored in the groups in which the first epoch takes them, so rounding is the same in both."""
    policy, reference = PolicyWithValueHead(shifted), freeze(copy.deepcopy(shifted))
    step, seen = step_of(torch.optim.SGD(policy.parameters(), lr=1e-2)), []
    for _ in range(5):
        with bf16():  # one for each update: it keeps the bfloat16 weights that it made
            e = collected(policy, prompts * 3, reference, rows_at_once=6)
            stats = ppo.ppo_update(policy, e, step, epochs=2, minibatch=6, max_kl=1e9)
        seen.append(stats["first_ratio_max"])
        real = e.rollouts.response_mask == 1
        assert (e.rollouts.logprobs - e.logprobs)[real].abs().max() < 0.2
    assert max(abs(ratio - 1) for ratio in seen) < 1e-4
    assert stats["ratio_max"] > 1 + 1e-4, "nothing was learnt: the ratio had no chance to move"


def test_a_device_that_lies_is_not_used(lm, capsys, monkeypatch):
    """The model that was moved to the device attends to one word too few, as a broken kernel might."""
    assert same_on_cpu(lm, "cpu") and not capsys.readouterr().out, "an honest device is not used"
    true = models.hidden_states

    def lying(model, ids, mask):
        return true(model, ids if model is lm else ids.roll(1, 1), mask)

    monkeypatch.setattr(models, "hidden_states", lying)
    assert not same_on_cpu(lm, "cpu")
    assert "nats from the CPU's" in capsys.readouterr().out


def test_a_preset_goes_on_with_the_cpu(lm, monkeypatch):
    preset = replace(load_preset("tiny"), precision="bf16", device="mps")
    monkeypatch.setattr(models, "same_on_cpu", lambda lm, device: device != "mps")
    checked = preset.on_checked_device(lm)
    assert (checked.device, checked.precision) == ("cpu", preset.precision if presets._bf16_pays("cpu") else "fp32")
