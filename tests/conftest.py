"""What every test can afford: a small model, a tokenizer, prompts, data, and no variables of the caller's."""

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_helpers.environment import quiet
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, freeze
from rlhf_helpers.ppo import collect_experience
from rlhf_helpers.rollouts import sample_rollouts

quiet()
WORDS = ["<eos>", *"the film plot is was very good bad not but and dull bright a of it . ,".split()]


@pytest.fixture(autouse=True)
def unset_variables(monkeypatch):
    for name in ("PRESET", "SEED", "MODEL", "DATASET", "PROMPTS", "ARTIFACTS"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)


@pytest.fixture(scope="session")
def tokenizer():
    """Word-level, and padding is end-of-text, as with GPT-2."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<eos>")


@pytest.fixture
def lm():
    """A random GPT-2 with dropout in its configuration, so that dropout left on is caught."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def other_lm(lm):
    torch.manual_seed(1)
    return type(lm)(lm.config).eval()


@pytest.fixture
def prompts():
    """Ragged on purpose."""
    return [[1, 2], [1, 3, 4, 6], [15], [16, 4, 8, 6, 9, 1, 2], [2, 4]]


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """Writes rows, or bytes, as one split of a data set; its folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def data_set(rows, split="train"):
        content = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / f"{split}.jsonl").write_bytes(content)
        return str(tmp_path / "set")

    return data_set


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Has the libraries load from a copy of the Hub cache beside the project; they write lock files into it."""
    cache = Path(__file__).parents[2] / "shared" / "hf_home"
    if not cache.exists():
        pytest.skip("no Hub cache beside the project")
    shutil.copytree(cache, tmp_path / "hf", symlinks=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def policy(lm):
    """Its values are not zero, which would hide how returns are made."""
    policy = PolicyWithValueHead(lm)
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


@pytest.fixture
def reward_model(lm):
    """Its scores are not zero, as those of a new one are."""
    model = freeze(RewardModel(lm))
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.score.weight)
    return model


@pytest.fixture
def collected(other_lm, tokenizer, prompts):
    """Collects the experience of a policy: rewards from -1 to 1, and another model as its reference."""

    def rising(input_ids, attention_mask):
        return torch.linspace(-1, 1, len(input_ids))

    def collected(policy, prompts=prompts, reference=other_lm, reward=rising, **settings):
        torch.manual_seed(0)
        rollouts = sample_rollouts(policy, prompts, tokenizer, 6)
        settings = {"beta": 0.1, "no_eos_score": -3.0, "rows_at_once": 2} | settings
        return collect_experience(policy, reference, reward, rollouts, **settings)

    return collected


@pytest.fixture
def step_of():
    """Makes of an optimiser what `ppo_update` calls with the losses of each minibatch."""

    def step_of(optimizer):
        def step(losses):
            optimizer.zero_grad()
            for loss in losses:
                loss.backward()
            optimizer.step()
            return 0.0

        return step

    return step_of
