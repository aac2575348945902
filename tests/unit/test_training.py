"""training.py and evaluation.py: resume bit for bit, stop on what isn't finite, count honestly."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_helpers import data, evaluation, models
from rlhf_helpers.presets import load_preset
from rlhf_helpers.training import Run, autocast, linear_schedule

ROOT = Path(__file__).parents[2]


def new_run(folder, lr=0.1, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = linear_schedule(optimizer, 20)
    return Run(folder, model, optimizer, scheduler, steps=20, seed=3, settings=settings, checkpoints=5)


def train(run, until=None, pause=0.0):
    for step in run:
        if step == until:
            raise KeyboardInterrupt
        time.sleep(pause)
        loss = run.model(torch.randn(8, 4)).square().mean()  # random: the seed of a step must come back
        run.step(loss)
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
    whole = train(new_run(tmp_path / "whole"))
    run = new_run(tmp_path / "stopped")
    for until in (1, 7, 13):
        with pytest.raises(KeyboardInterrupt):
            train(run, until)
    same(whole, train(run))  # the same object, as when a cell is run again
    with pytest.raises(KeyboardInterrupt):
        train(new_run(tmp_path / "fresh"), 11)
    same(whole, train(new_run(tmp_path / "fresh")))  # a new kernel


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    whole = train(new_run(tmp_path / "whole"))
    code = (
        "import sys; sys.path.insert(0, 'tests/unit'); from test_training import *;"
        f"train(new_run(r'{tmp_path / 'killed'}'), pause=0.2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.time() + 60
    metrics = tmp_path / "killed" / "metrics.csv"
    while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 8):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    same(whole, train(new_run(tmp_path / "killed")))


def test_a_finished_run_is_not_trained_twice(tmp_path, capsys):
    whole = train(new_run(tmp_path))
    capsys.readouterr()
    same(whole, train(new_run(tmp_path)))
    assert "finished" in capsys.readouterr().out


def test_other_settings_are_refused_with_both_sides(tmp_path):
    train(new_run(tmp_path, beta=0.1))
    with pytest.raises(ValueError, match=r"beta.*0\.1.*0\.2"):
        train(new_run(tmp_path, beta=0.2))


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_it_harms(tmp_path, spoil):
    run = new_run(tmp_path)
    with pytest.raises(FloatingPointError, match=f"the {spoil} is .* at step 6"):
        for step in run:
            before = [p.clone() for p in run.model.parameters()]
            loss = run.model(torch.randn(8, 4)).square().mean()
            if step == 6:
                loss = loss * float("nan") if spoil == "loss" else loss + (run.model.bias * 0).sqrt().sum()
            run.step(loss)
            run.scheduler.step()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before))
    train(new_run(tmp_path))  # the last good checkpoint is whole


def test_weights_that_are_not_finite_are_never_stored(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(FloatingPointError, match=r"model\.weight is nan at step 7"):  # when it is to be saved
        for step in run:
            run.step(run.model(torch.randn(8, 4)).square().mean())
            run.scheduler.step()
            if step == 4:
                run.model.weight.data[0, 0] = float("nan")
                run.step = lambda loss: None
    resumed = new_run(tmp_path)
    train(resumed)
    assert len(resumed.metrics) == 20 and all(p.isfinite().all() for p in resumed.model.parameters())


def test_schedule_metrics_and_tensorboard(tmp_path):
    rates, run = [], new_run(tmp_path)
    for step in run:
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.log(rate=rates[-1])
        run.scheduler.step()
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.1 / 20)
    assert pd.read_csv(tmp_path / "metrics.csv")["rate"].tolist() == pytest.approx(rates)
    assert list((tmp_path / "tensorboard").glob("events*"))


def learning_curve(folder, stage, precision, order):
    """Losses of one pass over some of tiny's reviews, from the base model."""
    preset = replace(load_preset("tiny"), precision=precision)
    n, lr = (1920, preset.sft_lr) if stage == "sft" else (3840, preset.rm_lr)
    tokenizer, reviews = data.load_tokenizer(preset.model), load_dataset(preset.dataset, split="train")
    rows = data.encode(reviews["sentence"][:n], tokenizer, preset.max_tokens)
    labels = torch.tensor(reviews["label"][:n], dtype=torch.float32)
    lm = models.load_lm(preset.model)
    model = models.RewardModel(lm) if stage == "rm" else lm
    batches = data.length_bucketed([len(row) for row in rows], 32, seed=order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler, name = linear_schedule(optimizer, len(batches)), f"{stage} {precision} {order}"
    run = Run(folder / name, model, optimizer, scheduler, steps=len(batches), seed=0, settings={})
    for step in run:
        ids, mask = data.pad([rows[i] for i in batches[step]], tokenizer.pad_token_id)
        with autocast(preset):
            if stage == "rm":
                loss = binary_cross_entropy_with_logits(model(ids, mask), labels[batches[step]])
            else:
                loss = model(input_ids=ids, attention_mask=mask, labels=data.lm_labels(ids, mask)).loss
        run.step(loss)
        run.scheduler.step()
        run.log(loss=loss)
    return run.metrics["loss"]


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_bf16_learns_as_fp32_does(tmp_path, stage):
    """Equal data: the curves differ by less than half of what another order of the data does, and end as low."""
    fp32, bf16, other = (learning_curve(tmp_path, stage, *how) for how in (("fp32", 0), ("bf16", 0), ("fp32", 1)))
    ends = [curve.tail(20).mean() for curve in (fp32, bf16, other)]
    assert (fp32 - bf16).abs().mean() < 0.5 * (fp32 - other).abs().mean()
    assert abs(ends[0] - ends[1]) < max(0.02, abs(ends[0] - ends[2])) and ends[0] < 0.8 * fp32[0]


def test_mean_nll_is_the_loss_of_transformers(lm):
    rows = [[1, 2, 3, 0], [4, 5, 0], [1, 6, 7, 8, 9, 0]]
    total = sum(lm(input_ids=(x := torch.tensor([r])), labels=x).loss.item() * (len(r) - 1) for r in rows)
    assert evaluation.mean_nll(lm, rows, 0, batch=2) == pytest.approx(total / sum(len(r) - 1 for r in rows), abs=1e-4)


def test_distinct_n_and_win_rate():
    assert evaluation.distinct_n(["a b a b"]) == pytest.approx(2 / 3)
    assert evaluation.distinct_n(["a b", "a b"]) == 0.5
    assert evaluation.win_rate(pd.Series([1, 2, 3.0]), pd.Series([1, 1, 5.0])) == 0.5


def test_intervals_cover_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(40):
        frame = pd.DataFrame({"x": rng.normal(size=60)})
        low, high = evaluation.bootstrap(frame, lambda f: f["x"].mean(), seed)
        hits += low < 0 < high
    assert 33 <= hits <= 40
    words = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(200)]
    low, high = evaluation.jackknife(words, evaluation.distinct_n)
    assert low < evaluation.distinct_n(words) < high


def test_best_of_n_kl_against_simulation():
    """For a continuous score the best of n has density n F^(n-1), so KL = E[ln(n F^(n-1))]."""
    best = np.random.default_rng(0).random((200_000, 8)).max(1)
    assert evaluation.best_of_n_kl(8) == pytest.approx(np.log(8 * best**7).mean(), abs=0.01)
    assert evaluation.best_of_n_kl(1) == 0


def test_judges():
    assert evaluation.vader_judge(["a wonderful film", "a terrible film", "a film"]).tolist() == [1, 0, 0]
    assert evaluation.grammar_judge(["the plot is clever .", "the plot is not clever .", "clever plot"]).tolist() == [
        1,
        0,
        0,
    ]


def test_evaluate_compares_like_with_like(lm, tokenizer, prompts):
    torch.manual_seed(1)
    other = type(lm)(lm.config).eval()
    reward = lambda r: r.response_mask.sum(1).float()  # noqa: E731

    def frame(policy):
        return evaluation.evaluate(policy, lm, other, reward, evaluation.vader_judge, prompts, tokenizer, 6, seed=1)

    one = frame(lm)
    assert one["kl"].abs().max() < 1e-4 and (one["reward"] == one["length"]).all()
    pd.testing.assert_frame_equal(one, frame(lm))
    assert frame(other)["kl"].mean() > 0
    summary = evaluation.summarise(one)
    wanted = {"reward", "judge_positive", "kl", "perplexity", "distinct_2", "eos_rate", "length"}
    assert wanted == set(summary["intervals"]) == set(summary) - {"intervals"}
