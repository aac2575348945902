"""Nothing is lost: a training that is killed, or stopped by hand, ends with the bits of one that never was."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import pytest
import torch
import trainings
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start():
    """Starts a training in a fork of a process that has imported everything and computed nothing: milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainings"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not hand sys.path to it
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "slow")]))
        forkserver.ensure_running()
    step = context.RawValue("i", -1)

    def start(stage, folder):
        step.value = -1
        process = context.Process(target=trainings.train_in_a_process, args=(stage, folder, step), daemon=True)
        process.start()
        return process, step

    return start


def left_by(folder):
    """Weights and optimiser state, and metrics without what a clock measured."""
    metrics = pd.read_csv(folder / "metrics.csv", float_precision="round_trip")
    weights = load_file(folder / "checkpoint.safetensors")
    return weights, metrics.drop(columns=["seconds", "tokens_per_second"], errors="ignore")


def same(one, two):
    (weights, rows), (others, other_rows) = left_by(one), left_by(two)
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    pd.testing.assert_frame_equal(rows, other_rows, check_exact=True)


@pytest.mark.parametrize("stage", trainings.STEPS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(stage, start, tmp_path):
    process, step = start(stage, tmp_path / "never stopped")
    process.join(120)
    last = trainings.STEPS[stage] - 1
    assert process.exitcode == 0 and step.value == last
    usual = pd.read_csv(tmp_path / "never stopped" / "metrics.csv")["seconds"].median()
    moments, tries, killed_at = random.Random(stage), 20, []
    for i in range(tries):
        at = int((i + moments.random()) * (last - 2) / tries)  # spread over the whole run
        process, step = start(stage, tmp_path / "killed")
        deadline = time.time() + 60
        while process.is_alive() and step.value < at and time.time() < deadline:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 2 * usual))  # anywhere in a step, or in the writing after it
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed_at.append(step.value)
    assert len(set(killed_at)) >= 10, killed_at
    assert min(killed_at) < last / 4 and max(killed_at) > last * 3 / 4, killed_at
    process, _ = start(stage, tmp_path / "killed")
    process.join(120)
    assert process.exitcode == 0
    same(tmp_path / "never stopped", tmp_path / "killed")


@pytest.mark.parametrize("stage", trainings.STEPS)
def test_stopped_by_hand_and_run_again_in_the_same_kernel(stage, tmp_path, capsys):
    """The stop button raises KeyboardInterrupt in a cell; the cells are then run again, the model made anew."""
    trainings.train(stage, tmp_path / "never stopped", lambda step: None)
    for stop in (1, 7, 8, 25):

        def at_step(step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainings.train(stage, tmp_path / "stopped", at_step)
    run = trainings.train(stage, tmp_path / "stopped", lambda step: None)
    same(tmp_path / "never stopped", tmp_path / "stopped")
    assert "continuing" in capsys.readouterr().out

    before = [p.clone() for p in run.model.parameters()]
    again = trainings.train(stage, tmp_path / "stopped", lambda step: pytest.fail("a finished run was trained again"))
    assert all(torch.equal(a, b) for a, b in zip(before, again.model.parameters()))
