"""Any causal language model, or a clear refusal: each family through sampling, scoring, PPO, saving and LoRA."""

import math

import peft
import pytest
import torch
import transformers as t
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import models, ppo
from rlhf_helpers.data import pad
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.rollouts import response_outputs, sample_rollouts

IDS = dict(vocab_size=19, bos_token_id=0, eos_token_id=0, pad_token_id=1, initializer_range=0.3)
SMALL = IDS | dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
)
GROUPED = SMALL | dict(num_key_value_heads=1, head_dim=8)
GEMMA = GROUPED | dict(layer_types=["sliding_attention", "full_attention"], sliding_window=4, tie_word_embeddings=False)
FAMILIES = {
    "gpt2": lambda: t.GPT2Config(**IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "opt": lambda: t.OPTConfig(
        **IDS, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        word_embed_proj_dim=8,
    ),
    "llama": lambda: t.LlamaConfig(**GROUPED),
    "qwen3": lambda: t.Qwen3Config(**GROUPED),
    "gemma2": lambda: t.Gemma2Config(**GEMMA, final_logit_softcapping=2.0, attn_logit_softcapping=5.0),
    "gemma3": lambda: t.Gemma3TextConfig(**GEMMA),
    "mistral": lambda: t.MistralConfig(**GROUPED, sliding_window=4),
    "phi": lambda: t.PhiConfig(**SMALL),
    "gpt_neox": lambda: t.GPTNeoXConfig(**SMALL),
    "bloom": lambda: t.BloomConfig(**IDS, hidden_size=16, n_layer=2, n_head=2),
    "cohere": lambda: t.CohereConfig(**SMALL, logit_scale=0.25),
    "granite": lambda: t.GraniteConfig(**SMALL, logits_scaling=4.0, residual_multiplier=0.5, embedding_multiplier=3.0),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path, tokenizer):
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(FAMILIES[request.param]()).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def own_logprobs(folder, rollouts):
    """By transformers alone: each row by itself, without padding, through the model's own forward."""
    own = models.disable_dropout(t.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")).eval()
    found = torch.zeros(rollouts.response_mask.shape)
    for i, (prompt, response) in enumerate(zip(rollouts.prompt_mask.sum(1), rollouts.response_mask.sum(1))):
        ids = rollouts.input_ids[i][rollouts.attention_mask[i] == 1]
        logprobs = own(ids[None]).logits[0].log_softmax(-1)
        found[i, :response] = logprobs[prompt - 1 : -1].gather(1, ids[prompt:, None])[:, 0]
    return found


@torch.no_grad()
def test_recorded_logprobs_are_those_of_the_models_own_forward(folder, tokenizer, prompts):
    policy = PolicyWithValueHead(str(folder))
    torch.manual_seed(1)
    rollouts = sample_rollouts(policy, prompts * 8, tokenizer, 8)
    assert rollouts.response_mask.sum(1).unique().numel() > 1, "rows must leave the batch at different times"
    expected = own_logprobs(folder, rollouts)
    assert torch.allclose(rollouts.logprobs, expected, atol=1e-4)
    logits, _, token_index = response_outputs(policy, rollouts)
    recomputed = ppo.token_logprobs(logits, rollouts.response_ids[token_index])
    assert torch.allclose(recomputed, expected[token_index], atol=1e-4)
    assert expected.sum(1).std() > 0.1, "all words alike: the test would not see a wrong scale"


def test_a_reward_model_starts_at_ln_2_and_padding_moves_no_score(folder, tokenizer, prompts, tmp_path):
    rows = [prompt + [0] for prompt in prompts]
    ids, mask = pad(rows, 0)
    reward_model = RewardModel(str(folder))
    loss = binary_cross_entropy_with_logits(reward_model(ids, mask), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert reward_model.model.score.weight.grad.abs().max() > 0
    torch.nn.init.normal_(reward_model.model.score.weight)
    alone = torch.cat([reward_model(*pad([row], 0)) for row in rows])
    wide = torch.nn.functional.pad(ids, (3, 2), value=7), torch.nn.functional.pad(mask, (3, 2))
    assert torch.allclose(reward_model(ids, mask), alone, atol=1e-4)
    assert torch.allclose(reward_model(*wide), alone, atol=1e-4), "padding on both sides moves a score"
    reward_model.save_pretrained(tmp_path / "rm", tokenizer)
    again = RewardModel.from_pretrained(tmp_path / "rm")
    assert torch.allclose(again(ids, mask), alone, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["critic", "LoRA"])
def test_a_ppo_update_trains_and_is_saved(folder, lora, prompts, collected, step_of, tmp_path):
    """All weights and a critic of its own; or an adapter that peft has added, with the value head on the trunk."""
    reference, lm = models.freeze(load_lm(str(folder))), load_lm(str(folder))
    if lora:
        lm.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy = PolicyWithValueHead(lm, critic=None if lora else RewardModel(str(folder)))
    e = collected(policy, reference=reference, rows_at_once=3)
    assert (e.logprobs - e.ref_logprobs).abs().max() < 1e-4, "not the base before the first step"
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    step = step_of(torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2))
    stats = ppo.ppo_update(policy, e, step, epochs=2, minibatch=3, max_kl=1e9)
    assert abs(stats["first_ratio_max"] - 1) < 1e-5
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"value_head.weight", "value_head.bias"} < moved
    assert not lora or all("lora" in name or "value_head" in name for name in moved)

    policy.save_pretrained(tmp_path / "policy")
    again = PolicyWithValueHead.from_pretrained(tmp_path / "policy")
    ids, mask = pad(prompts, 0)
    for ours, theirs in zip(policy(ids, mask), again(ids, mask)):
        assert torch.allclose(ours[mask == 1], theirs[mask == 1], atol=1e-4)
    if lora:
        lm.disable_adapters()
    logits, base = policy(ids, mask)[0], reference(ids, attention_mask=mask).logits
    assert torch.allclose(logits[mask == 1], base[mask == 1], atol=1e-3) == lora, "an adapter that is off is the base"


def test_checkpointed_layers_give_the_same_gradients_from_less(folder, tokenizer, prompts):
    policy = PolicyWithValueHead(str(folder), critic=RewardModel(str(folder))).train()
    torch.nn.init.normal_(policy.value_head.weight)
    rollouts, gradients, kept = sample_rollouts(policy, prompts, tokenizer, 8), [], []
    for change in (lambda policy: policy, models.checkpoint_layers):
        change(policy).zero_grad()
        kept.append(0)

        def keep(x):
            kept[-1] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            logits, values, _ = response_outputs(policy, rollouts)
            (logits.log_softmax(-1)[:, 3].mean() + values.mean()).backward()
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_what_is_done_to_logits_elsewhere_is_refused(tmp_path):
    """HyperCLOVA X multiplies by what Granite, under the same name, divides by."""
    config = t.HyperCLOVAXConfig(**SMALL, logits_scaling=4.0)
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="HyperCLOVAXForCausalLM does more to its logits"):
        load_lm(str(tmp_path))
