"""One resumable training run: finite steps, a schedule, metrics, progress and checkpoints."""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rlhf_helpers import artifacts

_trained: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()  # model -> the run whose steps it has taken


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

    Random numbers are seeded anew at each step from (seed, step), and the learning rate is the
    scheduler's function of the step. A checkpoint is therefore only parameters, optimiser state, the metrics
    and the small values in `run.state`, and a run that was killed and continued is bit for bit the
    run that never stopped (on the CPU). It is one file of safetensors; nothing is pickled. The one
    before it is kept: if the last is damaged, the run says so and continues from there.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LambdaLR,
        *,
        steps: int,
        seed: int,
        settings: dict,
        max_grad_norm: float = 1.0,
        checkpoints: int = 10,
        main: bool = True,
    ):
        """`settings` is what the result depends on: another run's checkpoint is refused.

        Where several processes run this together, the `main` one writes and reports.
        """
        self.folder, self.model, self.optimizer, self.scheduler = Path(folder), model, optimizer, scheduler
        self.steps, self.seed, self.settings = steps, seed, json.loads(json.dumps(settings))
        self.max_grad_norm, self.every, self.main = max_grad_norm, max(1, steps // checkpoints), main
        self.state: dict = {}  # JSON values that the loop carries from step to step
        self.history: list[dict] = []
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.previous = self.folder / "checkpoint.previous.safetensors"
        self.last_is_whole = False  # whether `checkpoint` may take the place of `previous`

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step."""
        return pd.DataFrame(self.history)

    def __iter__(self) -> Iterator[int]:
        """The steps that are left to do.

        Raises RuntimeError at once if another process runs this folder, ValueError if what it holds won't do,
        OSError if it can't be written, on a full disk say.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # of the process: it goes when that is killed, and a cell that is run again is not shut out by its first run
        lock = FileLock(self.folder / "run.lock", timeout=0, is_singleton=True, thread_local=False)
        try:
            with lock if self.main else nullcontext():
                yield from self._steps()
        except Timeout:
            raise RuntimeError(
                f"another notebook or process is running {self.folder}, and two would tear each other's files. Wait "
                "for it, or shut its kernel down, or set RLHF_ARTIFACTS to another folder here."
            ) from None
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"can't write into {self.folder}: {error}. What was saved before is whole: put this right (is the "
                "disk full?) and run this again; it continues from there."
            ) from error

    def _steps(self) -> Iterator[int]:
        done = self._restore()
        if done is None:
            if _trained.get(self.model) == self.folder:
                raise RuntimeError(
                    f"the checkpoint in {self.folder} is gone, and this model has been trained already: restart the "
                    "kernel, so that it starts anew."
                )
            done = 0
            self._save(done)  # so that a stop before the first checkpoint can go back to the start
        elif self.main:
            self._write_metrics()
            anew = "to start anew, delete it and restart the kernel"
            if done == self.steps:
                print(f"{self.folder} holds this run, finished: nothing is trained ({anew})")
            else:
                print(f"{self.folder} holds this run, stopped after {done} of {self.steps} steps: continuing ({anew})")
        if done == self.steps:
            return
        bar = tqdm(
            range(done, self.steps), initial=done, total=self.steps, file=sys.stdout, ncols=79, disable=not self.main
        )
        with SummaryWriter(self.folder / "tensorboard", purge_step=done) if self.main else nullcontext() as board:
            for step in bar:
                torch.manual_seed(self._seed(step))
                self.row, start = {"step": step, "lr": self.optimizer.param_groups[0]["lr"]}, time.perf_counter()
                yield step
                self.row["seconds"] = time.perf_counter() - start
                if "tokens" in self.row:
                    self.row["tokens_per_second"] = self.row["tokens"] / self.row["seconds"]
                self.history.append(self.row)
                if board:
                    for name, value in self.row.items():
                        board.add_scalar(name, value, step)
                if (step + 1) % self.every == 0 or step + 1 == self.steps:
                    self._save(step + 1)
                    shown = [f"{k} {v:.4g}" for k, v in self.row.items() if k not in ("step", "lr", "seconds")]
                    if self.main:
                        tqdm.write(f"step {step + 1}: {', '.join(shown[:6])}", file=sys.stdout)

    def record(self, folder: Path | None = None) -> None:
        """Writes `artifact.json` beside the model and tokenizer that were saved in `folder`, or in the run's own.

        Settings, versions and each file's digest: `preset.require` refuses a model without it, or one that it
        does not describe.
        """
        artifacts.record(folder or self.folder, self.settings, self.steps)

    def step(self, loss: torch.Tensor) -> float:
        """One optimiser step on `loss`; the gradient's norm before clipping.

        Raises FloatingPointError, before anything is changed, if loss or gradient is not finite.
        """
        self._check_finite("loss", loss.item())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)).item()
        self._check_finite("gradient", norm)
        _trained[self.model] = self.folder
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

    def _save(self, done: int) -> None:
        tensors = {f"model.{name}": whole(p.detach()) for name, p in self.model.named_parameters()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": whole(x) for name, x in moments.items()}
        if not self.main:
            return
        tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
        for name, x in tensors.items() if done else ():
            self._check_finite(name, 0.0 if x.isfinite().all() else math.nan)
        run = {"done": done, "steps": self.steps, "settings": self.settings, "state": self.state}
        run = json.dumps(run | {"history": self.history})
        part = self.folder / "part"  # written and flushed there, then renamed: a stop at any moment leaves a whole one
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        try:
            part.mkdir()
            save_file(tensors, part / "checkpoint", {"run": run, "digest": _digest(run, tensors)})
            _flush(part / "checkpoint")
            if self.last_is_whole:
                os.replace(self.checkpoint, self.previous)
            os.replace(part / "checkpoint", self.checkpoint)
            _flush(self.folder)
            self.last_is_whole = True
            self._write_metrics()
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write_metrics(self) -> None:
        """For readers: the run itself takes its history from the checkpoint, so that the two can't disagree."""
        part = self.folder / "metrics.csv.part"
        try:
            self.metrics.to_csv(part, index=False)
            os.replace(part, self.folder / "metrics.csv")
        finally:
            part.unlink(missing_ok=True)

    def _restore(self) -> int | None:
        """Loads the last good checkpoint, if there is one; how many steps are done."""
        damaged = []
        for path in (self.checkpoint, self.previous):
            if not path.exists():
                continue
            try:
                run, tensors = _read(path)
            except SafetensorError as error:
                damaged.append(f"{path} is damaged, or no checkpoint of a run: {error}")
                continue
            self._load(path, run, tensors)
            self.last_is_whole = path == self.checkpoint
            if damaged and self.main:
                print(f"{damaged[0]}. Taking the one before it.")
            return run["done"]
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}. No good checkpoint is left: delete {self.folder} and restart the kernel to "
                "train anew."
            )
        return None

    def _load(self, path: Path, run: dict, tensors: dict[str, torch.Tensor]) -> None:
        differ = artifacts.differences(run["settings"] | {"steps": run["steps"]}, self.settings | {"steps": self.steps})
        if differ:
            raise ValueError(
                f"{self.folder} holds a run of other settings (there, here): {differ}. Delete the folder and restart "
                "the kernel to train anew, or set RLHF_ARTIFACTS to another one."
            )
        there = {name: tuple(x.shape) for name, x in tensors.items() if name.startswith("model.")}
        here = {f"model.{name}": tuple(p.shape) for name, p in self.model.named_parameters()}
        if differ := artifacts.differences(there, here):
            raise ValueError(
                f"{path} holds another model (shapes there, here): {dict(list(differ.items())[:3])}. Delete the folder "
                "and restart the kernel to train anew, or set RLHF_ARTIFACTS to another one."
            )
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
        scheduler = self.scheduler
        scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": run["done"], "_step_count": run["done"] + 1})
        for group, lr, factor in zip(self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
            group["lr"] = lr * factor(run["done"])
        self.state, self.history = run["state"], run["history"]


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """What `_save` put into a checkpoint. Raises SafetensorError if any of it is not as it was written."""
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if "run" not in about or _digest(about["run"], tensors) != about.get("digest"):
        raise SafetensorError("its content does not agree with its digest")
    return json.loads(about["run"]), tensors


def _digest(run: str, tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256(run.encode())
    for name in sorted(tensors):
        x = tensors[name]
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flush(path: Path) -> None:
    """To the disk itself, so that a power cut can't undo it; Windows has no such call for a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def whole(x: torch.Tensor) -> torch.Tensor:
    """`x`, put together if FSDP has split it among processes."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _as(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The whole `x`, split among processes as `p` is."""
    return distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x
