"""Nobody gets in: pickles and a repository's code never run, whatever is loaded. Tokens: test_hub.py."""

import ast
import json
import pickle
import re

import nbformat
import pytest
import torch
from safetensors.torch import load_file
from test_project import PATHS, ROOT

from rlhf_helpers import data, judges
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm

LOADERS = {
    "model": load_lm,
    "saved policy": PolicyWithValueHead.from_pretrained,
    "new reward model": RewardModel,
    "reward model": RewardModel.from_pretrained,
    "judge": judges.classifier_log_odds,
}
every_loader = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


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
    return trap


@pytest.fixture
def folder(lm, tokenizer, tmp_path):
    """A whole model with its tokenizer."""
    PolicyWithValueHead(lm).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def made_for(load, folder):
    if load == RewardModel.from_pretrained:
        RewardModel(str(folder)).save_pretrained(folder)
    return str(folder)


@every_loader
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_place_of_weights_is_refused_unrun(load, name, folder, trap):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(trap))
    wrong = (OSError, ValueError) if load is not judges.classifier_log_odds else Exception
    with pytest.raises(wrong, match="safetensors|deserializ"):
        load(str(folder))
    assert not trap.mark.exists()
    torch.save(weights, folder / "pytorch_model.bin")  # even good weights, if they are pickled
    with pytest.raises(wrong, match="safetensors|deserializ"):
        load(str(folder))


@every_loader
def test_pickles_and_code_beside_weights_are_left_alone(load, folder, trap):
    path = made_for(load, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "value_head.bin", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(trap))
    (folder / "__init__.py").write_text(trap.source)
    load(path)
    data.load_tokenizer(path)
    assert not trap.mark.exists()


@every_loader
@pytest.mark.parametrize("known", [True, False], ids=["gpt2", "unknown architecture"])
def test_code_in_a_repository_is_never_run_nor_offered(load, known, folder, trap, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked whether to run it: {question}"))
    path = made_for(load, folder)
    (folder / "evil.py").write_text(trap.source)
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config["auto_map"] = {"AutoConfig": "evil.Config"} | dict.fromkeys(classes, "evil.Model")
    config["model_type"] = "gpt2" if known else "evil"
    (folder / "config.json").write_text(json.dumps(config))
    if known:
        load(path)  # by transformers' own code
    else:
        with pytest.raises((OSError, ValueError), match="custom code"):
            load(path)
    assert not trap.mark.exists()


@pytest.mark.parametrize("name", ["mine.py", "train.pkl", "train.parquet", "train.csv"])
def test_a_data_set_runs_nothing(name, tmp_path, trap):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(trap.source.encode() if name.endswith(".py") else pickle.dumps(trap))
    with pytest.raises((OSError, ValueError), match="mine"):
        data.load_sentences(str(tmp_path / "mine"))
    assert not trap.mark.exists()


def code():
    """Every piece of Python of ours that a reader runs, by name: helpers, notebooks, scripts."""
    for path in sorted([*ROOT.glob("rlhf_helpers/**/*.py"), *ROOT.glob("beyond/*.py"), *ROOT.glob("benchmarks/*.py")]):
        yield path.name, path.read_text(encoding="utf-8")
    for path in PATHS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield f"{path.name}, cell {cell.id}", re.sub(r"^    %pip .*", "    pass", cell.source, flags=re.M)


def findings(source):
    """What must not be there, as text; nothing in good code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            found += names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        if not isinstance(node, ast.Call):
            continue
        name, text = ast.unparse(node.func), ast.unparse(node)
        unsafe = re.search(r"trust_remote_code=True|allow_pickle=True|shell=True", text)
        banned = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "pd.read_pickle"}
        unpinned = re.match(r"AutoModel\w*\.from_pretrained", name) and "use_safetensors=True" not in text
        found += [text] if unsafe or name in banned or unpinned else []
    return found


def test_nothing_of_ours_unpickles_or_runs_what_it_read():
    assert not {where: found for where, source in code() if (found := findings(source))}
    for bad in ("import pickle", "torch.load('x')", "exec(code)", "AutoModel.from_pretrained(x)", "f(shell=True)"):
        assert findings(bad), bad
