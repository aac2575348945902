"""One resumable training run: a schedule, metrics, progress and checkpoints."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rlhf_helpers.checks import check, differences


def autocast(preset) -> torch.autocast:
    """Matrix products in bfloat16 where the preset says so; a no-op in fp32."""
    return torch.autocast(preset.device, dtype=torch.bfloat16, enabled=preset.precision == "bf16")


def linear_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.05) -> LambdaLR:
    """A learning rate that rises linearly over the first `warmup` of the steps, then falls linearly to 0.

    transformers' own starts at 0, which would waste the first of a few dozen PPO updates.
    """
    warmup_steps = max(1, round(warmup * steps))
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup_steps) * (1 - step / steps))


class Run:
    """The steps of a training; iterating over it continues after the last checkpoint.

        run = Run(folder, model, optimizer, scheduler, steps=100, seed=0, settings={...})
        for step in run:
            ...                     # loss, backward, clip, optimizer.step(), scheduler.step()
            run.log(loss=loss)      # one row of metrics.csv and of TensorBoard

    Random numbers are seeded anew at each step from (seed, step), and the learning rate is the scheduler's function of
    the step. A checkpoint, one file of safetensors, is therefore only parameters, optimiser state, the metrics and the
    small values in `run.state`; and on the CPU a run that was killed and continued ends with the very same bits.
    """

    def __init__(
        self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LambdaLR,
        *, steps: int, seed: int, settings: dict, checkpoints: int = 10, main: bool = True,
    ):  # fmt: skip
        """`settings` is what the result depends on: another run's checkpoint is refused.

        Where several processes run this together, the `main` one writes and reports.
        """
        self.folder, self.model, self.optimizer, self.scheduler = Path(folder), model, optimizer, scheduler
        self.steps, self.seed, self.settings = steps, seed, settings
        self.every, self.main = max(1, steps // checkpoints), main
        self.state: dict = {}  # JSON values that the loop carries from step to step
        self.history: list[dict] = []
        self.checkpoint = self.folder / "checkpoint.safetensors"

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per step."""
        return pd.DataFrame(self.history)

    def __iter__(self) -> Iterator[int]:
        """The steps that are left to do. Raises ValueError if the folder holds another run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._restore() if self.checkpoint.exists() else 0
        if done == 0:
            self._save(0)  # so that a stop before the first checkpoint can go back to the start
        elif self.main:
            so_far = "finished: nothing is trained" if done == self.steps else f"stopped after step {done}: continuing"
            print(f"{self.folder} holds this run, {so_far} (to start anew, delete it and restart the kernel)")
        for row in self.history:  # what was printed while it trained
            self._report(row)
        if done == self.steps:
            return
        shape = {"initial": done, "total": self.steps, "file": sys.stdout, "ncols": 79, "disable": not self.main}
        with SummaryWriter(self.folder / "tensorboard", purge_step=done) if self.main else nullcontext() as board:
            for step in tqdm(range(done, self.steps), **shape):
                torch.manual_seed(self._seed(step))
                self.row, self.start = {"step": step, "lr": self.optimizer.param_groups[0]["lr"]}, time.perf_counter()
                yield step
                self.row.setdefault("seconds", time.perf_counter() - self.start)
                if "tokens" in self.row:
                    self.row["tokens_per_second"] = self.row["tokens"] / self.row["seconds"]
                self.history.append(self.row)
                if board:
                    for name, value in self.row.items():
                        board.add_scalar(name, value, step)
                if self._is_checkpoint(step):
                    self._save(step + 1)
                    self._report(self.row)

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Adds to this step's row. Its seconds end at its first log: what is measured afterwards does not count."""
        self.row |= {k: v.item() if isinstance(v, torch.Tensor) else float(v) for k, v in metrics.items()}
        self.row.setdefault("seconds", time.perf_counter() - self.start)

    def step(self, losses: Iterable[torch.Tensor]) -> float:
        """One optimiser step on the sum of `losses`, taken one after the other; the gradient's norm before clipping.

        Each parameter group is clipped by itself, so that a large gradient of the policy does not shrink the critic's.
        Raises FloatingPointError, before anything is changed, if the norm is not finite.
        """
        self.optimizer.zero_grad()
        for loss in losses:
            loss.backward()
        groups = [group["params"] for group in self.optimizer.param_groups]
        norms = [full_tensor(nn.utils.clip_grad_norm_(group, 1.0)).item() for group in groups]
        norm = math.hypot(*norms)
        self._check_finite(math.isfinite(norm), "the gradient")
        self.optimizer.step()
        return norm

    def record(self, folder: Path | None = None) -> None:
        """Writes `artifact.json` beside the model that was saved in `folder`, or in the run's own.

        To be called when all of it is saved: `preset.require` refuses a model without it, or of other settings.
        """
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        about = json.dumps({"settings": self.settings, "steps": self.steps, "versions": versions}, indent=2)
        (Path(folder or self.folder) / "artifact.json").write_text(about, encoding="utf-8")

    def _seed(self, step: int) -> int:
        return self.seed * 1_000_003 + step

    def _is_checkpoint(self, step: int) -> bool:
        return (step + 1) % self.every == 0 or step + 1 == self.steps

    def _report(self, row: dict) -> None:
        if self.main and self._is_checkpoint(row["step"]):
            hidden = ("step", "lr", "seconds", "sampling_seconds", "tokens_per_second")
            shown = [f"{k} {v:.4g}" for k, v in row.items() if k not in hidden]
            tqdm.write(f"step {row['step'] + 1}: {', '.join(shown[:6])}", file=sys.stdout)

    def _check_finite(self, finite: bool, what: str) -> None:
        if not finite:
            raise FloatingPointError(
                f"{what} is not finite at step {self.row['step']}. {self.folder} keeps the last good checkpoint. "
                "Look for a broken batch; else lower the learning rate and start anew."
            )

    def _save(self, done: int) -> None:
        """Each file is written beside the last one, then renamed: a stop at any moment leaves one that is whole."""
        tensors = {f"model.{name}": full_tensor(p.detach()) for name, p in self.model.named_parameters()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": full_tensor(x) for name, x in moments.items()}
        if not self.main:
            return
        for name, x in tensors.items() if done else ():
            self._check_finite(bool(x.isfinite().all()), name)
        tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
        # for readers, and first, so that a finished run always has it
        self.metrics.to_csv(part := self.folder / "metrics.part", index=False)
        os.replace(part, self.folder / "metrics.csv")
        run = {name: getattr(self, name) for name in ("steps", "settings", "state", "history")} | {"done": done}
        save_file(tensors, part := self.folder / "checkpoint.part", {"run": json.dumps(run)})
        os.replace(part, self.checkpoint)

    @torch.no_grad()
    def _restore(self) -> int:
        """Loads the checkpoint; how many steps are done."""
        try:
            with safe_open(self.checkpoint, "pt") as file:
                run = json.loads(file.metadata()["run"])
                # copies, since Windows replaces no file that is mapped
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{self.checkpoint} is broken, or no run's: {error}. Delete it to start anew.") from error
        shapes = {name: tuple(x.shape) for name, x in tensors.items() if name.startswith("model.")}
        named = {f"model.{name}": p for name, p in self.model.named_parameters()}
        differ = differences(run["settings"] | {"steps": run["steps"]}, self.settings | {"steps": self.steps})
        differ |= differences(shapes, {name: tuple(p.shape) for name, p in named.items()})
        way_out = "Delete the folder and restart the kernel to train anew, or set RLHF_ARTIFACTS to another one."
        check(not differ, f"{self.folder} holds another run (saved, now): {dict(list(differ.items())[:9])}. {way_out}")
        for name, p in named.items():
            p.copy_(_split_as(tensors[name], p))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict] = {}
        for name, x in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                moments.setdefault(int(i), {})[key] = _split_as(x, parameters[int(i)]) if x.dim() else x
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        scheduler, done = self.scheduler, run["done"]
        scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": done, "_step_count": done + 1})
        for group, lr, factor in zip(self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
            group["lr"] = lr * factor(done)
        self.state, self.history = run["state"], run["history"]
        return done


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """`x`, put together if FSDP has split it among processes."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _split_as(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The full tensor `x`, split among processes as `p` is."""
    return distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x
