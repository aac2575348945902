"""What to run: `tiny` (embedded, minutes on two cores), `smollm2` (real, from PyPI) or `gpt2` (real, from the Hub)."""

import math
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from rlhf_helpers import artifacts
from rlhf_helpers.checks import check
from rlhf_helpers.imdb_judge import FOLDER as IMDB_JUDGE
from rlhf_helpers.smollm2 import FOLDER as SMOLLM2

TINY = Path(os.path.relpath(Path(__file__).parent / "tiny"))  # relative: the same in every checkout
NOTEBOOKS = {"sft": "1-SFT.ipynb", "reward_model": "2-RM Training.ipynb", "policy": "3-RLHF.ipynb"}


def _from(low: float, high: float = math.inf, kind: type = int) -> tuple:
    rule = f"a {'whole ' if kind is int else ''}number from {low} to {high}"
    return rule, lambda x: isinstance(x, (int, kind)) and low <= x <= high


RULES = {  # what a field must be, and whether it is: by its name, else by its type
    "seed": _from(0, 2**32 - 1), "max_tokens": _from(2), "eval_prompts": _from(2), int: _from(1),
    "ppo_beta": _from(0, 1e9, float), "ppo_no_eos_score": _from(-1e9, 1e9, float), float: _from(1e-9, 1e9, float),
    "ppo_max_update_kl": _from(1e-9, math.inf, float), "ppo_value_coef": _from(0, 1e9, float),
    "ppo_critic_updates": _from(0),
    "ppo_gamma": _from(0, 1, float), "ppo_lam": _from(0, 1, float),
    "ppo_prompt_tokens": ("(from, to), whole numbers from 1 on", lambda x: isinstance(x, (tuple, list))
                          and [*map(type, x)] == [int, int] and 1 <= x[0] <= x[1]),
    "precision": ("'fp32' or 'bf16'", lambda x: x in ("fp32", "bf16")),
    "device": ("'cpu' or the accelerator that is here", lambda x: str(x).split(":")[0] in ("cpu", _device())),
    "judge": ("one of evaluation.JUDGES", lambda x: x in ("grammar", "vader") or x in _judges()),
    "artifacts": ("a folder that can be written", lambda x: isinstance(x, (str, Path)) and _writable(Path(x))),
    str: ("a text", lambda x: isinstance(x, str) and x.strip()),
    bool: ("True or False", lambda x: isinstance(x, bool)),
}  # fmt: skip


def _judges() -> dict:
    from rlhf_helpers.evaluation import JUDGES  # seconds to import, and seldom needed

    return JUDGES


def _writable(path: Path) -> bool:
    """Whether there is such a folder, or one could be made."""
    there = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
    return there.is_dir() and os.access(there, os.W_OK)


@dataclass(frozen=True)
class Preset:
    """One configuration of the whole series. Change a field with `dataclasses.replace`.

    Lengths are in tokens, `*_examples` and `*_batch` in sentences (None: all there are). Raises
    ValueError that names the field if one makes no sense.
    """

    name: str
    model: str  # Hub id or folder of the base causal language model
    dataset: str  # Hub id or folder: columns `sentence` and `label` (0 negative, 1 positive)
    judge: str  # who judges the samples: "grammar" or "vader"; never the reward model
    second_judge: str | None = None  # a classifier, Hub id or folder, trained on other data
    device: str = "cpu"
    precision: str = "fp32"  # or "bf16": matrix products in bfloat16, weights in fp32
    seed: int = 0
    artifacts: Path = Path("artifacts")
    max_tokens: int = 64  # a longer sentence is cut (and then has no end-of-text)

    sft_whole_sentences: bool = True  # or every row: most of SST-2's are phrases cut from sentences
    sft_examples: int | None = None
    sft_epochs: int = 2
    sft_batch: int = 32
    sft_lr: float = 3e-3

    rm_examples: int | None = 11_000
    rm_epochs: int = 2
    rm_batch: int = 32
    rm_lr: float = 5e-4

    ppo_updates: int = 55
    ppo_batch: int = 256  # prompts an update
    ppo_minibatch: int = 128
    ppo_epochs: int = 2
    ppo_lr: float = 8e-4
    ppo_value_lr: float = 3e-4  # of the critic and its value head
    ppo_critic_updates: int = 4  # the first updates, in which only the critic learns
    ppo_prompt_tokens: tuple[int, int] = (2, 6)  # from and to; a token of tiny is a whole word
    ppo_new_tokens: int = 40
    ppo_beta: float = 0.15  # price of one nat of KL, in standard deviations of the reward
    ppo_target_kl: float | None = None  # nats a response: beta is adapted to it; None: fixed
    ppo_max_update_kl: float = 0.05  # nats a token: an update's epochs stop past it
    ppo_no_eos_score: float = -3.0  # the score of a response that never ended
    ppo_gamma: float = 1.0  # discount of a token
    ppo_lam: float = 0.95  # GAE: 1 is the full return less the value, 0 the one-step error
    ppo_clip: float = 0.2  # how far a ratio may go before its gradient stops
    ppo_value_clip: float = 0.2
    ppo_value_coef: float = 0.1  # weight of the value loss

    eval_prompts: int = 1_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, types = getattr(self, field.name), get_args(field.type) or (field.type,)
            must, is_right = RULES.get(field.name) or RULES[types[0]]
            right = is_right(value) or (value is None and type(None) in types)
            check(right, f"preset.{field.name} is {value!r}, but must be {must}")

    def folder(self, stage: str) -> Path:
        """Where a stage ("sft", "reward_model", "policy") leaves its model and metrics."""
        return Path(self.artifacts) / self.name / stage

    def require(self, stage: str) -> Path:
        """The folder of an earlier stage, which this preset must have made, whole and from what is there now.

        Raises FileNotFoundError if the stage was not finished, ValueError if it is damaged, of other
        settings, or made from an earlier stage that has since been trained anew.
        """
        folder = self.folder(stage)
        if not (folder / artifacts.RECORD).exists():
            raise FileNotFoundError(
                f"{folder} holds no finished model. Run {NOTEBOOKS[stage]!r} first, with the same "
                f"preset ({self.name!r}) and RLHF_ARTIFACTS ({str(self.artifacts)!r})."
            )
        try:
            theirs = artifacts.check(folder)["settings"]
        except ValueError as error:
            raise ValueError(f"{error}. Run {NOTEBOOKS[stage]!r} again: it saves the model anew.") from error
        made_from = theirs.pop("made_from", {})
        if differ := artifacts.differences(theirs, self.settings(stage)):
            raise ValueError(
                f"{folder} holds a model of other settings (there, here): {differ}. Go back to its settings in the "
                f"configuration cell, or delete the folder and run {NOTEBOOKS[stage]!r} again, or set RLHF_ARTIFACTS."
            )
        for parent, there in made_from.items():
            here = artifacts.digest(self.folder(parent))
            if here not in (there, None):
                raise ValueError(
                    f"{folder} was made from another {parent} model than the one in {self.folder(parent)} (weights "
                    f"there {there}, here {here}). Delete the first folder and run {NOTEBOOKS[stage]!r} again."
                )
        return folder

    def settings(self, stage: str, made_from: tuple[str, ...] = ()) -> dict:
        """What a stage's result depends on: if any of it changes, the stage must be run anew.

        `made_from` are the earlier stages whose models it starts from; they are told apart by their weights.
        """
        prefixes = ("sft_", "rm_", "ppo_")[: 1 + list(NOTEBOOKS).index(stage)]  # a stage depends on those before it
        common = ("name", "model", "dataset", "precision", "seed", "max_tokens")
        found = {k: v for k, v in asdict(self).items() if k in common or k.startswith(prefixes)}
        for k in ("model", "dataset"):  # the embedded ones are the same wherever you stand
            found[k] = str(found[k]).replace(str(TINY), "embedded")
        if made_from:
            found["made_from"] = {parent: artifacts.digest(self.folder(parent)) for parent in made_from}
        return found

    def on_checked_device(self, lm) -> "Preset":
        """This preset, or one that goes on with the CPU if the accelerator gives `lm` other logits than the CPU does.

        Says so if it comes to that (`models.same_on_cpu`).
        """
        from rlhf_helpers.models import same_on_cpu

        if self.device == "cpu" or same_on_cpu(lm, self.device):
            return self
        return replace(self, device="cpu", precision=self.precision if _bf16_pays("cpu") else "fp32")

    def ppo_update_settings(self) -> dict:
        """What `ppo_update` takes from this preset."""
        return {
            "epochs": self.ppo_epochs, "minibatch": self.ppo_minibatch, "max_kl": self.ppo_max_update_kl,
            "clip": self.ppo_clip, "value_clip": self.ppo_value_clip, "value_coef": self.ppo_value_coef,
        }  # fmt: skip

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {"sft_": [], "rm_": [], "ppo_": [], "": []}
        for field in fields(self):
            prefix = next(p for p in groups if field.name.startswith(p))
            name = field.name.removeprefix(prefix)
            groups[prefix].append(f"{name}={getattr(self, field.name)}")
        titles = {"": "preset", "sft_": "sft", "rm_": "reward model", "ppo_": "ppo"}
        return "\n".join(f"{titles[p]:>12}: {', '.join(groups[p])}" for p in ("", "sft_", "rm_", "ppo_"))


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _bf16_pays(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself (a T4 or an older CPU emulates it, slowly)."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device == "cpu":
        has = torch.cpu.get_capabilities()
        return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return False


def _presets(device: str) -> dict[str, Preset]:
    tiny = Preset(name="tiny", model=str(TINY / "base"), dataset=str(TINY / "reviews"), judge="grammar")
    gpt2 = Preset(
        name="gpt2", model="openai-community/gpt2", dataset="stanfordnlp/sst2", judge="vader",
        second_judge=str(IMDB_JUDGE) if IMDB_JUDGE.exists() else "lvwerra/distilbert-imdb", device=device,
        sft_epochs=3, sft_lr=5e-5,
        rm_examples=None, rm_epochs=1, rm_lr=2e-5,
        ppo_updates=200, ppo_batch=128, ppo_minibatch=32, ppo_epochs=4, ppo_lr=1e-5, ppo_value_lr=1e-5,
        ppo_prompt_tokens=(2, 8), ppo_new_tokens=32, ppo_beta=0.2, ppo_target_kl=6.0, eval_prompts=872,
    )  # fmt: skip
    if _bf16_pays(device):
        gpt2 = replace(gpt2, precision="bf16")
    if device == "cpu":  # the same path on fewer examples, in larger steps
        gpt2 = replace(gpt2, sft_epochs=1, rm_examples=8_000, ppo_updates=100, ppo_batch=32)
        gpt2 = replace(gpt2, sft_lr=3e-4, rm_lr=2e-4, ppo_lr=5e-5)
    smollm2 = replace(
        gpt2, name="smollm2", model=str(SMOLLM2) if SMOLLM2.exists() else "HuggingFaceTB/SmolLM2-135M-Instruct",
        sft_epochs=1, sft_examples=8_000, sft_lr=1e-4,
        rm_examples=28_000, rm_epochs=1, rm_lr=5e-5,
        ppo_updates=60, ppo_batch=32, ppo_minibatch=16, ppo_epochs=2, ppo_lr=5e-5, ppo_value_lr=5e-5,
        ppo_critic_updates=6, ppo_beta=0.1,
    )  # fmt: skip
    return {"tiny": tiny, "gpt2": gpt2, "smollm2": smollm2}


def load_preset(name: str | None = None) -> Preset:
    """The preset called `name`, else the one in RLHF_PRESET, else by the hardware.

    Without either it is `gpt2` where there is an accelerator and `tiny` elsewhere. Prints
    which one it is, why, and how to change it. RLHF_SEED, RLHF_MODEL, RLHF_DATASET and
    RLHF_ARTIFACTS replace the fields of those names.

    Raises ValueError for an unknown preset or a field that makes no sense.
    """
    device = _device()
    if name is not None:
        why = "asked for in the call"
    elif name := os.environ.get("RLHF_PRESET"):
        why = "RLHF_PRESET is set to it"
    elif device == "cpu":
        name, why = "tiny", "there is no accelerator here"
    else:
        name, why = "gpt2", f"there is an accelerator here ({device})"
    presets = _presets(device)
    check(name in presets, f"unknown preset {name!r}: choose one of {', '.join(presets)}")

    changes: dict[str, Any] = {
        field: os.environ[f"RLHF_{field.upper()}"]
        for field in ("seed", "model", "dataset", "artifacts")
        if os.environ.get(f"RLHF_{field.upper()}")
    }
    if "seed" in changes:
        whole = changes["seed"].isdecimal() and len(changes["seed"]) < 20
        check(whole, f"RLHF_SEED must be a whole number from 0 on, not {changes['seed']!r:.40}")
        changes["seed"] = int(changes["seed"])
    if "artifacts" in changes:
        changes["artifacts"] = Path(changes["artifacts"])
    preset = replace(presets[name], **changes)

    print(f"preset: {preset.name} ({why}; to change it, set RLHF_PRESET to tiny, smollm2 or gpt2 and restart)")
    print(f"model {preset.model}, data {preset.dataset}, device {preset.device}, seed {preset.seed}")
    return preset
