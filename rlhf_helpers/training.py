"""One resumable training run: finite steps, a schedule, metrics, progress and checkpoints."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


def autocast(preset) -> torch.autocast:
    """Matrix products in bfloat16 where the preset says so; a no-op in fp32."""
    return torch.autocast(preset.device, dtype=torch.bfloat16, enabled=preset.precision == "bf16")


class Run:
    """The steps of a training; iterating over it continues after the last checkpoint.

        run = Run(folder, model, optimizer, steps=100, seed=0, settings={...})
        for step in run:
            run.step(loss)          # backward, clip, optimiser; stops if not finite
            run.log(loss=loss)      # one row of metrics.csv and of TensorBoard

    Random numbers are seeded anew at each step from (seed, step), and the learning rate is a
    function of the step. A checkpoint is therefore only parameters, optimiser state and the
    small values in `run.state`, and a run that was killed and continued is bit for bit the run
    that never stopped (on the CPU). The model is saved as safetensors; nothing is pickled.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        seed: int,
        settings: dict,
        warmup: float = 0.05,
        max_grad_norm: float = 1.0,
        checkpoints: int = 10,
        main: bool = True,
    ):
        """`settings` is what the result depends on: another run's checkpoint is refused.

        Where several processes run this together, the `main` one writes and reports.
        """
        self.folder, self.model, self.optimizer = Path(folder), model, optimizer
        self.steps, self.seed, self.settings = steps, seed, json.loads(json.dumps(settings))
        self.warmup_steps, self.max_grad_norm = max(1, round(warmup * steps)), max_grad_norm
        self.every, self.main = max(1, steps // checkpoints), main
        self.learning_rates = [group["lr"] for group in optimizer.param_groups]
        self.state: dict = {}  # JSON values that the loop carries from step to step
        self.history: list[dict] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step."""
        return pd.DataFrame(self.history)

    def __iter__(self) -> Iterator[int]:
        done = self._restore()
        if done and self.main:
            where = "finished" if done == self.steps else f"stopped after {done} of {self.steps} steps"
            print(f"{self.folder} holds this run, {where}: continuing from there (delete it to start anew)")
        if not done:
            self._save(0)  # so that a stop before the first checkpoint can go back to the start
        bar = tqdm(
            range(done, self.steps),
            initial=done,
            total=self.steps,
            file=sys.stdout,
            ncols=79,
            disable=done == self.steps or not self.main,
        )
        with SummaryWriter(self.folder / "tensorboard", purge_step=done) if self.main else nullcontext() as board:
            for step in bar:
                torch.manual_seed(self._seed(step))
                self._set_learning_rate(step)
                self.row, start = {"step": step}, time.perf_counter()
                yield step
                self.row["seconds"] = time.perf_counter() - start
                self.history.append(self.row)
                if board:
                    for name, value in self.row.items():
                        board.add_scalar(name, value, step)
                if (step + 1) % self.every == 0 or step + 1 == self.steps:
                    self._save(step + 1)
                    shown = [f"{k} {v:.4g}" for k, v in self.row.items() if k not in ("step", "seconds")]
                    if self.main:
                        tqdm.write(f"step {step + 1}: {', '.join(shown[:6])}", file=sys.stdout)

    def step(self, loss: torch.Tensor) -> float:
        """One optimiser step on `loss`; the gradient's norm before clipping.

        Raises FloatingPointError, before anything is changed, if loss or gradient is not finite.
        """
        self._check_finite("loss", loss.item())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)).item()
        self._check_finite("gradient", norm)
        self.optimizer.step()
        return norm

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Adds to this step's row. Tensors of one element will do."""
        self.row |= {
            name: value.item() if isinstance(value, torch.Tensor) else float(value) for name, value in metrics.items()
        }

    def _seed(self, step: int) -> int:
        return self.seed * 1_000_003 + step

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {self.row['step']} of {self.folder}. The last good checkpoint "
                "is kept. Look for a broken batch; else lower the learning rate and start anew."
            )

    def _set_learning_rate(self, step: int) -> None:
        """Linear warm-up, then linear decay to 0."""
        factor = min(1.0, (step + 1) / self.warmup_steps) * (1 - step / self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates):
            group["lr"] = rate * factor

    def _save(self, done: int) -> None:
        tensors = {f"model.{name}": whole(p.detach()) for name, p in self.model.named_parameters()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": whole(x) for name, x in moments.items()}
        if not self.main:
            return
        run = {"done": done, "steps": self.steps, "settings": self.settings, "state": self.state}
        # written beside and renamed: a kill at any moment leaves one whole file
        self.metrics.to_csv(self.folder / "metrics.csv.part", index=False)
        os.replace(self.folder / "metrics.csv.part", self.folder / "metrics.csv")
        part = self.checkpoint.with_suffix(".part")
        save_file({k: x.contiguous() for k, x in tensors.items()}, part, {"run": json.dumps(run)})
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, self.checkpoint)

    def _restore(self) -> int:
        """Loads the checkpoint, if there is one; how many steps are done."""
        if not self.checkpoint.exists():
            return 0
        with safe_open(self.checkpoint, "pt") as file:
            run = json.loads(file.metadata()["run"])
            if run["settings"] != self.settings or run["steps"] != self.steps:
                theirs = run["settings"] | {"steps": run["steps"]}
                ours = self.settings | {"steps": self.steps}
                differ = {k: (theirs.get(k), v) for k, v in ours.items() if theirs.get(k) != v}
                raise ValueError(
                    f"{self.folder} holds a run of other settings (there, here): {differ}. Delete the folder to "
                    "train anew, or set RLHF_ARTIFACTS to another one."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(_as(tensors[f"model.{name}"], p))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict] = {}
        for name, x in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                moments.setdefault(int(i), {})[key] = _as(x, parameters[int(i)]) if x.dim() else x
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.state, done = run["state"], run["done"]
        history = pd.read_csv(self.folder / "metrics.csv", float_precision="round_trip") if done else pd.DataFrame()
        self.history = history[history["step"] < done].to_dict("records") if done else []
        return done


def whole(x: torch.Tensor) -> torch.Tensor:
    """`x`, put together if FSDP has split it among processes."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _as(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The whole `x`, split among processes as `p` is."""
    return distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x
