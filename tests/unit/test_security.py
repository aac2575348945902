"""Nobody gets in: pickles and a repository's code never run, whatever is loaded."""

import json
import pickle

import pytest

from rlhf_helpers import data, judges
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm

LOADERS = {
    "model": load_lm,
    "policy": PolicyWithValueHead.from_pretrained,
    "reward model": RewardModel.from_pretrained,
    "judge": judges.classifier_log_odds,
}


class Trap:
    """Leaves a file behind if it is unpickled; so does its source if that is run."""

    def __init__(self, mark):
        self.mark, self.source = mark, f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\n"

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture
def trap(tmp_path):
    trap = Trap(tmp_path / "it ran")
    pickle.loads(pickle.dumps(trap)).close()  # it does bite
    trap.mark.unlink()
    yield trap
    assert not trap.mark.exists()


@pytest.fixture(params=LOADERS.values(), ids=LOADERS)
def load(request):
    return request.param


@pytest.fixture
def folder(load, policy, reward_model, tokenizer, tmp_path):
    """A whole model that `load` takes, with its tokenizer."""
    model = policy if load in (LOADERS["model"], LOADERS["policy"]) else reward_model
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_place_of_weights_is_refused_unrun(load, name, folder, trap):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(trap))
    with pytest.raises((OSError, ValueError), match="safetensors|deserializ"):
        load(str(folder))


def test_what_lies_beside_weights_is_never_run_nor_offered(load, folder, trap, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked whether to run it: {question}"))
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "value_head.bin", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(trap))
    for name in ("__init__.py", "evil.py"):
        (folder / name).write_text(trap.source)
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config["auto_map"] = {"AutoConfig": "evil.Config"} | dict.fromkeys(classes, "evil.Model")
    (folder / "config.json").write_text(json.dumps(config))
    load(str(folder))  # a GPT-2, by transformers' own code
    data.load_tokenizer(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    for loader in (load, data.load_tokenizer):
        with pytest.raises((OSError, ValueError), match="custom code"):
            loader(str(folder))


@pytest.mark.parametrize("name", ["mine.py", "train.pkl", "train.parquet"])
def test_a_data_set_runs_nothing(name, tmp_path, trap):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(trap.source.encode() if name.endswith(".py") else pickle.dumps(trap))
    with pytest.raises((OSError, ValueError), match="mine"):
        data.load_sentences(str(tmp_path / "mine"))
