"""Nobody gets in, and nothing gets out: pickles and a repository's code never run, a token is never written down."""

import ast
import json
import os
import pickle
import re
import secrets
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
import torch
from hub_stand_in import REASON, Hub
from safetensors.torch import load_file
from test_project import PATHS, ROOT

from rlhf_helpers import data, evaluation
from rlhf_helpers.models import PolicyWithValueHead, RewardModel, load_lm
from rlhf_helpers.training import Run, linear_schedule


@pytest.fixture
def trap(tmp_path):
    """A pickle and Python source that leave a file behind if they run; what to check afterwards."""
    mark = tmp_path / "it ran"

    class Trap:
        def __reduce__(self):
            return open, (str(mark), "w")

        pickled = property(lambda self: pickle.dumps(self))
        source = f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tokens: pass\n"

        def ran(self):
            return mark.exists()

    trap = Trap()
    pickle.loads(trap.pickled).close()  # it does bite
    assert trap.ran()
    mark.unlink()
    exec(trap.source, {})
    assert trap.ran()
    mark.unlink()
    return trap


@pytest.fixture
def folder(lm, tokenizer, tmp_path):
    """A whole model with its tokenizer."""
    PolicyWithValueHead(lm).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


LOADERS = {
    "model": load_lm,
    "policy": PolicyWithValueHead,
    "saved policy": PolicyWithValueHead.from_pretrained,
    "new reward model": RewardModel,
    "reward model": RewardModel.from_pretrained,
    "judge": evaluation.classifier_judge,
}


def made_for(load, folder):
    """The folder, with a model of the kind that is loaded."""
    if load == RewardModel.from_pretrained:
        RewardModel(str(folder)).save_pretrained(folder)
    return folder


every_loader = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@every_loader
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "pytorch_model-00001-of-00001.bin"])
def test_a_pickle_in_place_of_weights_is_refused_unrun(load, name, folder, trap):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(trap.pickled)
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": name}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    wrong = (OSError, ValueError) if load is not evaluation.classifier_judge else Exception
    with pytest.raises(wrong, match="safetensors|deserializ"):
        load(str(folder))
    assert not trap.ran()


@every_loader
def test_even_good_weights_are_refused_if_they_are_pickled(load, folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        load(str(folder))


@every_loader
def test_pickles_beside_weights_are_left_alone(load, folder, trap):
    made_for(load, folder)
    names = ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "vocab.pkl"]
    for name in names + ["adapter_model.bin", "value_head.bin", "tf_model.h5", "flax_model.msgpack"]:
        (folder / name).write_bytes(trap.pickled)
    (folder / "__init__.py").write_text(trap.source)
    load(str(folder))
    data.load_tokenizer(str(folder))
    assert not trap.ran()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
@pytest.mark.parametrize("load", [load_lm, PolicyWithValueHead, RewardModel.from_pretrained])
def test_a_pickled_adapter_is_refused_unrun(load, name, folder, trap, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e .[beyond]")
    lm = load_lm(str(folder))
    lm.add_adapter(peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    lm.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / name).write_bytes(trap.pickled)
    with pytest.raises((OSError, ValueError), match="can't load"):
        load(str(tmp_path / "adapter"))
    assert not trap.ran()


def test_a_pickled_value_head_is_refused_unrun(folder, trap):
    (folder / "value_head.safetensors").write_bytes(trap.pickled)
    with pytest.raises(ValueError, match="can't load the value head"):
        PolicyWithValueHead.from_pretrained(folder)
    assert not trap.ran()


def test_a_pickled_checkpoint_is_refused_unrun(lm, tmp_path, trap):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(trap.pickled)
    before = [p.clone() for p in lm.parameters()]
    optimizer = torch.optim.SGD(lm.parameters(), lr=0.1)
    run = Run(tmp_path / "run", lm, optimizer, linear_schedule(optimizer, 1), steps=1, seed=0, settings={})
    with pytest.raises(Exception):  # noqa: B017 - which one, tests/test_training.py says
        next(iter(run))
    assert not trap.ran() and all(torch.equal(a, b) for a, b in zip(before, lm.parameters()))


@pytest.mark.parametrize("known", [True, False], ids=["gpt2", "unknown architecture"])
@every_loader
def test_code_in_a_repository_is_never_run_nor_offered(load, known, folder, trap, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked whether to run it: {question}"))
    (made_for(load, folder) / "evil.py").write_text(trap.source)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokens", None],
        "AutoModelForSequenceClassification": "evil.Model",
    }  # fmt: skip
    config["model_type"] = "gpt2" if known else "evil"
    (folder / "config.json").write_text(json.dumps(config))
    if known:
        load(str(folder))  # by transformers' own code
    else:
        with pytest.raises((OSError, ValueError), match="custom code"):
            load(str(folder))
    assert not trap.ran()


def test_a_tokenizers_code_or_pickle_is_never_run(folder, trap, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked whether to run it: {question}"))
    (folder / "evil.py").write_text(trap.source)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Tokens", None]}}
    path.write_text(json.dumps(config))
    data.load_tokenizer(str(folder))  # by transformers' own code
    path.write_text(json.dumps(config | {"tokenizer_class": "Tokens"}))
    try:
        data.load_tokenizer(str(folder))
    except ValueError as error:
        assert "can't load the tokenizer" in str(error)
    (folder / "tokenizer.json").write_bytes(trap.pickled)
    with pytest.raises(ValueError, match="can't load the tokenizer"):
        data.load_tokenizer(str(folder))
    assert not trap.ran()


@pytest.mark.parametrize("name", ["mine.py", "train.pkl", "train.pickle", "train.parquet", "train.csv", "train.tar"])
def test_a_data_set_runs_nothing(name, tmp_path, trap):
    folder = tmp_path / "mine"
    folder.mkdir()
    if name == "train.tar":
        (tmp_path / "x").write_bytes(trap.pickled)
        with tarfile.open(folder / name, "w") as archive:
            for row, ending in enumerate(["pyd", "pickle", "pkl", "pth", "npy"]):
                archive.add(tmp_path / "x", f"{row}.{ending}")
    else:
        (folder / name).write_bytes(trap.source.encode() if name.endswith(".py") else trap.pickled)
    with pytest.raises((OSError, ValueError), match="mine"):
        data.load_sentences(str(folder))
    assert not trap.ran()


def code():
    """Every piece of Python of ours that a reader runs, by name: helpers, notebooks, scripts."""
    for path in sorted([*ROOT.glob("rlhf_helpers/**/*.py"), *ROOT.glob("beyond/*.py"), *ROOT.glob("benchmarks/*.py")]):
        yield path.name, path.read_text(encoding="utf-8")
    for path in PATHS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield f"{path.name}, cell {cell.id}", cell.source


BANNED_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "get_ipython", "run_line_magic"}
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def findings(source):
    """What must not be there, as text; nothing in good code."""
    if re.search(r"^\s*[!%]", source, re.M):
        return ["a shell escape or magic"]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            found += [name for name in names if name.split(".")[0] in BANNED_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = getattr(getattr(node.func, "value", None), "id", "")
        options = {k.arg: getattr(k.value, "value", k.value) for k in node.keywords}
        text = ast.unparse(node)
        if options.get("trust_remote_code") or options.get("shell"):
            found.append(text)
        if name in BANNED_CALLS and (isinstance(node.func, ast.Name) or name not in ("eval", "compile")):
            found.append(text)  # model.eval() and re.compile() are others
        if (name == "load" and of in ("torch", "np", "numpy")) or name in ("read_pickle", "to_pickle"):
            found.append(text)
        if name == "from_pretrained" and (of.startswith("AutoModel") or of == "auto"):
            found += [text] * (options.get("use_safetensors") is not True)
        if name == "pipeline" and isinstance(options.get("model"), ast.Call) and "use_safetensors" not in text:
            found.append(text)
    return found


# the notebooks' own cells, run to make the table of notebook 3
ALLOWED = {("ablations.py", "exec"), ("ablations.py", "compile")}


def test_nothing_of_ours_unpickles_or_runs_what_it_read():
    for where, source in code():
        bad = [f for f in findings(source) if (where, f.split("(")[0]) not in ALLOWED]
        assert not bad, f"{where}: {bad}"


@pytest.mark.parametrize(
    "source",
    [
        "!ls", "  %pip install x", "import pickle", "from dill import loads", "torch.load('x')", "eval('1')",
        "exec(code)", "os.system('ls')", "subprocess.run('ls', shell=True)", "get_ipython().run_line_magic('x', '')",
        "AutoModel.from_pretrained(x)", "AutoModelForCausalLM.from_pretrained(x, use_safetensors=False)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=True)", "pipeline('t', model=str(folder))",
        "np.load(x, allow_pickle=True)", "pd.read_pickle(x)",
    ],
)  # fmt: skip
def test_the_search_finds(source):
    assert findings(source)


def audit(tmp_path, *replies):
    """tools/audit.py on a pip-audit that gives these replies, one a service; what it printed, and its status."""
    fake = tmp_path / "pip_audit.py"
    fake.write_text(
        f"import sys\nreply = dict(zip(('pypi', 'osv'), {replies!r}))[sys.argv[-1]]\n"
        "assert sys.argv[1:3] == ['-r', 'constraints.txt']\nprint(reply or sys.exit('no route to host'))"
    )
    command = [sys.executable, str(ROOT / "tools" / "audit.py"), sys.executable, str(fake)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout, done.returncode


def packages(*rows):
    return json.dumps({"dependencies": rows, "fixes": []})


GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI and could not be audited: unknown (1.0)"}


def test_the_audit_fails_on_what_it_finds_and_says_when_it_could_not_look(tmp_path):
    said, status = audit(tmp_path, packages(GOOD, BAD))
    assert status == 1 and "bad 1.0: PYSEC-2026-1, fixed in 1.1" in said and "2 of 2 packages audited" in said
    said, status = audit(tmp_path, packages(GOOD, UNKNOWN))
    assert status == 0 and "1 of 2 packages audited by pypi: 0 with" in said and "not known there: unknown" in said
    said, status = audit(tmp_path, packages(UNKNOWN), packages(BAD))
    assert status == 1 and "audited by osv" in said
    for pypi in ("", packages(UNKNOWN)):
        said, status = audit(tmp_path, pypi, "")
        assert status == 0 and said.startswith("audit skipped, nothing was checked") and "no route to host" in said
    missing = subprocess.run(
        [sys.executable, "tools/audit.py", "no-such-program"], capture_output=True, text=True, cwd=ROOT
    )
    assert missing.returncode == 0 and "no-such-program is not installed" in missing.stdout


SESSION = """
import contextlib, json, os, sys, traceback
from pathlib import Path
from rlhf_helpers.environment import quiet
quiet()
from rlhf_helpers import data, hub, models
from rlhf_helpers.beyond import judging
loads = {
    "public model": models.load_lm, "public tokenizer": data.load_tokenizer, "public data": data.load_sentences,
    "gated model": models.load_lm, "gated tokenizer": data.load_tokenizer, "gated data": data.load_sentences,
    "gated reward model": models.RewardModel.from_pretrained,
}
for what in sys.argv[1:] or loads:
    load, name = loads[what], "someone/" + what.split()[0]
    try:
        load(name)
        print(f"== {what}: loaded")
    except Exception as error:
        print(f"== {what}: {type(error).__name__}: {error}")
        traceback.print_exc()
"""
TRAINING = """
import torch
from rlhf_helpers.training import Run, linear_schedule
lm, tokenizer = models.load_lm("someone/public"), data.load_tokenizer("someone/public")
folder = Path("artifacts/tiny/sft")
settings = {"name": "tiny", "model": "someone/public", "dataset": "someone/public", "seed": 0}
optimizer = torch.optim.SGD(lm.parameters(), lr=0.1)
run = Run(folder, lm, optimizer, linear_schedule(optimizer, 2), steps=2, seed=0, settings=settings)
for _ in run:
    run.log(loss=run.step(sum((p**2).sum() for p in lm.parameters())))
lm.save_pretrained(folder)
tokenizer.save_pretrained(folder)
asked = judging.questions([{"prompt": "a", "ours": "b", "theirs": "c"}], "ours", "theirs")
for attempt in (
    lambda: hub.push(folder, "someone/mine", about="A policy.", prompt="the film"),
    lambda: hub.push(folder, "another/mine", about="A policy.", prompt="the film"),
    lambda: judging.ask(asked, Path("artifacts/judged.jsonl"), "judge", base_url=os.environ["HF_ENDPOINT"], retries=0),
):
    try:
        print("==", attempt())
    except Exception as error:
        print(f"== {type(error).__name__}: {error}")
        traceback.print_exc()
"""


@pytest.fixture
def session(tmp_path):
    """Runs Python in a process of its own that has the stand-in for a Hub: `session(hub, arguments, **environment)`."""
    base = {p.name: p.read_bytes() for p in (ROOT / "rlhf_helpers" / "tiny" / "base").iterdir() if p.is_file()}

    def run(hub, *arguments, **environment):
        hub.repos |= {"someone/public": dict(base), "someone/gated": dict(base)}
        hub.repos["someone/public"] |= {"train.csv": b"sentence,label\n" + b"a good film .,1\na bad film .,0\n" * 30}
        hub.gated.add("someone/gated")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "RLHF_", "OPENAI_"))}
        environment = kept | environment | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home"),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    return run


def test_public_needs_no_token_and_gated_says_why_and_how(session):
    with Hub() as hub:
        done = session(hub, "-c", SESSION)
    assert done.returncode == 0, done.stderr
    said = dict(part.split(": ", 1) for part in done.stdout.split("== ")[1:])
    assert all(said[f"public {what}"].startswith("loaded") for what in ("model", "tokenizer", "data"))
    assert {authorization for _, _, authorization in hub.seen} == {None}
    for what in ("model", "tokenizer", "reward model"):
        assert REASON in said[f"gated {what}"], said
    assert "is a gated dataset" in said["gated data"] and "authenticated" in said["gated data"]
    for what in ("model", "tokenizer", "reward model", "data"):
        for words in ("ConnectionError", "someone/gated", "notebook_login()", "Jupyter", "Colab", "HF_TOKEN"):
            assert words in said[f"gated {what}"], (what, words)


def test_a_token_is_written_nowhere(session, tmp_path):
    """A Hub token and a judge's key, through loading, refusals, training, pushing, judging and a failing notebook."""
    token, key = "hf_" + secrets.token_hex(17), "sk-" + secrets.token_hex(20)
    planted = {"HF_TOKEN": token, "OPENAI_API_KEY": key}
    with Hub(token=token) as hub:
        done = session(hub, "-c", SESSION + TRAINING, "gated model", **planted)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and said.count("gated model: ConnectionError") == 1, said
        assert "someone/mine: " in said and "PermissionError" in said and "the judge 'judge'" in said, said
        assert f"Bearer {token}" in {a for _, _, a in hub.seen} and f"Bearer {key}" in {a for _, _, a in hub.seen}
        cells = [
            "# Title", "import os\nfrom rlhf_helpers.presets import load_preset\nprint(load_preset())",
            "from rlhf_helpers import data\ndata.load_tokenizer('someone/gated')",
        ]  # fmt: skip
        new = [nbformat.v4.new_markdown_cell(cells[0])] + [nbformat.v4.new_code_cell(c) for c in cells[1:]]
        nbformat.write(nbformat.v4.new_notebook(cells=new), tmp_path / "1-SFT.ipynb")
        failed = session(hub, "-m", "rlhf_helpers", "sft", RLHF_PRESET="tiny", **planted)
        assert failed.returncode == 1 and "someone/gated" in failed.stderr and REASON in failed.stderr
        sent = {f"sent: {name}": content for name, content in hub.repos["someone/mine"].items()}
    printed = {"printed": (said + failed.stdout + failed.stderr).encode()}
    files = {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {"1-SFT.ipynb", "metrics.csv", "README.md", "judged.jsonl"} <= {Path(p).name for p in files}
    assert any("tensorboard" in p for p in files) and any("/hf/" in p for p in files)
    for secret in (token, key):
        where = [name for name, content in (printed | sent | files).items() if secret.encode() in content]
        assert not where, where
