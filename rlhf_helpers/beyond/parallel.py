"""PPO on several processes, on accelerate: who samples what, and who learns from what.

Each process samples and scores its share of the prompts, every n-th one. Then all of them hold the whole
batch of experience in the order of the prompts, so that whitening and the minibatches are those of one
process, and each computes its share of every minibatch. DDP or FSDP average the gradients.
"""

import copy
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from rlhf_helpers.models import LanguageModel, PolicyWithValueHead
from rlhf_helpers.ppo import Experience
from rlhf_helpers.rollouts import Rollouts, response_outputs
from rlhf_helpers.training import Run, full_tensor, linear_schedule


class ResponseOutputs(nn.Module):
    """`response_outputs` of a policy as a forward pass: DDP and FSDP act when what they wrap is called."""

    def __init__(self, policy: LanguageModel):
        super().__init__()
        self.policy = policy

    def forward(self, rollouts: Rollouts):
        return response_outputs(self.policy, rollouts)


class ParallelRun(Run):
    """A `Run` that several processes step together; one of them writes and reports.

    Its checkpoints are those of `Run`: what two processes saved, one continues, and the other way round.
    """

    def __init__(self, accelerator: Accelerator, folder, policy: PolicyWithValueHead, optimizer, **settings):
        self.accelerator = accelerator
        sharded = accelerator.distributed_type == DistributedType.FSDP
        self.sampler = copy.deepcopy(policy) if sharded else policy  # whole, so that each process samples alone
        self.wrapped, optimizer = accelerator.prepare(ResponseOutputs(policy), optimizer)
        scheduler = linear_schedule(optimizer, settings["steps"])
        super().__init__(folder, policy, optimizer, scheduler, main=accelerator.is_main_process, **settings)

    def __iter__(self):
        for step in super().__iter__():
            self._refresh_sampler()
            torch.manual_seed(self._seed(step) * self.accelerator.num_processes + self.accelerator.process_index)
            yield step

    def outputs(self, policy: LanguageModel, minibatch: Rollouts):
        """What `response_outputs` gives, for this process's share of the rows: every n-th one."""
        n = self.accelerator.num_processes
        rows = torch.arange(self.accelerator.process_index, len(minibatch), n, device=minibatch.response_ids.device)
        mine = minibatch[rows]
        self.weight = n * mine.response_mask.sum() / minibatch.response_mask.sum()
        logits, values, (row, column) = self.wrapped(mine)
        return logits, values, (rows[row], column)

    def whole_minibatch(self, stats: dict[str, float]) -> dict[str, float]:
        """The statistics of the whole minibatch, the same on all processes, from each one's of its share."""
        mine = torch.tensor([[self.weight, *stats.values()]], dtype=torch.float64, device=self.accelerator.device)
        weights, shares = self.accelerator.gather(mine).split([1, len(stats)], dim=1)
        means, maxima = (weights * shares).mean(0), shares.amax(0)
        return {name: (maxima if name.endswith("_max") else means)[i].item() for i, name in enumerate(stats)}

    def step(self, losses: Iterable[torch.Tensor]) -> float:
        """Each loss is a mean over this process's tokens; weighted, the mean of all is that over all tokens."""
        return super().step(loss * self.weight for loss in losses)

    def gather(self, e: Experience) -> Experience:
        """The experience of all processes, in the order of the prompts; from here on one order for all."""
        torch.manual_seed(self._seed(self.row["step"]))
        rollouts = {name: self._gather(x, left=name.startswith("prompt")) for name, x in vars(e.rollouts).items()}
        parts = {name: self._gather(x) for name, x in vars(e).items() if name != "rollouts"}
        return Experience(Rollouts(**rollouts), **parts)

    def _gather(self, x: torch.Tensor, left: bool = False) -> torch.Tensor:
        if x.ndim > 1:  # their longest prompts and responses may differ
            x = self.accelerator.pad_across_processes(x, dim=1, pad_first=left)
        gathered = self.accelerator.gather(x.contiguous()).unflatten(0, (self.accelerator.num_processes, -1))
        return gathered.transpose(0, 1).flatten(0, 1)  # process i had the prompts i, i + n, i + 2n, ...

    def save_policy(self) -> None:
        """The policy as transformers saves it, written by the main process."""
        self._refresh_sampler()
        if self.main:
            self.sampler.save_pretrained(self.folder)

    @torch.no_grad()
    def _refresh_sampler(self) -> None:
        if self.sampler is not self.model:
            for copied, p in zip(self.sampler.parameters(), self.model.parameters()):
                copied.copy_(full_tensor(p))
