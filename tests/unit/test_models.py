"""models.py and rollouts.py: padding, positions, heads, saving."""

import math
import pickle
from unittest.mock import patch

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

from rlhf_helpers import models, ppo
from rlhf_helpers import rollouts as rollouts_module
from rlhf_helpers.data import encode, pad
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.rollouts import response_outputs, sample_rollouts


@pytest.fixture
def reward_model(lm):
    model = RewardModel(lm).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.score.weight)
    return model


def test_first_score_is_zero_and_first_loss_ln_2(lm):
    scores = RewardModel(lm)(*pad([[1, 2, 0], [3, 0]], 0))
    assert (scores == 0).all()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("left, right, filler", [(0, 4, 0), (4, 0, 0), (3, 2, 0), (3, 2, 7)])
def test_padding_moves_no_score(reward_model, left, right, filler):
    rows = [[1, 2, 4, 6, 0], [1, 2, 0], [15, 4, 0]]
    alone = torch.cat([reward_model(*pad([row], 0)) for row in rows])
    ids, mask = pad(rows, filler)
    ids = torch.nn.functional.pad(ids, (left, right), value=filler)
    mask = torch.nn.functional.pad(mask, (left, right))
    assert torch.allclose(reward_model(ids, mask), alone, atol=1e-5)


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
    again = RewardModel.from_pretrained(tmp_path).eval()
    ids, mask = pad(encode(texts, tokenizer, 32), 0)
    theirs = again.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in reward_model.state_dict().items())
    # equal weights at other addresses may be summed in another order
    assert torch.allclose(again(ids, mask), reward_model(ids, mask), atol=1e-5)


def test_policy_is_the_language_model_with_a_zero_head(lm, prompts):
    ids, mask = pad(prompts, 0)
    expected = lm(input_ids=ids, attention_mask=mask).logits  # right-padded: positions are right
    policy = PolicyWithValueHead(lm).train()
    logits, values = policy(ids, mask)
    assert torch.allclose(logits[mask == 1], expected[mask == 1], atol=1e-5)
    assert (values == 0).all()
    assert torch.equal(policy(ids, mask)[0], logits), "dropout is on"


def test_left_padding_changes_no_row(lm, prompts):
    policy = PolicyWithValueHead(lm)
    ids, mask = pad(prompts, 0, side="left")
    together = policy(ids, mask)[0][:, -1]
    alone = torch.cat([policy(*pad([p], 0))[0][:, -1] for p in prompts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_autocast_changes_no_attention(lm, prompts, tmp_path):
    """On a CPU attention stays in fp32."""
    lm.save_pretrained(tmp_path)
    again = load_lm(str(tmp_path))
    ids, mask = pad(prompts, 0, side="left")
    ours, theirs = (model(input_ids=ids, attention_mask=mask).logits[mask == 1] for model in (again, lm))
    assert torch.allclose(ours, theirs, atol=1e-5)
    seen = []
    with (
        patch.object(models, "sdpa_attention_forward", lambda *a, **k: seen.append(a[1].dtype) or sdpa(*a, **k)),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        again(input_ids=ids, attention_mask=mask)
    assert seen == [torch.float32] * 2


def test_policy_saves_and_reloads_exactly(lm, tokenizer, prompts, tmp_path):
    policy = PolicyWithValueHead(lm)
    torch.nn.init.normal_(policy.value_head.weight)
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = PolicyWithValueHead.from_pretrained(tmp_path)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(policy.parameters(), again.parameters()))
    for ours, theirs in zip(policy(*pad(prompts, 0)), again(*pad(prompts, 0))):
        assert torch.allclose(ours, theirs, atol=1e-5)
    generate = pipeline("text-generation", model=str(tmp_path))
    theirs = generate("the film", max_new_tokens=3, max_length=None, do_sample=False, return_tensors=True)
    ids = [1, 2]
    for _ in range(3):
        ids.append(policy(torch.tensor([ids]), torch.ones(1, len(ids)))[0][0, -1].argmax().item())
        if ids[-1] == 0:
            break
    assert theirs[0]["generated_token_ids"] == ids


def test_a_folder_without_value_head_is_named(lm, tmp_path):
    lm.save_pretrained(tmp_path)
    with pytest.raises(ConnectionError, match="value_head"):
        PolicyWithValueHead.from_pretrained(tmp_path)


def test_a_planted_pickle_is_not_run(lm, tmp_path):
    class Boom:
        def __reduce__(self):
            return open, (str(tmp_path / "it_ran"), "w")

    lm.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(ConnectionError):
        load_lm(str(tmp_path))
    assert not (tmp_path / "it_ran").exists()


def test_recorded_logprobs_equal_recomputed_ones(lm, tokenizer, prompts):
    policy = PolicyWithValueHead(lm)
    torch.manual_seed(0)
    rollouts = sample_rollouts(policy, prompts * 4, tokenizer, 8)
    mask = rollouts.response_mask
    assert mask.sum(1).min() < mask.sum(1).max(), "the test needs rows of several lengths"
    logits, _, token_index = response_outputs(policy, rollouts)
    again = ppo.token_logprobs(logits, rollouts.response_ids[token_index])
    assert torch.allclose(again, rollouts.logprobs[token_index], atol=1e-4)
    assert (rollouts.logprobs[mask == 0] == 0).all()


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_response_outputs_are_those_of_the_padded_batch(lm, tokenizer, prompts, rows_at_once):
    """Sorted, moved and without padding, yet the numbers of the plain way; each real token once."""
    policy = PolicyWithValueHead(lm)
    torch.nn.init.normal_(policy.value_head.weight)
    torch.manual_seed(0)
    rollouts = sample_rollouts(policy, prompts * 4, tokenizer, 8)
    logits, values, token_index = response_outputs(policy, rollouts, rows_at_once)
    P = rollouts.prompt_ids.shape[1]
    plain_logits, plain_values = (x[:, P - 1 : -1] for x in policy(rollouts.input_ids, rollouts.attention_mask))
    assert torch.allclose(logits, plain_logits[token_index], atol=1e-4)
    assert torch.allclose(values, plain_values[token_index], atol=1e-4)
    seen = torch.zeros_like(rollouts.response_mask).index_put(token_index, torch.tensor(1), accumulate=True)
    assert torch.equal(seen, rollouts.response_mask)
    assert response_outputs(lm, rollouts)[1] is None


def test_recorded_logprobs_are_those_of_each_row_alone(lm, tokenizer, prompts):
    """No padding on this side at all: catches right-padded prompts, which agree with themselves."""
    torch.manual_seed(0)
    rollouts = sample_rollouts(PolicyWithValueHead(lm), prompts, tokenizer, 8)
    assert (rollouts.prompt_mask[:, -1] == 1).all(), "prompts must meet their responses: pad on the left"
    for prompt, ids, mask, logprobs in zip(prompts, rollouts.response_ids, rollouts.response_mask, rollouts.logprobs):
        response = ids[mask == 1]
        row = torch.cat([torch.tensor(prompt), response])[None]
        alone = ppo.token_logprobs(lm(input_ids=row).logits[:, len(prompt) - 1 : -1], response[None])
        assert torch.allclose(alone[0], logprobs[mask == 1], atol=1e-4)


def test_each_row_ends_at_its_own_end_of_text(lm, tokenizer, prompts):
    torch.manual_seed(0)
    lm.train()
    rollouts = sample_rollouts(lm, prompts * 8, tokenizer, 8)
    assert lm.training, "sampling must leave the mode as it was"
    for ids, mask, ended in zip(rollouts.response_ids, rollouts.response_mask, rollouts.ended):
        n = int(mask.sum())
        assert (mask[:n] == 1).all() and (mask[n:] == 0).all()
        assert (ids[:n] == 0).sum() == int(ended) and (ids[n - 1] == 0) == ended
        assert (ids[n:] == 0).all()
    assert rollouts.ended.any() and (rollouts.response_mask.sum(1) == 1).any(), "no row ends at once: weak test"


def test_sampling_that_is_interrupted_leaves_the_mode_as_it_was(lm, tokenizer, prompts):
    policy = PolicyWithValueHead(lm).train()
    with patch.object(rollouts_module, "lm_logits", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        sample_rollouts(policy, prompts, tokenizer, 4)
    assert policy.training and lm.training


def test_a_critic_has_its_own_trunk_and_is_saved_with_it(lm, reward_model, prompts, tmp_path):
    policy = PolicyWithValueHead(lm, critic=reward_model)
    torch.nn.init.normal_(policy.value_head.weight)
    ids, mask = pad(prompts, 0)
    with torch.no_grad():
        policy.critic.wte.weight += 0.1
    logits, values = policy(ids, mask)
    assert torch.allclose(logits, PolicyWithValueHead(lm)(ids, mask)[0]), "the critic changed the policy"
    states = models.hidden_states(policy.critic, ids, mask)
    assert torch.allclose(values, policy.value_head(states)[..., 0], atol=1e-5)
    policy.save_pretrained(tmp_path)
    again = PolicyWithValueHead.from_pretrained(tmp_path)
    assert torch.allclose(again(ids, mask)[1][mask == 1], values[mask == 1], atol=1e-5)
    groups = policy.parameter_groups(1e-4, 1e-3)
    assert [len(group["params"]) for group in groups] == [
        len([*lm.parameters()]),
        len([*policy.critic.parameters()]) + 2,
    ]


def test_same_seed_same_rollouts_and_text_prompts(lm, tokenizer):
    one, two = (
        sample_rollouts(lm, ["the film", "it is not"], tokenizer, 6, torch.Generator().manual_seed(5)) for _ in "ab"
    )
    assert torch.equal(one.input_ids, two.input_ids)
    assert one.texts(tokenizer)[1].startswith("it is not")


@pytest.mark.parametrize("prompts, new, match", [([], 4, "no prompt"), ([[]], 4, "empty"), ([[1] * 30], 4, "28 fit")])
def test_bad_prompts(lm, tokenizer, prompts, new, match):
    with pytest.raises(ValueError, match=match):
        sample_rollouts(lm, prompts, tokenizer, new)
