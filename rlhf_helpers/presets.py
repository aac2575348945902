"""What to run: `tiny` (embedded, minutes on two cores), `smollm2` (real, from PyPI) or `gpt2` (real, from the Hub)."""

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from rlhf_helpers.checks import check, differences

HERE = Path(__file__).parent
# relative: the same in every checkout; but from one drive of Windows to another there is no such path
TINY = Path(os.path.relpath(HERE / "tiny")) if HERE.drive == Path.cwd().drive else HERE / "tiny"
SMOLLM2 = Path("artifacts/base/SmolLM2-135M-Instruct")  # where rlhf_helpers.smollm2 puts it
IMDB_JUDGE = Path("artifacts/base/imdb-judge")  # and tools/imdb_judge.py its classifier
NOTEBOOKS = {"sft": "1-SFT.ipynb", "reward_model": "2-RM Training.ipynb", "policy": "3-RLHF.ipynb"}

Text = Annotated[str, Field(pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Preset:
    """One configuration of the whole series. Change a field with `dataclasses.replace`.

    Lengths are in tokens, `*_examples` and `*_batch` in sentences (None: all there are). Raises
    ValueError that names the field if one makes no sense.
    """

    name: Text
    model: Text  # Hub id or folder of the base causal language model
    dataset: Text  # Hub id or folder: columns `sentence` and `label` (0 negative, 1 positive)
    judge: Literal["grammar", "vader"]  # who judges the samples; never the reward model
    second_judge: Text | None = None  # a classifier, Hub id or folder, trained on other data
    device: Annotated[str, Field(pattern=r"^(cpu|cuda|mps)(:\d+)?$")] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: matrix products in bfloat16, weights in fp32
    gradient_checkpointing: bool = False  # less memory for a third more time: see models.checkpoint_layers
    rows_at_once: PositiveInt | None = None  # gradient accumulation in `beyond.loops`: less memory, the same step
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    artifacts: Path = Path("artifacts")
    max_tokens: Annotated[int, Field(ge=2)] = 64  # a longer sentence is cut (and then has no end-of-text)

    sft_whole_sentences: bool = True  # or every row: most of SST-2's are phrases cut from sentences
    sft_examples: PositiveInt | None = None
    sft_epochs: PositiveInt = 2
    sft_batch: PositiveInt = 32
    sft_lr: PositiveFloat = 3e-3

    rm_examples: PositiveInt | None = 11_000
    rm_epochs: PositiveInt = 2
    rm_batch: PositiveInt = 32
    rm_lr: PositiveFloat = 5e-4

    ppo_updates: PositiveInt = 55
    ppo_batch: PositiveInt = 256  # prompts an update
    ppo_minibatch: PositiveInt = 128
    ppo_epochs: PositiveInt = 2
    ppo_lr: PositiveFloat = 8e-4
    ppo_value_lr: PositiveFloat = 1e-3  # of the critic and its value head
    ppo_critic_updates: NonNegativeInt = 4  # the first updates, in which only the critic learns
    ppo_prompt_tokens: tuple[PositiveInt, PositiveInt] = (2, 6)  # from and to; a token of tiny is a whole word
    ppo_new_tokens: PositiveInt = 40
    ppo_beta: NonNegativeFloat = 0.15  # price of one nat of KL, in standard deviations of the reward
    ppo_max_update_kl: PositiveFloat = 0.05  # nats per token: an update's epochs stop past it
    ppo_no_eos_score: float = -3.0  # the score of a response that never ended
    ppo_gamma: Share = 1.0  # discount of a token
    ppo_lam: Share = 0.95  # GAE: 1 is the full return less the value, 0 the one-step error
    ppo_clip: PositiveFloat = 0.2  # how far a ratio may go before its gradient stops
    ppo_value_clip: PositiveFloat = 0.2
    ppo_value_coef: NonNegativeFloat = 1.0  # weight of the value loss

    eval_prompts: Annotated[int, Field(ge=2)] = 1_000

    def folder(self, stage: str) -> Path:
        """Where a stage ("sft", "reward_model", "policy") leaves its model and metrics."""
        return Path(self.artifacts) / self.name / stage

    def require(self, stage: str) -> Path:
        """The folder of an earlier stage. Raises FileNotFoundError if unfinished, ValueError if of other settings."""
        folder, again = self.folder(stage), f"Run {NOTEBOOKS[stage]!r}, with this preset and RLHF_ARTIFACTS"
        if not (folder / "artifact.json").exists():
            raise FileNotFoundError(f"{folder} holds no finished model. {again}.")
        saved = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["settings"]
        saved.pop("made_from", None)
        differ = differences(saved, self.settings(stage))
        others = f"{folder} is of other settings (saved, now): {differ}"
        check(not differ, f"{others}. Go back to them, or delete it. {again}.")
        return folder

    def settings(self, stage: str, made_from: tuple[str, ...] = ()) -> dict:
        """What a stage's result depends on: if any of it changes, the stage must be run anew.

        `made_from` are the earlier stages whose models it starts from; they are told apart by their weights.
        """
        prefixes = ("sft_", "rm_", "ppo_")[: 1 + list(NOTEBOOKS).index(stage)]  # a stage depends on those before it
        common = ("name", "model", "dataset", "precision", "seed", "max_tokens")
        found = {k: v for k, v in asdict(self).items() if k in common or k.startswith(prefixes)}
        for k in ("model", "dataset"):  # the embedded ones are the same wherever you stand
            found[k] = found[k].replace(TINY.as_posix(), "embedded")
        return found | ({"made_from": {s: digest(self.folder(s)) for s in made_from}} if made_from else {})

    def on_checked_device(self, lm) -> "Preset":
        """This preset, or one on the CPU if the accelerator gives `lm` other logits, which `same_on_cpu` prints."""
        from rlhf_helpers.models import same_on_cpu  # seconds to import, and seldom needed

        if self.device == "cpu" or same_on_cpu(lm, self.device):
            return self
        return replace(self, device="cpu", precision=self.precision if _bf16_pays("cpu") else "fp32")

    def ppo_update_settings(self) -> dict:
        """What `ppo_update` takes from this preset."""
        names = {"max_kl": "ppo_max_update_kl", "rows_at_once": "rows_at_once"}
        names |= {name: f"ppo_{name}" for name in ("epochs", "minibatch", "clip", "value_clip", "value_coef")}
        return {name: getattr(self, field) for name, field in names.items()}


def digest(folder: Path) -> str | None:
    """Of a finished model's weights and vocabulary; None where there is none."""
    if not (folder / "artifact.json").exists():
        return None
    paths = [*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]
    paths = sorted(path for path in paths if not path.name.startswith("checkpoint"))
    parts = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _bf16_pays(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself (a T4 or an older CPU emulates it, slowly)."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    # ATEN_CPU_CAPABILITY=avx2 has torch leave AVX-512 alone, whatever the processor can do
    used = device == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX2"
    supported = torch.cpu.get_capabilities() if used else {}
    return bool(supported.get("amx_bf16") or supported.get("avx512_bf16"))


def _presets(device: str) -> dict[str, Preset]:
    tiny = Preset(name="tiny", model=(TINY / "base").as_posix(), dataset=(TINY / "reviews").as_posix(), judge="grammar")
    gpt2 = Preset(
        name="gpt2", model="openai-community/gpt2", dataset="stanfordnlp/sst2", judge="vader",
        second_judge=IMDB_JUDGE.as_posix() if IMDB_JUDGE.exists() else "lvwerra/distilbert-imdb",
        device=device, precision="bf16" if _bf16_pays(device) else "fp32",
        sft_epochs=3, sft_lr=5e-5,
        rm_examples=None, rm_epochs=1, rm_lr=2e-5,
        ppo_updates=200, ppo_batch=128, ppo_minibatch=32, ppo_epochs=4, ppo_lr=1e-5, ppo_value_lr=2e-5,
        ppo_prompt_tokens=(2, 8), ppo_new_tokens=32, ppo_beta=0.05, eval_prompts=872,
    )  # fmt: skip
    if device == "cpu":  # the same path on fewer examples, in larger steps
        gpt2 = replace(gpt2, sft_epochs=1, rm_examples=8_000, ppo_updates=100, ppo_batch=32)
        gpt2 = replace(gpt2, sft_lr=3e-4, rm_lr=2e-4, ppo_lr=5e-5, ppo_value_lr=1e-4)
    smollm2 = replace(
        gpt2, name="smollm2", model=SMOLLM2.as_posix() if SMOLLM2.exists() else "HuggingFaceTB/SmolLM2-135M-Instruct",
        sft_epochs=1, sft_examples=8_000, sft_lr=1e-4,
        rm_examples=28_000, rm_epochs=1, rm_lr=5e-5,
        ppo_updates=60, ppo_batch=32, ppo_minibatch=16, ppo_epochs=2, ppo_lr=5e-5, ppo_value_lr=1e-4,
        ppo_critic_updates=6,
    )  # fmt: skip
    return {"tiny": tiny, "gpt2": gpt2, "smollm2": smollm2}


def load_preset(name: str | None = None, why: str = "asked for") -> Preset:
    """The preset called `name` (`why` it is says the caller), else the one in RLHF_PRESET, else by the hardware.

    Without either it is `gpt2` where there is an accelerator and `tiny` elsewhere. RLHF_SEED, RLHF_MODEL,
    RLHF_DATASET and RLHF_ARTIFACTS replace the fields of those names. Raises ValueError for an unknown preset.
    """
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    named = os.environ.get("RLHF_PRESET")
    default = ("tiny", "there is no accelerator here") if device == "cpu" else ("gpt2", f"{device} is here")
    name, why = (name, why) if name else (named, "RLHF_PRESET is set to it") if named else default
    presets = _presets(device)
    check(name in presets, f"unknown preset {name!r}: choose one of {', '.join(presets)}")
    changes = {field: os.environ.get(f"RLHF_{field.upper()}") for field in ("seed", "model", "dataset", "artifacts")}
    preset = replace(presets[name], **{field: value for field, value in changes.items() if value})
    print(f"preset: {preset.name} ({why}; to change it, set RLHF_PRESET to tiny, smollm2 or gpt2 and restart)")
    print(f"model {preset.model}, data {preset.dataset}, device {preset.device}, seed {preset.seed}")
    return preset
