"""Draws the pictures of the notebooks that no data is in, into rlhf_helpers/drawings: `python tools/drawings.py`."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))

from matplotlib.figure import Figure

from rlhf_helpers.plots import BLUE, DRAWINGS, GREY, new_figure

# in every drawing: what a box is, as the colours of its face and its text
KINDS = {"trained": (BLUE, "white"), "frozen": ("#BFE0F5", "black"), "data": ("white", "black")}
STAGES = ("sft", "reward model", "policy")


def overview(stage: str) -> Figure:
    """The data flow of the whole series, with one stage ("sft", "reward model", "policy") in colour.

    Solid arrows carry tensors (B rows, T tokens, P prompt tokens, V words); dashed arrows copy weights.
    """
    figure, axes = new_figure(width=8, height=6.4)
    axes.set(xlim=(0, 80), ylim=(0, 64))
    axes.axis("off")

    def paint(owner, kind):
        """The colours of a box, its text and its edge, by what it is and whose."""
        if owner == stage:
            return *KINDS[kind], BLUE
        return {"trained": "#CFCFCF", "frozen": "#EDEDED", "data": "white"}[kind], "#5A5A5A", "#8A8A8A"

    def panel(owner, x, y, width, height, title):
        fill, edge = ("#F0F7FC", BLUE) if owner == stage else ("#FAFAFA", "#C8C8C8")
        axes.add_patch(plt.Rectangle((x, y), width, height, fc=fill, ec=edge, lw=1.5 if owner == stage else 0.8))
        axes.text(x + 1, y + height - 1, title, va="top", weight="bold", color=BLUE if owner == stage else "#5A5A5A")

    def box(owner, kind, x, y, text, width=13, height=6):
        fill, ink, edge = paint(owner, kind)
        axes.add_patch(plt.Rectangle((x, y), width, height, fc=fill, ec=edge, lw=1.2))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color=ink)

    def arrow(owner, *points, text="", at=None, copied=False, ha="center"):
        """Along the corners in `points`; its text stands at `at`."""
        colour, style = BLUE if owner == stage else "#8A8A8A", (0, (4, 2)) if copied else "-"
        axes.plot(*zip(*points[:-1]), color=colour, ls=style, lw=1.3)
        head = {"arrowstyle": "-|>", "color": colour, "ls": style, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], points[-2], arrowprops=head)
        if text:
            ink = "black" if owner == stage else "#5A5A5A"
            axes.text(*at, text, ha=ha, va="center", fontsize=8.5, color=ink, linespacing=1.15)

    panel("sft", 1, 35, 37, 28, "1  SFT")
    box("sft", "data", 2.5, 51.5, "film reviews")
    box("sft", "trained", 24, 51.5, "base model\ntrained")
    box("sft", "data", 2.5, 37, "next-token\nloss")
    box("sft", "trained", 27.5, 37, "SFT model", width=9.5)
    arrow("sft", (15.5, 55.8), (24, 55.8), text="ids (B, T)", at=(19.8, 58))
    arrow("sft", (6, 51.5), (6, 43), text="labels\n(B, T)", at=(7, 47.3), ha="left")
    back = (24, 52.8), (20, 52.8), (20, 41.3), (15.5, 41.3)
    arrow("sft", *back, text="logits\n(B, T, V)", at=(19.3, 47.3), ha="right")
    arrow("sft", (15.5, 38.7), (25.8, 38.7), (25.8, 51.5), text="gradient", at=(20.5, 37.2))
    arrow("sft", (32, 51.5), (32, 43), copied=True)

    panel("reward model", 42, 35, 37, 28, "2  Reward model")
    box("reward model", "data", 63.5, 51.5, "reviews with labels\nor preferences", width=14.5)
    box("reward model", "trained", 43.5, 51.5, "SFT trunk + head\ntrained")
    box("reward model", "data", 63.5, 37, "label loss, or\nBradley-Terry", width=14.5)
    box("reward model", "trained", 43.5, 37, "reward\nmodel", width=9.5)
    arrow("reward model", (63.5, 55.8), (56.5, 55.8), text="ids (B, T)", at=(60, 58))
    arrow("reward model", (74, 51.5), (74, 43), text="labels (B,),\nor who wins", at=(73.2, 47.3), ha="right")
    back = (56.5, 52.8), (60, 52.8), (60, 41.3), (63.5, 41.3)
    arrow("reward model", *back, text="scores\n(B,)", at=(59.3, 47.3), ha="right")
    arrow("reward model", (63.5, 38.7), (54.7, 38.7), (54.7, 51.5), text="gradient", at=(59.3, 37.2))
    arrow("reward model", (48, 51.5), (48, 43), copied=True)
    arrow("reward model", (37, 40), (40, 40), (40, 54.5), (43.5, 54.5), copied=True)

    panel("policy", 1, 4, 78, 28, "3  PPO")
    box("policy", "data", 2.5, 15, "prompts", width=9)
    box("policy", "trained", 21, 15, "policy\ntrained", width=10)
    box("policy", "frozen", 43.5, 24, "reward model\nfrozen")
    box("policy", "trained", 43.5, 15, "critic\ntrained")
    box("policy", "frozen", 43.5, 6, "reference\nfrozen")
    box("policy", "data", 67, 14, "reward - β KL,\nadvantages,\nPPO loss", width=11, height=8)
    arrow("policy", (11.5, 18), (21, 18), text="ids\n(B, P)", at=(16, 20.8))
    arrow("policy", (31, 18), (43.5, 18), text="responses\n(B, T)", at=(36.9, 20.8))
    arrow("policy", (41, 18), (41, 27), (43.5, 27))
    arrow("policy", (41, 18), (41, 10.5), (43.5, 10.5))
    arrow("policy", (56.5, 27), (72.5, 27), (72.5, 22), text="scores (B,)", at=(64.3, 28.4))
    arrow("policy", (56.5, 18.6), (67, 18.6), text="values\n(B, T)", at=(61.6, 21.2))
    arrow("policy", (56.5, 10.5), (69.5, 10.5), (69.5, 14), text="logprobs (B, T)", at=(62.6, 9.2))
    arrow("policy", (75, 14), (75, 5), (23, 5), (23, 15), text="gradient", at=(18.5, 9.5))
    arrow("policy", (67, 15.8), (56.5, 15.8), text="gradient", at=(61.7, 14.4))
    arrow("policy", (29, 37), (29, 21), copied=True)
    arrow("policy", (32.4, 37), (32.4, 7.8), (43.5, 7.8), copied=True)
    arrow("policy", (48, 37), (48, 30), copied=True)
    arrow("policy", (50, 24), (50, 21), copied=True)
    axes.text(40, 1.6, "solid arrows carry tensors, dashed arrows copy weights;  "
              "B rows, T tokens, P prompt tokens, V tokens in the vocabulary",
              ha="center", va="center", fontsize=8.5, color="#444444")  # fmt: skip
    return figure


def ppo_loop() -> Figure:
    """The loop of PPO on text: its stages, numbered as in the code, the tensors between them, and who is frozen."""
    figure, axes = new_figure(width=8, height=4.3)
    axes.set(xlim=(0, 16.3), ylim=(0, 8.6))
    axes.axis("off")
    boxes = [  # x, y, width, text, kind
        (0.2, 6.6, 3.2, "policy π\n(trained)", "trained"),
        (0.2, 3.9, 3.2, "1  sample\nresponses (B, T)", "data"),
        (4.4, 3.9, 4.6, "2  score the batch", "data"),
        (9.8, 3.9, 2.7, "3  reward of\neach token (B, T)", "data"),
        (13.0, 3.9, 2.8, "4  advantages,\nreturns (B, T)", "data"),
        (4.2, 0.6, 2.4, "reference π_ref\n(frozen)", "frozen"),
        (7.0, 0.6, 2.4, "reward model\n(frozen)", "frozen"),
        (9.8, 0.6, 2.4, "critic V\n(trained)", "trained"),
        (8.0, 6.6, 7.8, "5  PPO loss   6  backward, clip, step   7  log\nepochs of minibatches", "data"),
    ]
    for x, y, width, text, kind in boxes:
        fill, ink = KINDS[kind]
        axes.add_patch(plt.Rectangle((x, y), width, 1.5, fc=fill, ec=BLUE, lw=1.2))
        axes.text(x + width / 2, y + 0.75, text, ha="center", va="center", fontsize=8.5, color=ink)

    def arrow(start, end, text="", dx=0.0, dy=0.0):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1})
        axes.text((start[0] + end[0]) / 2 + dx, (start[1] + end[1]) / 2 + dy, text, fontsize=7.5, ha="center")

    arrow((1.8, 6.6), (1.8, 5.4))
    arrow((1.8, 2.1), (1.8, 3.9), "prompts (B, P)", 0, -1.2)
    arrow((3.4, 6.9), (5.2, 5.4), "ln π_old (B, T)", 1.5, 0.1)
    arrow((3.4, 4.65), (4.4, 4.65))
    arrow((9.0, 4.65), (9.8, 4.65))
    arrow((12.5, 4.65), (13.0, 4.65))
    arrow((5.4, 2.1), (5.4, 3.9), "ln π_ref (B, T)", -1.15, -0.1)
    arrow((7.6, 2.1), (7.2, 3.9), "score (B,)", -0.75, -0.1)
    arrow((10.2, 2.1), (8.6, 3.9), "V (B, T)", 0.85, -0.1)
    arrow((14.4, 5.4), (14.4, 6.6))
    arrow((8.0, 7.35), (3.4, 7.35), "new weights, then again from 1", 0, 0.15)
    axes.plot([15.8, 16.1, 16.1], [7.35, 7.35, 1.35], color="black", lw=1)
    arrow((16.1, 1.35), (12.2, 1.35), "new weights", 0, 0.15)
    return figure


def trunk_and_head() -> Figure:
    """The reward model as a drawing: tokens, trunk, hidden states, and the head on the last of them."""
    figure, axes = new_figure(height=3.4)
    tokens = ("the", "film", "is", "good", ".", "<end>")
    n = len(tokens)

    def box(x, y, width, height, text, kind="data", edge=GREY):
        fill, ink = KINDS[kind]
        axes.add_patch(plt.Rectangle((x, y), width, height, fc=fill, ec=edge, lw=0.8 if edge == GREY else 1.8))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=ink)

    def arrow(x, low, high):
        axes.annotate("", (x, high), (x, low), arrowprops={"arrowstyle": "->"})

    box(0, 1.1, n, 0.9, "trunk: the language model without its output layer (trained)", "trained")
    for i, token in enumerate(tokens):
        edge = BLUE if i == n - 1 else GREY  # the token that scores, and its state
        box(i + 0.08, 0, 0.84, 0.6, token, edge=edge)
        box(i + 0.08, 2.5, 0.84, 0.6, f"$h_{i + 1}$", edge=edge)
        arrow(i + 0.5, 0.6, 1.1)
        arrow(i + 0.5, 2.0, 2.5)
    box(n - 1.6, 3.6, 1.6, 0.6, f"head: $w \\cdot h_{n}$", "trained")
    arrow(n - 0.5, 3.1, 3.6)
    axes.annotate("", (n + 0.5, 3.9), (n, 3.9), arrowprops={"arrowstyle": "->"})
    axes.text(n + 0.55, 3.9, "score $r$", va="center")
    shapes = (0.3, "input_ids (B, T)"), (2.8, "hidden (B, T, d)"), (3.9, "last (B, d) → scores (B,)")
    for y, text in shapes[:2]:
        axes.text(n + 0.15, y, text, va="center", color=BLUE)
    axes.text(n - 1.75, 3.9, shapes[2][1], va="center", ha="right", color=BLUE)
    axes.set(xlim=(-0.1, n + 1.7), ylim=(-0.1, 4.3))
    axes.axis("off")
    return figure


def processes() -> Figure:
    """Two processes three times: what each holds, and what goes over the wire."""
    figure, axes = new_figure(width=8, height=4.7)
    axes.set(xlim=(0, 80), ylim=(0, 47))
    axes.axis("off")

    def process(x, y, name, bars):
        """One process: a row for each thing that it holds, cut into halves that are held (filled) or not."""
        axes.add_patch(plt.Rectangle((x, y), 25, 15, fc="#F0F7FC", ec=BLUE, lw=1.2))
        axes.text(x + 1, y + 13.6, name, va="center", weight="bold", fontsize=8.5, color=BLUE)
        for i, (what, *halves) in enumerate(bars):
            axes.text(x + 10.6, y + 10.1 - 4 * i, what, ha="right", va="center", fontsize=8.5)
            for j, kind in enumerate(halves):
                fill, ink = KINDS[kind or "data"]
                corner = (x + 11.4 + 6.4 * j, y + 8.5 - 4 * i)
                axes.add_patch(plt.Rectangle(corner, 6.2, 3.2, fc=fill, ec=GREY, lw=0.8, ls="-" if kind else ":"))
                label = f"{j + 1}" if kind else ""
                axes.text(corner[0] + 3.1, corner[1] + 1.6, label, ha="center", va="center", fontsize=8, color=ink)

    def wire(x, text):
        arrow = {"arrowstyle": "<|-|>", "color": "black", "lw": 1.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, 17.2), (x, 25.8), arrowprops=arrow)
        axes.text(x + 1, 21.5, text, va="center", fontsize=8.5, linespacing=1.25)

    held, ways = "trained", ["weights", "gradient", "Adam"]
    for y, name, half in ((26, "process 0", (held, None)), (2, "process 1", (None, held))):
        process(0.5, y, f"{name}: its share of the rows", [(way, held, held) for way in ways])
        process(27.5, y, f"{name}: its share of the rows", [(way, *half) for way in ways])
        rows = [("policy", held, held), ("its rows", *("frozen" if kind else None for kind in half))]
        process(54.5, y, f"{name}: its share of prompts", [*rows, ("all rows", "frozen", "frozen")])
    for x, title in ((0.5, "Data parallel"), (27.5, "Sharded"), (54.5, "PPO, before it learns")):
        axes.text(x + 12.5, 44, title, ha="center", va="center", weight="bold")
    wire(3, "all-reduce, once a step:\nthe mean of the gradients")
    wire(29, "all-gather, twice a layer: weights\nreduce-scatter, once: gradient")
    wire(57, "gather, once an update:\nthe rows with their scores")
    return figure


def main() -> None:
    DRAWINGS.mkdir(exist_ok=True)
    figures = {f"overview-{stage.replace(' ', '-')}": overview(stage) for stage in STAGES}
    figures |= {"ppo-loop": ppo_loop(), "trunk-and-head": trunk_and_head(), "processes": processes()}
    for name, figure in figures.items():
        figure.savefig(DRAWINGS / f"{name}.png", bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    main()
