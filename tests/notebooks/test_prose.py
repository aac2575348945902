"""What notebooks and pages say and point to: links, anchors, papers, spelling, the repository's address."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
import pytest
from test_project import ADDRESS

from rlhf_helpers.__main__ import execute

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted([*ROOT.glob("*.ipynb"), *ROOT.glob("beyond/*.ipynb")])
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^( *```).*?^\1", re.M | re.S)

PAPERS = {  # cite a further one by its abstract's page, and enter it here
    "1506.02438": "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    "1907.11692": "RoBERTa: A Robustly Optimized BERT Pretraining Approach",
    "1706.04599": "On Calibration of Modern Neural Networks",
    "1604.06174": "Training Deep Nets with Sublinear Memory Cost",
    "1707.06347": "Proximal Policy Optimization Algorithms",
    "1909.08593": "Fine-Tuning Language Models from Human Preferences",
    "1910.02054": "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
    "1912.09729": "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning",
    "2006.05990": "What Matters In On-Policy Reinforcement Learning? A Large-Scale Empirical Study",
    "2009.01325": "Learning to summarize from human feedback",
    "2106.09685": "LoRA: Low-Rank Adaptation of Large Language Models",
    "2203.02155": "Training language models to follow instructions with human feedback",
    "2208.07339": "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
    "2204.05862": "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback",
    "2205.05198": "Reducing Activation Recomputation in Large Transformer Models",
    "2210.10760": "Scaling Laws for Reward Model Overoptimization",
    "2304.11277": "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
    "2304.06767": "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
    "2305.14314": "QLoRA: Efficient Finetuning of Quantized LLMs",
    "2305.18290": "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "2306.05685": "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena",
    "2307.09288": "Llama 2: Open Foundation and Fine-Tuned Chat Models",
    "2310.12036": "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    "2310.03716": "A Long Way to Go: Investigating Length Correlations in RLHF",
    "2401.01879": "Theoretical guarantees on the best-of-n alignment policy",
    "2402.03300": "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    "2402.04792": "Direct Language Model Alignment from Online AI Feedback",
    "2402.14740": "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    "2403.17031": "The N+ Implementation Details of RLHF with PPO: A Case Study on TL;DR Summarization",
    "2403.19159": "Disentangling Length from Quality in Direct Preference Optimization",
    "2404.10719": "Is DPO Superior to PPO for LLM Alignment? A Comprehensive Study",
    "2404.16767": "REBEL: Reinforcement Learning via Regressing Relative Rewards",
    "2405.14734": "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    "2405.11143": "OpenRLHF: An Easy-to-use, Scalable and High-performance RLHF Framework",
    "2407.21783": "The Llama 3 Herd of Models",
    "2410.08847": "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization",
    "2411.15124": "Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
    "2501.12948": "DeepSeek-R1: Incentivizing Reasoning Capability in LLMs via Reinforcement Learning",
    "2503.14476": "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    "2503.20783": "Understanding R1-Zero-Like Training: A Critical Perspective",
    "2409.19256": "HybridFlow: A Flexible and Efficient RLHF Framework",
}


def prose(path: Path) -> str:
    """A page, or a notebook's markdown."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


def links(text: str) -> list[str]:
    return re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", re.sub(r"`[^`\n]+`", "", FENCE.sub("", text)))


def anchors(path: Path) -> set[str]:
    """What can follow the # of a link: Jupyter keeps a heading's letters and marks, GitHub does not."""
    headings = [re.sub(r"[`*$]", "", h) for h in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", prose(path)), re.M)]
    if path.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    """Links to files that aren't there, or to headings that they don't have."""
    wrong = []
    for link in links(prose(path)):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda p: p.name)
def test_links_resolve(path):
    assert not broken(path)


def test_every_paper_is_known():
    for path in [*NOTEBOOKS, *PAGES, *ROOT.glob("rlhf_helpers/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        text = prose(path) if path.suffix in (".ipynb", ".md") else path.read_text(encoding="utf-8")
        cited = set(re.findall(r"arxiv[^0-9\n]{1,12}([\d.v]+\d)", text, re.I))
        assert cited <= PAPERS.keys(), f"{path.name}: {cited - PAPERS.keys()} (a wrong number, or one to enter above)"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_spelled(path):
    """Its sources: `make lint` has the rest, and in outputs there are words cut into tokens."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    command = [sys.executable, "-m", "codespell_lib", "--toml", ROOT / "pyproject.toml", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_has_its_row_and_badges_that_open_it(path):
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    name = quote(path.relative_to(ROOT).as_posix())
    row = next((row for row in rows if f"]({name})" in row), None)
    assert row, f"no row of the README's tables begins with [its title]({name})"
    opened = f"{ADDRESS}/blob/main/{name}"
    colab = opened.replace("https://github.com", "https://colab.research.google.com/github")
    for text in (row, prose(path).partition("\n#")[0]):
        assert f"({colab})" in text and f"(https://kaggle.com/kernels/welcome?src={opened})" in text


def test_a_new_notebook_passes(tmp_path, monkeypatch):
    """What tools/new_notebook.py writes runs as it is; README and links are left to its author."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import new_notebook

    (tmp_path / "beyond").mkdir()
    shutil.copy(NOTEBOOKS[-1], tmp_path / "beyond")
    path = new_notebook.write("9-Length", tmp_path)
    assert prose(path).count(f"{ADDRESS.removeprefix('https://')}/blob/main/beyond/9-Length.ipynb") == 1
    with pytest.raises(ValueError, match="is there already"):
        new_notebook.write("9-Length", tmp_path)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    execute(path, tmp_path / "out.ipynb")
    (tmp_path / "README.md").touch()
    assert not broken(path)
    subprocess.run([sys.executable, "-m", "ruff", "check", path], cwd=ROOT, check=True)
