"""LoRA through peft: the adapter off is the base, the value head stays trainable and is saved with it."""

import copy

import pytest
import torch
from test_ppo import step_of

from rlhf_helpers import ppo
from rlhf_helpers.models import PolicyWithValueHead, disable_dropout, freeze, load_lm
from rlhf_helpers.rollouts import response_outputs, sample_rollouts

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e .[beyond]")


def adapter(**kwargs):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, **kwargs)


@pytest.fixture
def saved(lm, tmp_path):
    lm.save_pretrained(tmp_path / "base")
    return load_lm(str(tmp_path / "base"))


def logits_of(lm, prompts, tokenizer):
    torch.manual_seed(0)
    with torch.no_grad():
        return response_outputs(lm, sample_rollouts(lm, prompts, tokenizer, 5))[0]


def test_a_ppo_step_trains_adapter_and_value_head_only(saved, tokenizer, prompts, tmp_path):
    base = copy.deepcopy(saved)
    saved.add_adapter(adapter())
    policy, reference = PolicyWithValueHead(saved), freeze(copy.deepcopy(base))
    disable_dropout(base), disable_dropout(reference)
    rollouts = sample_rollouts(policy, prompts, tokenizer, 6)
    e = ppo.collect_experience(
        policy, reference, lambda ids, mask: torch.arange(len(ids)).float(), rollouts,
        beta=0.1, no_eos_score=-1.0, rows_at_once=4,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    ppo.ppo_update(policy, e, step_of(optimizer), epochs=2, minibatch=5, max_kl=1e9)
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"value_head.weight", "value_head.bias"} < changed
    assert all("lora" in name or "value_head" in name for name in changed)

    with_adapter = logits_of(saved, prompts[:2], tokenizer)
    saved.disable_adapters()
    assert torch.allclose(logits_of(saved, prompts, tokenizer), logits_of(base, prompts, tokenizer), atol=1e-5)
    saved.enable_adapters()

    policy.save_pretrained(tmp_path / "policy")
    again = PolicyWithValueHead.from_pretrained(tmp_path / "policy")
    assert torch.equal(again.value_head.weight, policy.value_head.weight)
    assert torch.allclose(logits_of(again.lm, prompts[:2], tokenizer), with_adapter, atol=1e-5)
    assert not list((tmp_path / "policy").glob("*.bin")) and not list((tmp_path / "policy").glob("*.pt"))
