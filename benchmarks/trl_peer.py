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
from transformers import GenerationConfig, TrainerCallback
from transformers import GPT2ForSequenceClassification as Classifier
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

SKIPPED = workload.WARM_UP * workload.BATCH  # rows
ARGUMENTS = {
    "output_dir": mkdtemp(), "bf16": True, "use_cpu": workload.DEVICE == "cpu", "report_to": "none",
    "learning_rate": workload.LEARNING_RATE, "save_strategy": "no", "disable_tqdm": True,
    "gradient_checkpointing": False, "num_train_epochs": 1,
}  # fmt: skip
step_ends: list[float] = []


class Clock(TrainerCallback):
    def on_step_end(self, *_, **__):
        step_ends.append(workload.clock())


def train(trainer, config, rows: dict, models: dict, skipped: int = workload.WARM_UP) -> float:
    """Seconds from the end of step `skipped` to that of the last."""
    rows = {name: Dataset.from_dict(rows) for name in ("train_dataset", "eval_dataset")}
    tokenizer = workload.tokenizer("left" if "ref_model" in models else "right")
    trainer(args=config, processing_class=tokenizer, callbacks=[Clock], **rows, **models).train()
    return step_ends[-1] - step_ends[skipped - 1]


def sft() -> float:
    rows, _ = workload.phrases()
    config = SFTConfig(**ARGUMENTS, per_device_train_batch_size=workload.BATCH)
    return train(SFTTrainer, config, {"input_ids": rows[:SKIPPED] + rows}, {"model": workload.model()})


def rm() -> float:
    rows, labels = workload.phrases()
    good, bad = ([row for row, label in zip(rows, labels) if label == wanted] for wanted in (1, 0))
    # as many rows as the others score: a pair is two, so half a batch of pairs is one of theirs
    n = (len(rows) + SKIPPED) // 2
    config = RewardConfig(**ARGUMENTS, per_device_train_batch_size=workload.BATCH // 2)
    pairs = {"chosen_ids": (good * n)[:n], "rejected_ids": (bad * n)[:n]}
    return train(RewardTrainer, config, pairs, {"model": workload.model(Classifier)})


def rollouts() -> float:
    from trl.experimental.ppo.ppo_trainer import batch_generation

    policy, prompts = workload.model(), {"input_ids": workload.prompts()}
    queries = workload.tokenizer("left").pad(prompts, return_tensors="pt")["input_ids"].to(policy.device)
    config = GenerationConfig(max_new_tokens=workload.NEW_TOKENS, do_sample=True, top_k=0)

    @torch.no_grad()
    @torch.autocast(workload.DEVICE, dtype=torch.bfloat16)
    def sample():
        batch_generation(policy, queries, workload.PROMPTS, workload.END, config)

    sample()
    return workload.seconds_of(sample)


def ppo() -> float:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        **ARGUMENTS, per_device_train_batch_size=workload.PROMPTS,
        num_mini_batches=workload.PROMPTS // workload.MINIBATCH, num_ppo_epochs=workload.EPOCHS,
        total_episodes=2 * workload.PROMPTS, response_length=workload.NEW_TOKENS,
        local_rollout_forward_batch_size=workload.PROMPTS, num_sample_generations=0, stop_token="eos",
    )  # fmt: skip
    models = {name: workload.model() for name in ("model", "ref_model")}
    models |= {name: workload.model(Classifier) for name in ("reward_model", "value_model")}
    return train(PPOTrainer, config, {"input_ids": workload.prompts()}, models, skipped=1)


if __name__ == "__main__":
    workload.report({"sft": sft, "rm": rm, "rollouts": rollouts, "ppo": ppo}[sys.argv[1]]())
