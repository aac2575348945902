"""Every figure of the series, one function each. tools/drawings.py makes the drawings that need no data.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in style too.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Image
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DRAWINGS = Path(__file__).with_name("drawings")
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
SKY, PINK, BLACK = "#56B4E9", "#CC79A7", "#000000"
LOOKS = [(BLUE, "-"), (RED, "--"), (GREEN, "-."), (ORANGE, ":")]  # of the lines in one figure, one after the other
CLASSES = ((ORANGE, "negative"), (BLUE, "positive"))

plt.rcParams.update(
    {
        "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "axes.axisbelow": True, "figure.dpi": 100, "font.size": 10, "legend.frameon": False,
    }
)  # fmt: skip


def new_figure(rows: int = 1, columns: int = 1, width: float = 7.5, height: float = 3.0):
    """A figure and its axes, in this series' size; not shown until a cell returns it."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained")
    plt.close(figure)  # or Jupyter shows it twice
    return figure, axes


def drawing(name: str) -> Image:
    """One of the drawings that tools/drawings.py makes: "overview-sft", "trunk-and-head", "ppo-loop", "processes"..."""
    return Image(DRAWINGS / f"{name}.png")


def token_masks(rollouts, tokenizer, rows: int = 4) -> Figure:
    """Which tokens are prompt, response, end-of-text and padding, over the tokens themselves."""
    ids, kind = rollouts.input_ids[:rows].cpu(), rollouts.attention_mask[:rows].cpu()
    width = rollouts.prompt_ids.shape[1]
    used = kind.any(0)  # columns that pad all of these rows say nothing
    kind[:, width:] *= 2  # 0 padding, 1 prompt, 2 response, 3 end-of-text
    kind[(ids == tokenizer.eos_token_id) & (kind == 2)] = 3
    ids, kind, prompt_width = ids[:, used], kind[:, used], int(used[:width].sum())
    figure, axes = new_figure(width=max(6.0, 0.58 * ids.shape[1]), height=0.45 * len(ids) + 0.9)
    colours = ["#F2F2F2", "#9CC9E6", "#F6D186", "#8FD3BD"]
    for (row, column), k in np.ndenumerate(kind.numpy()):
        axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, color=colours[k], ec="white"))
        text = "" if k == 0 else "end" if k == 3 else tokenizer.decode(ids[row, column]).strip()
        axes.text(column, row, text, ha="center", va="center", fontsize=8 if len(text) < 9 else 6.5)
    axes.axvline(prompt_width - 0.5, color="black", lw=1.2)
    axes.set(xlim=(-0.5, ids.shape[1] - 0.5), ylim=(len(ids) - 0.5, -0.5), yticks=range(len(ids)))
    axes.set(xlabel="column", ylabel="row")
    axes.set_title("prompt (blue), response (yellow), end-of-text (green), padding (grey)", fontsize=10)
    axes.grid(False)
    return figure


# Notebook 3


def token_bars(tokens: Sequence[str], **series: Sequence[float]) -> Figure:
    """One row of bars a series, one bar a token: per-token reward, value, advantage..."""
    figure, axes = new_figure(len(series), 1, height=1.25 * len(series) + 0.6)
    axes = np.atleast_1d(axes)
    for axis, (name, values), colour in zip(axes, series.items(), cycle([BLUE, ORANGE, GREEN, RED])):
        axis.bar(range(len(tokens)), values, color=colour, width=0.7)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_ylabel(name.replace("_", " "))
        axis.set_xticks(range(len(tokens)), tokens if axis is axes[-1] else [], rotation=45, ha="right")
    return figure


def bars(names: Sequence[str], ylabel: str, **series: Sequence[float]) -> Figure:
    """Bars side by side: for each name one bar of each series, a distribution before and after, say."""
    figure, axes = new_figure(width=6.5, height=2.6)
    width = 0.8 / len(series)
    for i, ((label, values), colour) in enumerate(zip(series.items(), cycle([GREY, BLUE, ORANGE, GREEN]))):
        positions = np.arange(len(names)) + (i - (len(series) - 1) / 2) * width
        axes.bar(positions, values, width=width, color=colour, label=label.replace("_", " "))
    tilted = {"rotation": 30, "ha": "right"} if len(names) > 8 else {}
    axes.set_xticks(range(len(names)), names, **tilted)
    axes.set(ylabel=ylabel)
    figure.legend(loc="outside upper right", ncols=len(series))
    return figure


def lines(curves: dict[str, Sequence[float]], xlabel: str, ylabel: str, *, log: bool = False) -> Figure:
    """One line a curve against its index; on a logarithmic axis if `log`."""
    figure, axes = new_figure()
    for (name, y), (colour, style) in zip(curves.items(), cycle(LOOKS)):
        axes.plot(y, color=colour, ls=style, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(curves))
    return figure


def clipped_objective(clip: float = 0.2) -> Figure:
    """PPO's objective for one token against the ratio, for a positive and a negative advantage."""
    figure, axes = new_figure(1, 2)
    ratio = torch.linspace(0.4, 1.6, 200)
    for axis, advantage in zip(axes, (1.0, -1.0)):
        unclipped, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
        smaller = torch.min(unclipped, clipped)
        axis.plot(ratio, unclipped, color=GREY, ls="--", label="ratio times A")
        axis.plot(ratio, smaller, color=BLUE, lw=2.2, label="the smaller of it and its clipped version")
        axis.axvspan(1 - clip, 1 + clip, color=GREEN, alpha=0.1)
        axis.axvline(1, color="black", lw=0.8)
        axis.set(xlabel="ratio", ylabel="objective", title=f"advantage A = {advantage:+.0f}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


DASHBOARD = {
    "reward model's score, standard deviations": ("score",),
    "share judged positive": ("judge",),
    "KL to the reference, nats per response": ("kl_k1", "kl_k3"),
    "entropy, nats per token": ("entropy",),
    "the update: approximate KL, clip fraction": ("approx_kl", "clip_fraction"),
    "explained variance of the values": ("explained_variance",),
    "response length, tokens": ("length",),
    "share that reached end-of-text": ("eos_rate",),
    "norm of the gradient": ("grad_norm",),
}


def dashboard(metrics: pd.DataFrame) -> Figure:
    """Nine panels to watch while PPO trains, from a run's metrics so far: pale each update, full the mean of five."""
    figure, axes = new_figure(3, 3, width=9.5, height=7)
    for axis, (title, names) in zip(axes.flat, DASHBOARD.items()):
        for name, colour, style in zip(names, (BLUE, ORANGE), ("-", "--")):
            if name in metrics:
                smooth = metrics[name].rolling(5, center=True, min_periods=1).mean()
                axis.plot(metrics["step"], metrics[name], color=colour, alpha=0.35, lw=1)
                axis.plot(metrics["step"], smooth, color=colour, ls=style, label=name.replace("_", " "))
        axis.set_title(title, fontsize=10)
        if names == ("explained_variance",):
            axis.axhline(0, color="black", lw=0.8)
            axis.set_ylim(max(-1.0, axis.get_ylim()[0]), 1)
        if len(names) > 1:
            axis.legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("update")
    return figure


def frontier(curves: dict[str, pd.DataFrame], ylabel: str) -> Figure:
    """Reward for KL, a curve per method: `kl`, `reward` and, if known, `low`, `high`; unjoined if there is `seed`."""
    figure, axes = new_figure(height=3.6)
    looks = cycle(zip((BLUE, ORANGE, GREEN, RED), "os^D", ("-", "--", "-.", ":")))
    for (name, frame), (colour, marker, style) in zip(curves.items(), looks):
        ls = "" if "seed" in frame else style
        axes.plot("kl", "reward", data=frame, color=colour, marker=marker, ls=ls, ms=5, label=name)
        if "low" in frame and len(frame) > 1:
            axes.fill_between(frame["kl"], frame["low"], frame["high"], color=colour, alpha=0.15)
        elif "low" in frame:
            axes.vlines(frame["kl"], frame["low"], frame["high"], color=colour)
    axes.set(xlabel="KL to the SFT policy, nats per response", ylabel=ylabel)
    figure.legend(loc="outside upper center", ncols=len(curves))
    return figure


def against_kl(curves: dict[str, pd.DataFrame], panels: dict[str, str]) -> Figure:
    """What KL bought with each method, up to eight.

    Each frame has a row a run: `strength`, in the order in which points are joined, `kl` and the columns of `panels`,
    column -> label of its axis. A point is the mean of a strength's runs, its bars are one standard error.
    """
    figure, axes = new_figure(1, len(panels), width=8, height=4.4)
    looks = [*zip((BLUE, BLACK, GREEN, RED, ORANGE, PINK, GREY, SKY), "osv^DPX*", "- -- -. - -- - : :".split())]
    for axis, (column, label) in zip(axes, panels.items()):
        for (name, runs), (colour, marker, style) in zip(curves.items(), cycle(looks)):
            at = runs.groupby("strength", sort=False)[["kl", column]]
            look = {"color": colour, "marker": marker, "ls": style, "ms": 5, "lw": 1.4, "elinewidth": 0.8}
            axis.errorbar(*at.mean().T.values, *at.sem().T.values[::-1], **look, label=name)
        axis.set(xlabel="KL to the SFT policy, nats per response", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def compare_runs(runs: dict[str, pd.DataFrame], panels: dict[str, str]) -> Figure:
    """Runs against each other, update by update and unsmoothed; `panels` is column -> title."""
    figure, axes = new_figure(1, len(panels), width=3.4 * len(panels), height=3)
    for axis, (column, title) in zip(np.atleast_1d(axes), panels.items()):
        for (name, metrics), (colour, style) in zip(runs.items(), cycle(LOOKS)):
            axis.plot(metrics["step"], metrics[column], color=colour, ls=style, lw=1.2, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("update")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    return figure


def fitted(x: torch.Tensor, y: torch.Tensor, slope: float, expected: float, xlabel: str, ylabel: str) -> Figure:
    """Points with the line that was fitted to them, and the line that was expected, both through 0."""
    figure, axes = new_figure(width=5.5, height=3.6)
    axes.scatter(x, y, s=9, color=GREY, alpha=0.5)
    ends = np.array([x.min().item(), x.max().item()])
    axes.plot(ends, slope * ends, color=BLUE, label=f"fitted, slope {slope:.2f}")
    axes.plot(ends, expected * ends, color=RED, ls="--", label=f"at the optimum, slope {expected:.2f}")
    margin = 1.2 * y.abs().max().item()
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-margin, margin))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


# Notebook 1


def batch_picture(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, tokenizer) -> Figure:
    """Ids, attention mask, labels and what is to be predicted in one batch: words, ends and padding in each cell."""
    rows, columns = input_ids.shape
    figure, axes = new_figure(4, 1, width=8, height=4 * (0.27 * rows + 0.5))
    words = {i: repr(tokenizer.decode(i).strip())[1:-1] for i in input_ids.unique().tolist()}
    words |= {tokenizer.eos_token_id: "end", -100: "-100"}
    ahead = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    panels = {  # what is written into the cells, in which words, and the labels that colour them
        "input_ids, decoded": (input_ids, words, labels),
        "attention_mask": (attention_mask, {0: "0", 1: "1"}, labels),
        "labels": (labels, words, labels),
        "what the output at each position must predict: the label one to the right": (ahead, words, ahead),
    }
    for axis, (title, (shown, names, coloured_by)) in zip(axes, panels.items()):
        for (row, column), label in np.ndenumerate(coloured_by.numpy()):
            name = names[int(shown[row, column])]
            colour, ink = "#9CC9E6", "black"
            if label in (-100, tokenizer.eos_token_id):
                colour, ink = ("white", GREY) if label == -100 else (BLUE, "white")
            axis.add_patch(plt.Rectangle((column, row), 1, 1, fc=colour, ec="#BBBBBB", lw=0.6))
            axis.text(column + 0.5, row + 0.5, name, ha="center", va="center", fontsize=8, color=ink)
        axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(False)
        axis.spines[:].set_visible(False)
    axes[-1].set_xticks(np.arange(columns) + 0.5, [f"t = {t}" for t in range(columns)], fontsize=8)
    return figure


def loss_curves(metrics: pd.DataFrame, train: str, validation: str) -> Figure:
    """Training loss (of each batch, and smoothed) and validation loss, where they were measured."""
    figure, axes = new_figure()
    trained, measured = metrics.dropna(subset=[train]), metrics.dropna(subset=[validation])
    axes.plot(trained["step"], trained[train], color=GREY, lw=0.6, alpha=0.5, label="training, each batch")
    window = max(1, len(trained) // 30)
    smooth = trained[train].rolling(window, min_periods=1).mean()
    axes.plot(trained["step"], smooth, color=BLUE, label=f"training, mean of {window} batches")
    axes.plot(measured["step"], measured[validation], color=ORANGE, ls="--", marker="o", ms=4, label="validation")
    axes.set(xlabel="step", ylabel="loss, nats")
    axes.legend()
    return figure


# Notebook 2


def _legend_above(axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def losses(difference: torch.Tensor, **curves: torch.Tensor) -> Figure:
    """Loss against the difference of two scores; one curve each, its lowest point marked if it lies inside."""
    figure, axes = new_figure()
    for (name, loss), (colour, style) in zip(curves.items(), cycle(LOOKS)):
        axes.plot(difference, loss, color=colour, ls=style, label=name.replace("_", " "))
        lowest = loss.argmin()
        if 0 < lowest < len(loss) - 1:
            at = difference[lowest], loss[lowest]
            axes.plot(*at, "o", color=colour)
            axes.annotate(f"lowest at {at[0]:.2f}", at, (0, 8), textcoords="offset points", ha="center")
    axes.set(xlabel="score of the better minus score of the worse text", ylabel="expected loss, nats", ylim=(0, None))
    _legend_above(axes)
    return figure


def scores_by_class(scores: torch.Tensor, labels: torch.Tensor) -> Figure:
    """Histograms of the scores of each class."""
    figure, axes = new_figure()
    bins = np.linspace(scores.min().item(), scores.max().item(), 40)
    for label, ((colour, name), hatch) in enumerate(zip(CLASSES, ("//", ""))):
        axes.hist(scores[labels == label], bins=bins, color=colour, alpha=0.65, hatch=hatch, label=name)
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="score (logit)", ylabel="sentences")
    _legend_above(axes)
    return figure


def reliability(probability: torch.Tensor, labels: torch.Tensor, bins: int = 10) -> Figure:
    """Share of positives against predicted probability; the larger a point, the more sentences."""
    figure, axes = new_figure(width=4.2, height=3.6)
    index = (probability * bins).long().clamp(max=bins - 1)
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", label="calibrated")
    for b in index.unique():
        inside = index == b
        size = 20 + 300 * inside.float().mean().item()
        axes.scatter(probability[inside].mean(), labels[inside].mean(), s=size, color=BLUE, alpha=0.8)
    axes.set(xlabel="predicted probability of positive", ylabel="share that is positive")
    _legend_above(axes)
    return figure


def reward_against_length(lengths: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> Figure:
    """Score against length in tokens, one marker a class."""
    figure, axes = new_figure()
    for label, ((colour, name), marker) in enumerate(zip(CLASSES, "xo")):
        kind = labels == label
        axes.scatter(lengths[kind], scores[kind], s=14, color=colour, marker=marker, alpha=0.5, label=name)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlabel="tokens", ylabel="score (logit)")
    _legend_above(axes)
    return figure


def reward_by_token(tokens: Sequence[str], scores: torch.Tensor) -> Figure:
    """The score of each prefix of one sentence."""
    figure, axes = new_figure()
    axes.bar(range(len(tokens)), scores, color=[BLUE if s > 0 else ORANGE for s in scores])
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(tokens)), [token.strip() for token in tokens], rotation=30, ha="right")
    axes.set(ylabel="score if it ended here")
    return figure
