"""Nothing is lost: killed, interrupted, damaged, out of disk, two at once, or made of parts that don't fit."""

import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
import trainings
from safetensors.torch import load_file, save_file
from test_training import new_run, same, train
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import artifacts, data, evaluation, health, models, ppo, rollouts, training
from rlhf_helpers.presets import NOTEBOOKS, load_preset

ROOT = Path(__file__).parents[2]
CLOCKS = ["seconds", "tokens_per_second"]


@pytest.fixture(scope="module")
def processes():
    """Forks of a process that has imported everything and computed nothing: a child costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainings", "test_nothing_lost"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not hand sys.path to it
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        forkserver.ensure_running()
    return context


def start(processes, function, *arguments):
    process = processes.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


# killed


def left_by(folder):
    """Weights and optimiser state, and metrics without what a clock measured."""
    metrics = pd.read_csv(folder / "metrics.csv", float_precision="round_trip")
    return load_file(folder / "checkpoint.safetensors"), metrics.drop(columns=CLOCKS, errors="ignore")


@pytest.mark.parametrize("stage", trainings.STEPS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(stage, processes, tmp_path):
    step, last = processes.RawValue("i", -1), trainings.STEPS[stage] - 1
    whole = start(processes, trainings.train, stage, tmp_path / "whole", step)
    whole.join(120)
    assert whole.exitcode == 0 and step.value == last
    metrics = pd.read_csv(tmp_path / "whole" / "metrics.csv")
    moments, tries, killed_at = random.Random(stage), 26, []
    for i in range(tries):
        at, step.value = int((i + moments.random()) * (last - 2) / tries), -1  # spread over the whole run
        process = start(processes, trainings.train, stage, tmp_path / "killed", step)
        deadline = time.time() + 60
        while process.is_alive() and step.value < at and time.time() < deadline:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 2 * metrics["seconds"].median()))  # anywhere in a step, or in writing after it
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed_at.append(step.value)
    assert len(killed_at) >= 20 and len(set(killed_at)) >= 12, killed_at
    assert min(killed_at) < last / 4 and max(killed_at) > last * 3 / 4, killed_at
    process = start(processes, trainings.train, stage, tmp_path / "killed", step)
    process.join(120)
    assert process.exitcode == 0
    (expected, rows), (found, its_rows) = left_by(tmp_path / "whole"), left_by(tmp_path / "killed")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    assert len(rows) == trainings.STEPS[stage]
    pd.testing.assert_frame_equal(rows, its_rows, check_exact=True)
    assert not list((tmp_path / "killed").glob("part*")) and not list((tmp_path / "killed").glob("*.part"))


def train_and_die(folder, line):
    """Killed at the n-th line that is run of those that write the second checkpoint to come."""
    left, saves = line, 0

    def trace(frame, event, argument):
        nonlocal left, saves
        code = frame.f_code
        if code.co_filename != training.__file__ or code.co_name not in ("_save", "_flush", "_write_metrics"):
            return None
        saves += event == "call" and code.co_name == "_save"
        left -= saves == 2
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    train(new_run(folder))


def test_killed_at_any_line_of_writing_a_checkpoint(processes, tmp_path):
    whole = train(new_run(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(new_run(tmp_path / "begun"), until=9)
    died, line = 0, 0
    while True:
        shutil.copytree(tmp_path / "begun", folder := tmp_path / str(line))
        process = start(processes, train_and_die, folder, line)
        process.join(60)
        same(whole, train(new_run(folder)))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        died, line = died + 1, line + 2
    assert died > 15


def write_half_and_die(folder):
    def half(tensors, path, about):
        save_file(tensors, path, about)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    training.save_file = half
    train(new_run(folder))


def test_what_a_kill_left_half_written_goes(processes, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(new_run(tmp_path), until=9)
    for _ in range(3):
        process = start(processes, write_half_and_die, tmp_path)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL and len(list((tmp_path / "part").iterdir())) == 1
    run = train(new_run(tmp_path))
    assert len(run.metrics) == 20 and not (tmp_path / "part").exists()


# interrupted, in the notebooks' own cells


@pytest.fixture
def notebook(monkeypatch):
    """Runs cells as a kernel does: an exception is shown, its traceback kept, and the next cell can run."""
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    for name in ("displayhook", "excepthook"):  # the shell sets them
        monkeypatch.setattr(sys, name, getattr(sys, name))
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))

    def run_cell(source):
        return shell.run_cell(source, store_history=False).error_in_exec

    run_cell.names = shell.user_ns
    return run_cell


def cell(stage, pattern):
    cells = nbformat.read(ROOT / NOTEBOOKS[stage], as_version=4).cells
    (source,) = [c.source for c in cells if c.cell_type == "code" and re.search(pattern, c.source, re.MULTILINE)]
    return source


def cells_of(stage):
    """The cells that train, from the one that makes the `Run` on."""
    if stage == "sft":
        return [cell(stage, r"^batches = \[$"), cell(stage, r"^for step in run")]
    if stage == "reward_model":
        return [cell(stage, r"^for step in run")]
    return [cell(stage, r"^def train_ppo"), cell(stage, r"^train_ppo\(policy, run")]


def names_of(stage, folder, lm, tokenizer, prompts):
    """What the notebook's earlier cells leave for these, small; and the model that is trained."""
    small = {"sft_batch": 2, "rm_batch": 2, "rm_examples": 32, "rm_epochs": 1, "ppo_updates": 12, "ppo_batch": 4}
    small |= {"ppo_minibatch": 2, "ppo_new_tokens": 4, "ppo_target_kl": 1.0, "artifacts": folder, "device": "cpu"}
    preset = replace(load_preset("tiny"), **small)
    rows = [[*prompt, 3 + i % 5, 0] for i in range(7) for prompt in prompts]
    labels = torch.arange(len(rows)) % 2.0
    reference, reward_model = models.freeze(trainings.small_lm()), models.RewardModel(trainings.small_lm())
    model = {"sft": lm, "reward_model": reward_model, "policy": models.PolicyWithValueHead(lm)}[stage]

    def scores_of(model, rows):
        return model(*data.pad(rows, 0))

    def loss_on(model, batch, labels):
        return binary_cross_entropy_with_logits(scores_of(model, [rows[i] for i in batch]), labels[batch])

    def epoch_batches(examples, epochs, size):
        return [batch for e in range(epochs) for batch in data.length_bucketed([len(r) for r in rows], size, e)]

    reference = models.freeze(type(lm)(lm.config).eval())
    return model, {
        "preset": preset, "replace": replace, "torch": torch, "pd": pd, "random": random, "data": data,
        "training": training, "evaluation": evaluation, "rollouts": rollouts, "ppo": ppo, "tokenizer": tokenizer,
        "health": health, "plots": SimpleNamespace(dashboard=lambda m: None, loss_curves=lambda *a: None),
        "display": lambda *a, **k: SimpleNamespace(update=lambda figure: None),
        "lm": lm, "train": rows, "validation": rows[:4], "validation_labels": labels[:4], "train_labels": labels,
        "reward_model": model, "scores_of": scores_of, "loss_on": loss_on, "epoch_batches": epoch_batches,
        "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits, "models": models, "math": math,
        "policy": model, "reference": reference, "reward": lambda batch: batch.response_ids.sum(1) / 50.0,
        "collect": {"beta": 0.1, "no_eos_score": -1.0, "rows_at_once": 2}, "judge": lambda texts: pd.Series([1.0]),
        "ppo_rows": rows,
    }  # fmt: skip


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_a_notebooks_training_cells_stopped_and_run_again(stage, notebook, lm, tokenizer, prompts, tmp_path, capsys):
    cells = cells_of(stage)

    def begin(name):
        """As a fresh kernel; a call of the model counts as a tick, and the stop button falls at one of them."""
        torch.manual_seed(0)
        model, names = names_of(stage, tmp_path / name, type(lm)(lm.config).eval(), tokenizer, prompts)
        clock = SimpleNamespace(ticks=0, stop=None)

        def tick(*_):
            clock.ticks += 1
            if clock.ticks == clock.stop:
                raise KeyboardInterrupt

        trunk = model if stage == "sft" else model.model if stage == "reward_model" else model.lm
        trunk.base_model.register_forward_pre_hook(tick)
        notebook.names.update(names)
        return model, clock

    expected, clock = begin("whole")
    for source in cells:
        assert notebook(source) is None
    ticks, rows = clock.ticks, notebook.names["run"].metrics
    model, clock = begin("stopped")
    moments, stops = random.Random(stage), 0
    while stops < 6:
        clock.stop = clock.ticks + moments.randrange(1, ticks // 3)
        again = cells if not stops or stops % 2 else cells[-1:]  # a new `Run`, or the same one iterated again
        errors = [notebook(source) for source in again]
        if errors[-1] is None:
            break
        assert isinstance(errors[-1], KeyboardInterrupt) and not any(errors[:-1])
        stops += 1
    assert stops >= 3
    clock.stop = None
    for source in cells:
        assert notebook(source) is None
    same_weights = [torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True)]
    assert all(same_weights)
    found = notebook.names["run"].metrics
    pd.testing.assert_frame_equal(
        found.drop(columns=CLOCKS, errors="ignore"), rows.drop(columns=CLOCKS, errors="ignore"), check_exact=True
    )
    assert "continuing" in capsys.readouterr().out

    steps = []
    notebook.names["run"].optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for source in cells:  # the training is finished: run again, it says so and trains nothing
        assert notebook(source) is None
    assert "finished: nothing is trained" in capsys.readouterr().out and not steps
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters()))
    shutil.rmtree(notebook.names["run"].folder)  # and it does not start anew from what is trained
    assert "restart the kernel" in str([notebook(source) for source in cells][-1])


# damaged


def stopped_run(folder):
    """Checkpoints after 8 steps (the previous one) and 12 (the last), and what the parameters were at each."""
    weights = {}
    with pytest.raises(KeyboardInterrupt):
        for step in (run := new_run(folder)):
            weights[step] = [p.clone() for p in run.model.parameters()]
            if step == 14:
                raise KeyboardInterrupt
            loss = run.model(torch.randn(8, 4)).square().mean()
            run.step(loss)
            run.scheduler.step()
            run.log(loss=loss)
            run.state["seen"] = run.state.get("seen", 0) + 1
    return weights


def resumed_at(folder, weights):
    """The step that a new run of `folder` continues with; its state must be wholly that of this step."""
    run = new_run(folder)
    steps = iter(run)
    step = next(steps)
    steps.close()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), weights[step]))
    assert run.state == {"seen": step} and run.metrics["step"].tolist() == list(range(step))
    assert all(moments["step"] == step for moments in run.optimizer.state_dict()["state"].values())
    return step


def test_a_damaged_checkpoint_is_found_and_the_previous_one_used(tmp_path, capsys):
    weights, whole = stopped_run(tmp_path / "run"), train(new_run(tmp_path / "whole"))
    path = tmp_path / "run" / "checkpoint.safetensors"
    content, chance = path.read_bytes(), random.Random(0)
    assert resumed_at(tmp_path / "run", weights) == 12
    harmless = 0
    for i in range(180):
        spoilt = bytearray(content)
        if i % 3 == 0:  # cut off
            spoilt = spoilt[: chance.randrange(len(content))]
        else:  # a bit flipped, mostly in the header, which is the larger part here
            spoilt[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        capsys.readouterr()
        step = resumed_at(tmp_path / "run", weights)
        assert step == (8 if "is damaged" in (printed := capsys.readouterr().out) else 12)
        assert step == 12 or (str(path) in printed and "Taking the one before it" in printed)
        harmless += step == 12
    assert harmless < 5  # white space in the header, say
    for _ in range(2):  # the damaged one must not take the place of the previous one
        path.write_bytes(content[:-1])
        with pytest.raises(KeyboardInterrupt):
            train(new_run(tmp_path / "run"), until=13)
        assert resumed_at(tmp_path / "run", weights) == 12
    path.write_bytes(content[:-1])
    assert resumed_at(tmp_path / "run", weights) == 8
    capsys.readouterr()
    same(whole, train(new_run(tmp_path / "run")))
    assert "is damaged" in capsys.readouterr().out
    same(whole, train(new_run(tmp_path / "run")))
    assert "is damaged" not in capsys.readouterr().out


def test_no_good_checkpoint_left(tmp_path):
    stopped_run(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors .*checkpoint\.previous\.safetensors .*delete"):
        train(new_run(tmp_path))


def test_a_stop_between_two_renames_leaves_the_previous_one(tmp_path):
    weights = stopped_run(tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    assert resumed_at(tmp_path, weights) == 8


@pytest.mark.parametrize("foreign", ["weights", "text", "empty"])
def test_a_foreign_file_is_no_checkpoint(foreign, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    if foreign == "weights":
        save_file({"model.weight": torch.zeros(1, 4)}, path)
    else:
        path.write_text({"text": "not weights at all", "empty": ""}[foreign])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"no checkpoint of a run.*delete"):
        train(new_run(tmp_path))
    assert path.read_bytes() == before


def test_another_models_checkpoint_is_refused_with_both_shapes(tmp_path):
    train(new_run(tmp_path))
    model = torch.nn.Linear(5, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    run = training.Run(
        tmp_path, model, optimizer, training.linear_schedule(optimizer, 20), steps=20, seed=3, settings={}
    )
    with pytest.raises(ValueError, match=r"another model.*model\.weight.*\[1, 4\].*\[1, 5\]"):
        next(iter(run))


def test_a_setting_that_is_gone_is_named(tmp_path):
    train(new_run(tmp_path, beta=0.1))
    with pytest.raises(ValueError, match=r"beta.*0\.1.*None"):
        train(new_run(tmp_path))


@pytest.mark.parametrize("metrics", [None, "", "step,loss\n0,1.0\n", "step,loss\n" + "7,1.0\n" * 50])
def test_metrics_and_tensors_belong_together(metrics, tmp_path):
    """Gone, empty, older or longer than the checkpoint: the run's history is the checkpoint's."""
    weights = stopped_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.csv"
    path.unlink() if metrics is None else path.write_text(metrics)
    assert resumed_at(tmp_path / "run", weights) == 12
    assert pd.read_csv(path)["step"].tolist() == list(range(12))
    same(train(new_run(tmp_path / "whole")), train(new_run(tmp_path / "run")))


def train_with_little_room(folder, limit, said):
    sys.stdout = io.StringIO()  # the limit is on every file
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(new_run(folder))
    except OSError as error:
        said.send(str(error))


def test_a_full_disk_is_an_error_and_the_last_good_checkpoint_is_whole(processes, tmp_path):
    steps = iter(new_run(tmp_path / "run"))  # a checkpoint of no steps holds no optimiser state
    next(steps)
    steps.close()
    limit = (tmp_path / "run" / "checkpoint.safetensors").stat().st_size + 64
    for _ in range(3):  # again and again, and nothing piles up
        hear, said = processes.Pipe(duplex=False)
        process = start(processes, train_with_little_room, tmp_path / "run", limit, said)
        process.join(60)
        assert process.exitcode == 0 and hear.poll()
        assert re.search("can't write into .*too large.*saved before is whole.*is the disk full", hear.recv())
        left = {path.name for path in (tmp_path / "run").iterdir()} - {"tensorboard", "run.lock"}
        assert left == {"checkpoint.safetensors", "metrics.csv"}
    same(train(new_run(tmp_path / "whole")), train(new_run(tmp_path / "run")))


# two at once


def hold(folder, ready):
    for _ in new_run(folder):
        ready.send("running")
        time.sleep(60)


def test_two_processes_in_one_folder(processes, tmp_path):
    hear, ready = processes.Pipe(duplex=False)
    process = start(processes, hold, tmp_path, ready)
    assert hear.recv() == "running"

    def contents():
        """Of TensorBoard's files only the names: a thread of the first process may still be writing their heads."""
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: None if path.parent.name == "tensorboard" else path.read_bytes() for path in files}

    before, began = contents(), time.perf_counter()
    with pytest.raises(RuntimeError, match=f"{re.escape(str(tmp_path))}, and two would tear.*RLHF_ARTIFACTS"):
        train(new_run(tmp_path))
    assert time.perf_counter() - began < 2
    assert before == contents()
    process.kill()
    process.join()
    train(new_run(tmp_path))  # the lock went with the process


def train_again(folder):
    train(new_run(folder))


def test_a_cell_run_again_is_not_shut_out_by_its_first_run(processes, tmp_path):
    abandoned = iter(new_run(tmp_path / "run"))
    next(abandoned)
    same(train(new_run(tmp_path / "whole")), train(new_run(tmp_path / "run")))
    abandoned.close()
    process = start(processes, train_again, tmp_path / "run")
    process.join(60)
    assert process.exitcode == 0, "the lock was kept"


# where a model comes from


@pytest.fixture
def chain(tmp_path, monkeypatch, lm, tokenizer):
    """An SFT model and a reward model made from it, as the notebooks leave them."""
    for name in ("PRESET", "SEED", "MODEL", "DATASET"):
        monkeypatch.delenv(f"RLHF_{name}", raising=False)
    monkeypatch.setenv("RLHF_ARTIFACTS", str(tmp_path))
    preset = load_preset("tiny")

    def save(stage, model, made_from=()):
        model.save_pretrained(preset.folder(stage))
        tokenizer.save_pretrained(preset.folder(stage))
        artifacts.record(preset.folder(stage), preset.settings(stage, made_from), steps=7)

    save("sft", lm)
    save("reward_model", models.RewardModel(lm), ("sft",))
    return SimpleNamespace(preset=preset, folder=tmp_path)


def test_a_record_says_what_the_model_was_made_of(chain):
    sft, reward_model = (
        json.loads((chain.preset.require(stage) / "artifact.json").read_text()) for stage in ("sft", "reward_model")
    )
    assert sft["settings"]["name"] == "tiny" and sft["settings"]["model"] == "embedded/base" and sft["steps"] == 7
    assert sft["versions"]["torch"] == torch.__version__.split("+")[0] or sft["versions"]["torch"] == torch.__version__
    assert re.fullmatch("[0-9a-f]{16}", sft["versions"]["rlhf_helpers"])
    assert set(sft["files"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert reward_model["settings"]["made_from"] == {"sft": artifacts.digest(chain.preset.folder("sft"))}
    run = train(new_run(chain.folder / "run", lr=0.1, beta=2))
    for folder in (None, chain.preset.folder("sft")):
        run.record(folder)
        about = artifacts.check(folder or run.folder)
        assert about["settings"] == {"beta": 2} and about["steps"] == 20 and bool(about["files"]) == bool(folder)


@pytest.mark.parametrize(
    ("stage", "change", "named"),
    [
        ("sft", {"RLHF_MODEL": "b"}, r"'model': \('embedded/base', 'b'\)"),
        ("sft", {"RLHF_DATASET": "b"}, r"'dataset': \('embedded/reviews', 'b'\)"),
        ("sft", {"RLHF_SEED": "3"}, r"'seed': \(0, 3\)"),
        ("reward_model", {"rm_lr": 0.25}, r"'rm_lr': \(0.0005, 0.25\)"),
        ("reward_model", {"sft_epochs": 9}, r"'sft_epochs': \(2, 9\)"),
        ("reward_model", {"precision": "bf16"}, r"'precision': \('fp32', 'bf16'\)"),
    ],
)
def test_a_model_of_another_configuration_is_refused(stage, change, named, chain, monkeypatch):
    fields = {name: value for name, value in change.items() if not name.startswith("RLHF_")}
    for name in change.keys() - fields:
        monkeypatch.setenv(name, change[name])
    other = replace(load_preset("tiny"), **fields)
    with pytest.raises(ValueError, match=r"holds a model of other settings \(there, here\).*" + named):
        other.require(stage)
    assert replace(chain.preset, ppo_lr=1.0).require(stage) == chain.preset.folder(stage)  # made no difference to it


def test_a_tiny_reward_model_among_those_of_gpt2(chain):
    gpt2 = load_preset("gpt2")
    shutil.copytree(chain.preset.folder("reward_model"), gpt2.folder("reward_model"))
    with pytest.raises(ValueError, match=r"'name': \('tiny', 'gpt2'\).*'openai-community/gpt2'"):
        gpt2.require("reward_model")


def test_one_stages_model_in_the_place_of_anothers(chain):
    shutil.rmtree(chain.preset.folder("sft"))
    shutil.copytree(chain.preset.folder("reward_model"), chain.preset.folder("sft"))
    with pytest.raises(ValueError, match="'rm_lr'"):
        chain.preset.require("sft")


@pytest.mark.parametrize("other", ["weights", "tokenizer"])
def test_a_reward_model_of_another_sft_model(other, chain, lm, tokenizer):
    before = artifacts.digest(chain.preset.folder("sft"))
    settings = chain.preset.settings("policy", made_from=("sft", "reward_model"))
    train(new_run(chain.folder / "policy", **settings))
    if other == "weights":
        lm.lm_head.weight.data += 1
        lm.save_pretrained(chain.preset.folder("sft"))
    else:
        tokenizer = type(tokenizer).from_pretrained(chain.preset.folder("sft"))
        tokenizer.add_tokens(["dreadful"])
        tokenizer.save_pretrained(chain.preset.folder("sft"))
    artifacts.record(chain.preset.folder("sft"), chain.preset.settings("sft"), steps=7)
    after = artifacts.digest(chain.preset.folder("sft"))
    assert chain.preset.require("sft") and before != after
    with pytest.raises(ValueError, match=f"another sft model.*{before}.*{after}.*2-RM Training.ipynb"):
        chain.preset.require("reward_model")
    settings = chain.preset.settings("policy", made_from=("sft", "reward_model"))
    with pytest.raises(ValueError, match=f"other settings.*{before}.*{after}"):  # PPO began from the old one
        train(new_run(chain.folder / "policy", **settings))


@pytest.mark.parametrize("spoil", ["weights", "config.json", "gone", "more", "record", "no record"])
def test_a_model_that_was_saved_halfway_is_refused(spoil, chain):
    """A crash between two files of a save: the record is of the old ones, and written last."""
    folder, error, match = chain.preset.folder("sft"), ValueError, r"1-SFT\.ipynb' again"
    if spoil == "weights":
        content = load_file(folder / "model.safetensors")
        save_file({name: x + 1 for name, x in content.items()}, folder / "model.safetensors")
    elif spoil == "config.json":
        (folder / "config.json").write_text((folder / "config.json").read_text().replace("32", "33", 1))
    elif spoil == "gone":
        (folder / "model.safetensors").unlink()
    elif spoil == "more":
        save_file({"x": torch.zeros(1)}, folder / "value_head.safetensors")
    elif spoil == "record":
        (folder / "artifact.json").write_text("{")
    else:
        (folder / "artifact.json").unlink()
        error, match = FileNotFoundError, r"Run '1-SFT\.ipynb' first"
    with pytest.raises(error, match=match):
        chain.preset.require("sft")
