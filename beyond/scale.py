"""Notebook 3's PPO on several processes, or GPUs: notebook beyond/4-Scaling explains it.

    torchrun --standalone --nproc-per-node 2 beyond/scale.py      # data parallel; two CPU processes will do
    accelerate launch --config_file beyond/fsdp.yaml beyond/scale.py    # sharded over the GPUs, offloaded to the CPU

Start it in the folder of notebooks 1 and 2, after them and with the same preset. It continues what was
interrupted, on any number of processes that divides batch and minibatch.
"""

import argparse
import contextlib
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import Accelerator, cpu_offload
from safetensors.torch import load_file, save_file

from rlhf_helpers import data, models, ppo, rollouts
from rlhf_helpers.beyond import loops, parallel
from rlhf_helpers.checks import check
from rlhf_helpers.environment import quiet
from rlhf_helpers.presets import load_preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, help="of the run; by default the preset's")
    parser.add_argument("--stop-before", type=int, help="update at which to stop, as if it were interrupted")
    parser.add_argument("--experience", type=Path, help="file with the first update's batch; written if it isn't there")
    arguments = parser.parse_args()
    given = arguments.experience is not None and arguments.experience.exists()  # asked before anyone can write it
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    # with "cpu:0", what accelerate calls the CPU, its own cpu_offload fails
    device = torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device
    quiet()
    with contextlib.redirect_stdout(None) if not accelerator.is_main_process else contextlib.nullcontext():
        preset = load_preset()
    if arguments.updates:
        # a short run must reach the policy too
        alone = min(preset.ppo_critic_updates, arguments.updates // 4)
        preset = replace(preset, ppo_updates=arguments.updates, ppo_critic_updates=alone)
    preset = replace(preset, device=str(device))
    for name in ("ppo_batch", "ppo_minibatch"):
        size, n = getattr(preset, name), accelerator.num_processes
        check(size % n == 0, f"{name} is {size}, which {n} processes can't share: start a number that divides it")

    sft = str(preset.require("sft"))
    tokenizer = data.load_tokenizer(sft)
    reward_model = models.freeze(models.RewardModel.from_pretrained(preset.require("reward_model")))
    policy = models.PolicyWithValueHead(sft, critic=reward_model).to(device)
    # frozen, and needed once an update: their weights wait in the CPU's memory
    reference = cpu_offload(models.freeze(models.load_lm(sft)), device)
    reward_model = cpu_offload(reward_model, device)
    rows = data.encode(
        data.load_sentences(preset.dataset, seed=preset.seed)["test"]["sentence"], tokenizer, preset.max_tokens
    )

    def prompts_of(update: int, n: int = preset.ppo_batch) -> list[list[int]]:
        """This process's share of the prompts: every n-th one."""
        if update == arguments.stop_before:
            sys.exit()
        prompts = data.sample_prompts(rows, n, preset.ppo_prompt_tokens, preset.seed * 99991 + update)
        return prompts[accelerator.process_index :: accelerator.num_processes]

    # the scale of notebook 3, the same on every process
    generator = torch.Generator(device).manual_seed(preset.seed)
    calibration = data.sample_prompts(rows, 512, preset.ppo_prompt_tokens, preset.seed + 1)
    parts = [calibration[i : i + 128] for i in range(0, 512, 128)]
    samples = [rollouts.sample_rollouts(policy, p, tokenizer, preset.ppo_new_tokens, generator) for p in parts]
    reward = loops.normalised(reward_model, samples, preset)

    optimizer = torch.optim.Adam(policy.parameter_groups(preset.ppo_lr, preset.ppo_value_lr), eps=1e-5)
    run = parallel.ParallelRun(
        accelerator, preset.folder("policy-parallel"), policy, optimizer,
        steps=preset.ppo_updates, seed=preset.seed,
        settings=preset.settings("policy", made_from=("sft", "reward_model")),
    )  # fmt: skip

    def whole_batch(experience: ppo.Experience) -> ppo.Experience:
        """The batch of all processes. A file's in place of the first one lets two runs learn from the same."""
        experience = run.gather(experience)
        run.row["sampling_seconds"] = time.perf_counter() - run.start
        if arguments.experience is None or run.row["step"] > 0:
            return experience
        if given:
            saved = load_file(arguments.experience, device=str(device))
            sampled = rollouts.Rollouts(*(saved.pop(f"rollouts.{field.name}") for field in fields(rollouts.Rollouts)))
            check(len(sampled) == preset.ppo_batch, f"{arguments.experience} is of another preset: delete it")
            return ppo.Experience(sampled, **saved)
        if accelerator.is_main_process:
            parts = vars(experience) | {f"rollouts.{name}": x for name, x in vars(experience.rollouts).items()}
            save_file({name: x.contiguous() for name, x in parts.items() if name != "rollouts"}, arguments.experience)
        return experience

    loops.align(
        run, preset, run.sampler, reference, reward, prompts_of, tokenizer,
        estimate=whole_batch, outputs=run.outputs, whole_minibatch=run.whole_minibatch,
    )  # fmt: skip
    run.save_policy()
    if accelerator.is_main_process:
        tokenizer.save_pretrained(run.folder)
        run.record()


if __name__ == "__main__":
    main()
