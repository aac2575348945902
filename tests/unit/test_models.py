"""models.py and rollouts.py on one model: padding, heads, saving, ends. All families: test_architectures."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig, pipeline

from rlhf_helpers.data import encode, pad
from rlhf_helpers.models import PolicyWithValueHead, RewardModel
from rlhf_helpers.rollouts import response_outputs, sample_rollouts


def test_scores_are_equal_through_transformers(reward_model, tokenizer, tmp_path):
    reward_model.save_pretrained(tmp_path, tokenizer)
    texts = ["the film is good", "it is bad , but not dull .", "good"]
    ours = reward_model(*pad(encode(texts, tokenizer, 32), tokenizer.pad_token_id))
    theirs_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = theirs_tokenizer([t + " <eos>" for t in texts], padding=True, padding_side="right", return_tensors="pt")
    assert theirs_tokenizer.pad_token_id != theirs_tokenizer.eos_token_id
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    theirs = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    again = RewardModel.from_pretrained(tmp_path).train()  # a critic made from it is trained
    assert torch.equal(again(*pad(encode(texts, tokenizer, 32), tokenizer.pad_token_id)), ours), "dropout is back"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_new_policy_is_the_language_model_with_values_of_zero(lm, prompts, side):
    policy = PolicyWithValueHead(lm).train()
    ids, mask = pad(prompts, 0, side=side)
    logits, values = policy(ids, mask)
    alone = torch.cat([lm(torch.tensor([prompt])).logits[0] for prompt in prompts])
    assert torch.allclose(logits[mask == 1], alone, atol=1e-5), "padding or dropout changes the logits"
    assert (values == 0).all()


def test_a_saved_policy_comes_back_and_writes_in_a_pipeline_of_transformers(policy, reward_model, tokenizer, tmp_path):
    PolicyWithValueHead(policy.lm, critic=reward_model).save_pretrained(tmp_path)  # whose critic is not this one's
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = PolicyWithValueHead.from_pretrained(tmp_path)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(policy.parameters(), again.parameters()))
    generate = pipeline("text-generation", model=str(tmp_path))
    theirs = generate("the film", max_new_tokens=3, max_length=None, do_sample=False, return_tensors=True)
    ids = [1, 2]
    while len(ids) < 5 and ids[-1] != tokenizer.eos_token_id:
        ids.append(policy(torch.tensor([ids]), torch.ones(1, len(ids)))[0][0, -1].argmax().item())
    assert theirs[0]["generated_token_ids"] == ids
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]  # what vLLM loads
    assert set(index.values()) == {"model.safetensors"}
    assert index.keys() == load_file(tmp_path / "model.safetensors").keys()
    again.save_pretrained(tmp_path)
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 1.0, 0, 1.0)
    assert settings.eos_token_id == tokenizer.eos_token_id


def test_response_outputs_are_those_of_the_padded_batch(policy, tokenizer, prompts):
    """Sorted, moved and without padding, yet the numbers of the plain way; each real token once."""
    torch.manual_seed(0)
    rollouts = sample_rollouts(policy, prompts * 4, tokenizer, 8)
    logits, values, token_index = response_outputs(policy, rollouts, rows_at_once=3)
    P = rollouts.prompt_ids.shape[1]
    plain_logits, plain_values = (x[:, P - 1 : -1] for x in policy(rollouts.input_ids, rollouts.attention_mask))
    assert torch.allclose(logits, plain_logits[token_index], atol=1e-4)
    assert torch.allclose(values, plain_values[token_index], atol=1e-4)
    seen = torch.zeros_like(rollouts.response_mask).index_put(token_index, torch.tensor(1), accumulate=True)
    assert torch.equal(seen, rollouts.response_mask)


def test_each_row_ends_at_its_own_end_of_text(lm, tokenizer, prompts):
    torch.manual_seed(0)
    told = [[] for _ in prompts * 8]

    def tell(rows, ids):
        for row, token_id in zip(rows.tolist(), ids.tolist()):
            told[row].append(token_id)

    rollouts = sample_rollouts(lm, prompts * 8, tokenizer, 8, on_tokens=tell)
    assert told == [ids[mask == 1].tolist() for ids, mask in zip(rollouts.response_ids, rollouts.response_mask)]
    for ids, mask, ended in zip(rollouts.response_ids, rollouts.response_mask, rollouts.ended):
        n = int(mask.sum())
        assert (mask[:n] == 1).all() and (mask[n:] == 0).all()
        assert (ids[:n] == 0).sum() == int(ended) and (ids[n - 1] == 0) == ended
        assert (ids[n:] == 0).all()
    assert rollouts.ended.any() and (rollouts.response_mask.sum(1) == 1).any(), "no row ends at once: weak test"


def test_the_same_seed_writes_the_same_after_prompts_of_text(lm, tokenizer):
    one, two = (
        sample_rollouts(lm, ["the film", "it is not"], tokenizer, 6, torch.Generator().manual_seed(5)) for _ in "ab"
    )
    assert torch.equal(one.input_ids, two.input_ids)
    assert one.texts(tokenizer)[1].startswith("it is not")
