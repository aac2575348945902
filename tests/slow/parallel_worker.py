"""What `test_parallel.py` starts as two processes: prints nothing, fails where an assertion fails."""

import copy
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_helpers import ppo
from rlhf_helpers.beyond.parallel import ParallelRun
from rlhf_helpers.models import PolicyWithValueHead, freeze
from rlhf_helpers.rollouts import sample_rollouts
from rlhf_helpers.training import Run, full_tensor, linear_schedule


class Tokenizer:
    pad_token_id = eos_token_id = 0


class Sharding(Accelerator):
    """Does on the CPU, where accelerate doesn't, what FSDP's configuration makes it do on GPUs."""

    distributed_type = DistributedType.FSDP

    def prepare(self, model, optimizer):
        for block in model.policy.lm.transformer.h:
            fully_shard(block)
        fully_shard(model)
        return model, type(optimizer)(model.parameters(), lr=optimizer.defaults["lr"])


def new_policy(seed: int = 0) -> PolicyWithValueHead:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=23, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return PolicyWithValueHead(GPT2LMHeadModel(config))


def new_run(accelerator, folder, policy, lr=1e-2) -> ParallelRun:
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    return ParallelRun(accelerator, folder, policy, optimizer, steps=4, seed=0, settings={})


def experience_of(run, policy) -> ppo.Experience:
    """Collected by all processes from prompts of their own, of other lengths."""
    rank = run.accelerator.process_index
    prompts = [[1 + (i + rank) % 20] * (1 + i + 2 * rank) for i in range(4)]
    run.row = {"step": 0}
    torch.manual_seed(100 + rank)
    rollouts = sample_rollouts(policy, prompts, Tokenizer, 5 + 2 * rank)
    e = ppo.collect_experience(
        policy, freeze(copy.deepcopy(new_policy(1).lm)), lambda ids, mask: (ids * mask).sum(1) / 50, rollouts,
        beta=0.1, no_eos_score=-1.0, rows_at_once=4,
    )  # fmt: skip
    return run.gather(e)


def averaged_gradient_is_that_of_one_process(folder: Path, accelerator_class=Accelerator) -> None:
    accelerator, policy, alone = accelerator_class(cpu=True), new_policy(), new_policy()
    run = new_run(accelerator, folder, policy)
    e = experience_of(run, run.sampler)
    assert len(e.rollouts) == 8 and e.rollouts.response_mask.sum(1).unique().numel() > 1
    tokens = accelerator.gather(e.rollouts.response_ids)
    assert torch.equal(tokens[:8], tokens[8:]), "the processes hold different experience"

    def backward(loss):
        loss.backward()
        return 0.0

    settings = {"epochs": 1, "minibatch": 8, "max_kl": 1e9}
    torch.manual_seed(5)
    ppo.ppo_update(policy, e, lambda loss: backward(loss * run.weight), outputs=run.outputs, **settings)
    torch.manual_seed(5)
    ppo.ppo_update(alone, e, backward, **settings)
    assert float(run.weight) != 1.0, "the test needs processes with different numbers of tokens"
    for (name, p), q in zip(policy.named_parameters(), alone.parameters()):
        assert torch.allclose(full_tensor(p.grad), q.grad, atol=1e-6), name
    assert any(q.grad.abs().max() > 1e-4 for q in alone.parameters())


def the_early_stop_is_agreed_on(folder: Path) -> None:
    """One process sees rows that the policy has left far behind, the other rows where it has not moved."""
    accelerator, policy = Accelerator(cpu=True), new_policy()
    run = new_run(accelerator, folder, policy)
    e = experience_of(run, policy)
    e.logprobs[::2] -= 0.6  # the share of the first process: every second row
    mine = []

    def whole_minibatch(stats):
        mine.append(stats["approx_kl"])
        return run.whole_minibatch(stats)

    def update(epochs, max_kl):
        stats = ppo.ppo_update(
            policy, e, lambda loss: loss.backward() or 0.0, epochs=epochs, minibatch=8, max_kl=max_kl,
            outputs=run.outputs, whole_minibatch=whole_minibatch,
        )  # fmt: skip
        figures = torch.tensor([*stats.values()], dtype=torch.float64)
        both = accelerator.gather(figures[None])
        assert torch.equal(both[0], both[1]), "the processes log different figures"
        return stats

    whole = update(epochs=1, max_kl=1e9)["approx_kl"]
    shares = accelerator.gather(torch.tensor([mine[0]]))
    assert shares[0] > 1.1 * whole and shares[1] < 0.9 * whole, "they would agree anyway"
    assert update(epochs=3, max_kl=0.9 * whole)["epochs"] == 1, "the second process alone would go on"
    assert update(epochs=2, max_kl=1.1 * whole)["epochs"] == 2, "the first process alone would stop"


def sharded_gradient_is_that_of_one_process(folder: Path) -> None:
    averaged_gradient_is_that_of_one_process(folder, Sharding)


def a_sharded_policy_samples_with_its_new_weights(folder: Path) -> None:
    run = new_run(Sharding(cpu=True), folder, new_policy())
    start = copy.deepcopy(run.sampler)
    for step in run:
        e = experience_of(run, run.sampler)
        run.row = {"step": step}
        run.log(**ppo.ppo_update(run.sampler, e, run.step, epochs=1, minibatch=4, max_kl=1e9, outputs=run.outputs))
    run.save_policy()
    run.accelerator.wait_for_everyone()
    saved = PolicyWithValueHead.from_pretrained(folder)
    for p, q, old in zip(run.model.parameters(), saved.parameters(), start.parameters()):
        assert torch.equal(full_tensor(p), q) and not torch.equal(q, old)


def a_sharded_model_is_saved_whole(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 4), torch.randn(8, 6)
    alone = copy.deepcopy(model)
    fully_shard(model)

    def steps(model, folder, n, main):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        run = Run(folder, model, optimizer, linear_schedule(optimizer, 4), steps=4, seed=0, settings={}, main=main)
        for step in run:
            if step == n:
                break
            run.step(model(x).square().mean())
            run.scheduler.step()

    steps(alone, folder / f"alone-{accelerator.process_index}", 4, True)
    steps(model, folder / "sharded", 2, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    again = torch.nn.Linear(6, 4)
    fully_shard(again)
    steps(again, folder / "sharded", 4, accelerator.is_main_process)
    for p, q in zip(again.parameters(), alone.parameters()):
        assert torch.allclose(p.full_tensor(), q, atol=1e-6)
    accelerator.wait_for_everyone()


def two_save_and_one_resumes(folder: Path) -> None:
    """Two steps; `test_parallel.py` then continues alone from what is left here."""
    accelerator, policy = Accelerator(cpu=True), new_policy()
    run = new_run(accelerator, folder, policy)
    for step in run:
        if step == 2:
            break
        e = experience_of(run, policy)
        run.row = {"step": step}
        run.log(**ppo.ppo_update(policy, e, run.step, epochs=2, minibatch=4, max_kl=1e9, outputs=run.outputs))
    weights = torch.cat([p.detach().flatten() for p in policy.parameters()])
    both = accelerator.gather(weights).view(2, -1)
    assert torch.equal(both[0], both[1]), "the processes drifted apart"
    if accelerator.is_main_process:
        torch.save(weights, folder / "expected.pt")


FUNCTIONS = [
    "a_sharded_model_is_saved_whole",
    "a_sharded_policy_samples_with_its_new_weights",
    "averaged_gradient_is_that_of_one_process",
    "sharded_gradient_is_that_of_one_process",
    "the_early_stop_is_agreed_on",
    "two_save_and_one_resumes",
]

if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
    torch.distributed.destroy_process_group()
