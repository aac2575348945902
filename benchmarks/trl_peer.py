"""A contender of `speed.py`: TRL's trainers in bf16, in an environment of their own.

python benchmarks/trl_peer.py sft|rm|rollouts|ppo      # the last two: trl==1.10.0, the last that has PPO
"""

import os
import sys
from tempfile import mkdtemp

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import workload
from datasets import Dataset
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **__):
        self.ends.append(workload.clock())


def arguments() -> dict:
    return {
        "output_dir": mkdtemp(), "bf16": True, "use_cpu": not torch.cuda.is_available(), "report_to": "none",
        "learning_rate": workload.LEARNING_RATE, "per_device_train_batch_size": workload.BATCH,
        "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip


def timed(trainer, clock: Clock, skipped: int) -> None:
    """Trains, and reports the time from the end of step `skipped` to that of the last."""
    trainer.train()
    workload.report(clock.ends[-1] - clock.ends[skipped - 1])


def sft() -> None:
    from trl import SFTConfig, SFTTrainer

    rows, _ = workload.phrases()
    rows = rows[: workload.WARM_UP * workload.BATCH] + rows
    clock = Clock()
    trainer = SFTTrainer(
        model=workload.language_model(),
        args=SFTConfig(**arguments(), num_train_epochs=1),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=workload.tokenizer(),
        callbacks=[clock],
    )
    timed(trainer, clock, workload.WARM_UP)


def rm() -> None:
    from trl import RewardConfig, RewardTrainer

    rows, labels = workload.phrases()
    good, bad = ([row for row, label in zip(rows, labels) if label == wanted] for wanted in (1, 0))
    # as many rows as the others score: a pair is two, so half a batch of pairs is one of theirs
    n = (workload.PHRASES + workload.WARM_UP * workload.BATCH) // 2
    pairs = {
        name: [some[i % len(some)] for i in range(n)] for name, some in (("chosen_ids", good), ("rejected_ids", bad))
    }
    clock = Clock()
    trainer = RewardTrainer(
        model=workload.reward_model(),
        args=RewardConfig(**arguments() | {"per_device_train_batch_size": workload.BATCH // 2}, num_train_epochs=1),
        train_dataset=Dataset.from_dict(pairs),
        processing_class=workload.tokenizer(),
        callbacks=[clock],
    )
    timed(trainer, clock, workload.WARM_UP)


def rollouts() -> None:
    from transformers import GenerationConfig
    from trl.experimental.ppo.ppo_trainer import batch_generation

    model, width = workload.language_model(), workload.PROMPT_TOKENS[1]
    queries = torch.tensor([[workload.END] * (width - len(p)) + p for p in workload.prompts()]).to(model.device)
    config = GenerationConfig(max_new_tokens=workload.NEW_TOKENS, do_sample=True, top_k=0)

    def sample():
        with torch.no_grad(), torch.autocast(workload.DEVICE, dtype=torch.bfloat16):
            batch_generation(model, queries, workload.PROMPTS, workload.END, config)

    workload.measure(sample, sample)


def ppo() -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompts = workload.prompts()
    clock = Clock()
    tokenizer = workload.tokenizer()
    tokenizer.padding_side = "left"
    trainer = PPOTrainer(
        args=PPOConfig(
            **arguments() | {"per_device_train_batch_size": workload.PROMPTS},
            num_mini_batches=workload.PROMPTS // workload.MINIBATCH, num_ppo_epochs=workload.EPOCHS,
            total_episodes=2 * workload.PROMPTS, response_length=workload.NEW_TOKENS,
            local_rollout_forward_batch_size=workload.PROMPTS, num_sample_generations=0, stop_token="eos",
        ),
        processing_class=tokenizer,
        model=workload.language_model(),
        ref_model=workload.language_model(),
        reward_model=workload.reward_model(),
        value_model=workload.reward_model(),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[clock],
    )  # fmt: skip
    timed(trainer, clock, skipped=1)


if __name__ == "__main__":
    {"sft": sft, "rm": rm, "rollouts": rollouts, "ppo": ppo}[sys.argv[1]]()
