"""training.py: resume bit for bit, stop on what isn't finite."""

import json
import re

import pandas as pd
import pytest
import torch

from rlhf_helpers.training import Run, linear_schedule


def new_run(folder, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = linear_schedule(optimizer, 20)
    return Run(folder, model, optimizer, scheduler, steps=20, seed=3, settings=settings, checkpoints=5)


def train(run, until=None):
    for step in run:
        if step == until:
            raise KeyboardInterrupt
        loss = run.model(torch.randn(8, 4)).square().mean()  # random: the seed of a step must come back
        run.step([loss])
        run.scheduler.step()
        run.log(loss=loss)
        run.state["seen"] = run.state.get("seen", 0) + 1
    return run


def same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))
    pd.testing.assert_frame_equal(
        a.metrics.drop(columns="seconds"), b.metrics.drop(columns="seconds"), check_exact=True
    )
    assert a.state == b.state == {"seen": 20}


def test_an_interrupted_run_continues_bit_for_bit(tmp_path):
    """Killed, in the loops of the notebooks: slow/test_nothing_lost.py."""
    whole = train(new_run(tmp_path / "whole"))
    run = new_run(tmp_path / "stopped")
    for until in (1, 7, 13):
        with pytest.raises(KeyboardInterrupt):
            train(run, until)
    same(whole, train(run))  # the same object, as when a cell is run again
    with pytest.raises(KeyboardInterrupt):
        train(new_run(tmp_path / "fresh"), 11)
    same(whole, train(new_run(tmp_path / "fresh")))  # a new kernel


def test_a_finished_run_leaves_its_metrics_and_a_record(tmp_path):
    run = train(new_run(tmp_path, beta=2))
    rates = pd.read_csv(tmp_path / "metrics.csv")["lr"]
    assert len(rates) == 20 and rates[0] == pytest.approx(0.1) and rates[19] == pytest.approx(0.1 / 20)
    assert list((tmp_path / "tensorboard").glob("events*"))
    run.record()
    about = json.loads((tmp_path / "artifact.json").read_text())
    assert about["settings"] == {"beta": 2} and about["steps"] == 20


def test_a_finished_run_is_not_trained_twice_and_shows_how_it_went(tmp_path, capsys):
    whole = train(new_run(tmp_path))
    lines = re.findall(r"step \d+: .*", capsys.readouterr().out)
    same(whole, train(new_run(tmp_path)))
    printed = capsys.readouterr().out
    assert "finished: nothing is trained" in printed and len(lines) == 5
    assert [line.rstrip() for line in printed.splitlines()[1:]] == [line.rstrip() for line in lines]


def test_another_run_is_refused_with_both_sides(tmp_path):
    train(new_run(tmp_path, beta=0.1))
    with pytest.raises(ValueError, match=r"beta.*0\.1.*0\.2"):
        train(new_run(tmp_path, beta=0.2))
    with pytest.raises(ValueError, match=r"beta.*0\.1.*None"):
        train(new_run(tmp_path))
    run = new_run(tmp_path, beta=0.1)
    run.model = torch.nn.Linear(5, 1)
    with pytest.raises(ValueError, match=r"model\.weight.*\[1, 4\].*\[1, 5\]"):
        train(run)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="broken, or no run's.*Delete it"):
        train(new_run(tmp_path))
    assert path.read_bytes() == b"not weights at all"


def test_each_parameter_group_is_clipped_by_itself(tmp_path):
    policy, critic = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    model = torch.nn.ParameterList([policy, critic])
    optimizer = torch.optim.SGD([{"params": [policy]}, {"params": [critic]}], lr=1.0)
    run = Run(tmp_path, model, optimizer, linear_schedule(optimizer, 1), steps=1, seed=0, settings={})
    norm = run.step([100 * policy.sum() + 0.1 * critic.sum()])
    assert norm == pytest.approx((200**2 + 0.2**2) ** 0.5)
    assert policy.norm().item() == pytest.approx(1.0, abs=1e-4), "a large gradient is clipped to 1"
    assert torch.allclose(critic, torch.full((4,), -0.1)), "the policy's gradient shrank the critic's step"


def test_a_gradient_that_is_not_finite_stops_before_it_harms(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 6"):
        for step in run:
            before = [p.clone() for p in run.model.parameters()]
            loss = run.model(torch.randn(8, 4)).square().mean()
            run.step([loss if step < 6 else loss + (run.model.bias * 0).sqrt().sum()])
            run.scheduler.step()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before))
    train(new_run(tmp_path))  # the last good checkpoint is whole


def test_weights_that_are_not_finite_are_never_stored(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(FloatingPointError, match=r"model\.weight is not finite at step 7"):  # when it is to be saved
        for step in run:
            if step == 4:
                run.model.weight.data[0, 0] = float("nan")
    resumed = train(new_run(tmp_path))
    assert len(resumed.metrics) == 20 and all(p.isfinite().all() for p in resumed.model.parameters())
