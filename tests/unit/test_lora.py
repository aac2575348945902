"""LoRA through peft: the adapter off is the base, the value head stays trainable and is saved with it."""

import copy

import pytest
import torch

from rlhf_helpers import ppo
from rlhf_helpers.data import pad
from rlhf_helpers.models import PolicyWithValueHead, freeze, load_lm

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e .[beyond]")


def test_a_ppo_step_trains_adapter_and_value_head_only(lm, prompts, collected, step_of, tmp_path):
    lm.save_pretrained(tmp_path / "base")
    adapted = load_lm(str(tmp_path / "base"))
    adapted.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True))
    policy = PolicyWithValueHead(adapted)
    e = collected(policy, reference=freeze(copy.deepcopy(lm)))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    step = step_of(torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0))
    ppo.ppo_update(policy, e, step, epochs=2, minibatch=5, max_kl=1e9)
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"value_head.weight", "value_head.bias"} < changed
    assert all("lora" in name or "value_head" in name for name in changed)

    policy.save_pretrained(tmp_path / "policy")
    again = PolicyWithValueHead.from_pretrained(tmp_path / "policy")
    ids, mask = pad(prompts, 0)
    for ours, theirs in zip(policy(ids, mask), again(ids, mask)):
        assert torch.allclose(ours[mask == 1], theirs[mask == 1], atol=1e-5)
    assert not list((tmp_path / "policy").glob("*.bin")) and not list((tmp_path / "policy").glob("*.pt"))

    adapted.disable_adapters()
    logits, base = policy(ids, mask)[0], PolicyWithValueHead(lm)(ids, mask)[0]
    assert torch.allclose(logits[mask == 1], base[mask == 1], atol=1e-5), "with the adapter off it is not the base"
