"""Two CPU processes do what one does. Each function that takes a folder runs in both of them."""

import copy
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes
from trainings import Tokenizer, small_lm

from rlhf_helpers import ppo
from rlhf_helpers.beyond.parallel import ParallelRun, ResponseOutputs
from rlhf_helpers.models import PolicyWithValueHead, freeze
from rlhf_helpers.rollouts import response_outputs, sample_rollouts
from rlhf_helpers.training import Run, full_tensor, linear_schedule


@pytest.fixture
def in_two_processes(forks, tmp_path):
    return lambda function: start_processes(join_and_run, (function, tmp_path), nprocs=2, start_method="forkserver")


def join_and_run(rank, function, folder):
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"}
    group = {"init_method": f"file://{folder / 'group'}", "rank": rank, "world_size": 2}
    distributed.init_process_group("gloo", timeout=timedelta(minutes=3), **group)
    function(folder)
    distributed.destroy_process_group()


class Sharding(Accelerator):
    """Does on the CPU, where accelerate doesn't, what FSDP's configuration makes it do on GPUs."""

    distributed_type = DistributedType.FSDP

    def prepare(self, model, optimizer):
        for block in model.policy.lm.transformer.h:
            fully_shard(block)
        fully_shard(model)
        return model, type(optimizer)(model.parameters(), lr=optimizer.defaults["lr"])


def new_run(accelerator, folder, seed=0):
    policy = PolicyWithValueHead(small_lm(seed))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    run = ParallelRun(accelerator, folder, policy, optimizer, steps=4, seed=0, settings={})
    run.row = {"step": 0}
    return run


def experience_of(run):
    """Collected by both processes from prompts of their own, of other lengths."""
    rank = run.accelerator.process_index
    prompts = [[1 + (i + rank) % 20] * (1 + i + 2 * rank) for i in range(4)]
    torch.manual_seed(100 + rank)
    rollouts = sample_rollouts(run.sampler, prompts, Tokenizer, 5 + 2 * rank)
    e = ppo.collect_experience(
        run.sampler, freeze(small_lm(1)), lambda ids, mask: (ids * mask).sum(1) / 100, rollouts,
        beta=0.1, no_eos_score=-1.0, rows_at_once=4,
    )  # fmt: skip
    return run.gather(e)


def train(run, steps):
    for step in run:
        if step == steps:
            break
        settings = {"epochs": 2, "minibatch": 4, "max_kl": 1e9, "outputs": run.outputs}
        run.log(**ppo.ppo_update(run.sampler, experience_of(run), run.step, **settings))


def backward(losses):
    for loss in losses:
        loss.backward()
    return 0.0


def averaged_gradient_is_that_of_one_process(folder, make=Accelerator):
    """Though two processes see three rows at once, and the one all eight."""
    accelerator, alone = make(cpu=True), PolicyWithValueHead(small_lm())
    run = new_run(accelerator, folder)
    e = experience_of(run)
    assert e.rollouts.prompt_mask.sum(1).tolist() == [1, 3, 2, 4, 3, 5, 4, 6], "not in the order of the prompts"
    assert e.rollouts.response_mask.sum(1).unique().numel() > 1
    tokens = accelerator.gather(e.rollouts.response_ids)
    assert torch.equal(tokens[:8], tokens[8:]), "the processes hold different experience"
    settings = {"epochs": 1, "minibatch": 8, "max_kl": 1e9}
    ppo.ppo_update(alone, e, backward, **settings)
    step = lambda losses: backward(loss * run.weight for loss in losses)  # noqa: E731
    ppo.ppo_update(run.model, e, step, outputs=run.outputs, rows_at_once=3, **settings)
    assert float(run.weight) != 1.0, "the test needs processes with different numbers of tokens"
    for (name, p), q in zip(run.model.named_parameters(), alone.parameters()):
        assert torch.allclose(full_tensor(p.grad), q.grad, atol=1e-6), name
    assert any(q.grad.abs().max() > 1e-4 for q in alone.parameters())


def sharded_gradient_is_that_of_one_process(folder):
    averaged_gradient_is_that_of_one_process(folder, Sharding)


def the_early_stop_is_agreed_on(folder):
    """One process sees rows that the policy has left far behind, the other rows where it has not moved."""
    accelerator, shares = Accelerator(cpu=True), []
    run = new_run(accelerator, folder)
    e = experience_of(run)
    e.logprobs[::2] -= 0.6  # the share of the first process: every second row

    def update(epochs, max_kl):
        whole = lambda stats: shares.append(stats["approx_kl"]) or run.whole_minibatch(stats)  # noqa: E731
        settings = {"epochs": epochs, "max_kl": max_kl, "outputs": run.outputs, "whole_minibatch": whole}
        stats = ppo.ppo_update(run.model, e, lambda losses: 0.0 * len([*losses]), minibatch=8, **settings)
        both = accelerator.gather(torch.tensor([[*stats.values()]], dtype=torch.float64))
        assert torch.equal(both[0], both[1]), "the processes log different figures"
        return stats

    kl = update(epochs=1, max_kl=1e9)["approx_kl"]
    first, second = accelerator.gather(torch.tensor(shares[:1]))
    assert first > 1.1 * kl and second < 0.9 * kl, "they would agree anyway"
    assert update(epochs=2, max_kl=0.9 * kl)["epochs"] == 1, "the second process alone would go on"
    assert update(epochs=2, max_kl=1.1 * kl)["epochs"] == 2, "the first process alone would stop"


def a_sharded_policy_samples_with_its_new_weights(folder):
    run = new_run(Sharding(cpu=True), folder)
    start = copy.deepcopy(run.sampler)
    train(run, 4)
    run.save_policy()
    distributed.barrier()
    saved = PolicyWithValueHead.from_pretrained(folder)
    for p, q, old in zip(run.model.parameters(), saved.parameters(), start.parameters()):
        assert torch.equal(full_tensor(p), q) and not torch.equal(q, old)


def a_sharded_model_is_saved_whole(folder):
    rank = distributed.get_rank()
    torch.manual_seed(0)
    alone, x = torch.nn.Linear(6, 4), torch.randn(8, 6)
    sharded, again = fully_shard(copy.deepcopy(alone)), fully_shard(torch.nn.Linear(6, 4))

    def steps(model, folder, n, main):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        run = Run(folder, model, optimizer, linear_schedule(optimizer, 4), steps=4, seed=0, settings={}, main=main)
        for step in run:
            if step == n:
                break
            run.step([model(x).square().mean()])
            run.scheduler.step()

    steps(alone, folder / f"alone-{rank}", 4, True)
    steps(sharded, folder / "sharded", 2, rank == 0)
    distributed.barrier()
    steps(again, folder / "sharded", 4, rank == 0)
    for p, q in zip(again.parameters(), alone.parameters()):
        assert torch.allclose(p.full_tensor(), q, atol=1e-6)


def the_configuration_shards_and_leaves_ties_and_heads_alone(folder):
    """fsdp.yaml, by what accelerate makes of it on GPUs, under the autocast of a preset in bfloat16."""
    accelerator, policy = Accelerator(cpu=True), PolicyWithValueHead(small_lm())
    alone = copy.deepcopy(policy)
    config = yaml.safe_load((Path(__file__).parents[2] / "beyond" / "fsdp.yaml").read_text())
    fsdp = {name.removeprefix("fsdp_"): x for name, x in config["fsdp_config"].items()}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=fsdp["version"], reshard_after_forward=fsdp["reshard_after_forward"],
        auto_wrap_policy=fsdp["auto_wrap_policy"], cpu_ram_efficient_loading=fsdp["cpu_ram_efficient_loading"],
        transformer_cls_names_to_wrap=[fsdp["transformer_layer_cls_to_wrap"]],
    )  # fmt: skip
    if config["mixed_precision"] != "no":
        plugin.set_mixed_precision(config["mixed_precision"])
    accelerator.state.fsdp_plugin = plugin
    wrapped = fsdp2_prepare_model(accelerator, ResponseOutputs(policy))
    assert policy.lm.lm_head.weight is policy.lm.transformer.wte.weight, "the output matrix is trained by itself"
    rollouts = sample_rollouts(alone, [[1, 2, 3], [4, 5]], Tokenizer, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, expected = wrapped(rollouts)[0], response_outputs(alone, rollouts)[0]
    assert logits.dtype == torch.float32 and torch.equal(logits, expected)
    assert isinstance(policy.lm.transformer.h[0].mlp.c_fc.weight, DTensor)


@pytest.mark.parametrize("function", [
    averaged_gradient_is_that_of_one_process, sharded_gradient_is_that_of_one_process, the_early_stop_is_agreed_on,
    a_sharded_policy_samples_with_its_new_weights, a_sharded_model_is_saved_whole,
    the_configuration_shards_and_leaves_ties_and_heads_alone,
], ids=lambda function: function.__name__)  # fmt: skip
def test_in_two_processes(function, in_two_processes):
    in_two_processes(function)


def two_steps(folder):
    accelerator = Accelerator(cpu=True)
    run = new_run(accelerator, folder)
    train(run, 2)
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    both = accelerator.gather(weights).view(2, -1)
    assert torch.equal(both[0], both[1]), "the processes drifted apart"
    if run.main:
        torch.save(weights, folder / "expected.pt")


def test_what_two_saved_one_resumes(in_two_processes, tmp_path):
    in_two_processes(two_steps)
    run = new_run(Accelerator(cpu=True), tmp_path, seed=7)
    steps = iter(run)
    assert next(steps) == 2 and len(run.history) == 2
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    assert torch.equal(weights, torch.load(tmp_path / "expected.pt", weights_only=True))
    steps.close()
