"""Nothing is lost: a training that is killed again and again ends with the bits of one that never was."""

import random
import signal
import time

import pandas as pd
import pytest
import torch
import trainings
from safetensors.torch import load_file


@pytest.fixture
def start(forks):
    step = forks.RawValue("i", -1)

    def start(stage, folder):
        step.value = -1
        process = forks.Process(target=trainings.train, args=(stage, folder, step), daemon=True)
        process.start()
        return process, step

    return start


def same(one, two):
    """Weights, optimiser state and metrics, but for what a clock measured."""
    weights, others = (load_file(folder / "checkpoint.safetensors") for folder in (one, two))
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    rows = [pd.read_csv(folder / "metrics.csv", float_precision="round_trip") for folder in (one, two)]
    clock = ["seconds", "tokens_per_second"]
    pd.testing.assert_frame_equal(*(x.drop(columns=clock, errors="ignore") for x in rows), check_exact=True)


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
