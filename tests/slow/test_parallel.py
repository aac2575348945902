"""Two CPU processes do what one does; what is offloaded says what it said before."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e .[beyond]")

from parallel_worker import FUNCTIONS, new_policy, new_run

from rlhf_helpers.models import RewardModel, freeze
from rlhf_helpers.rollouts import response_outputs, sample_rollouts

HERE = Path(__file__).parent


@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_processes(function, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         HERE / "parallel_worker.py", function, tmp_path],
        capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    if function == "two_save_and_one_resumes":
        policy = new_policy(7)
        run = new_run(accelerate.Accelerator(cpu=True), tmp_path, policy)
        steps, expected = iter(run), torch.load(tmp_path / "expected.pt", weights_only=True)
        assert next(steps) == 2 and len(run.history) == 2
        assert torch.equal(torch.cat([p.detach().flatten() for p in policy.parameters()]), expected)
        steps.close()


def test_rows_that_cannot_be_shared_are_refused(tokenizer, prompts, tmp_path):
    policy = new_policy()
    run = new_run(accelerate.Accelerator(cpu=True), tmp_path, policy)
    run.accelerator = type("Three", (), {"num_processes": 3, "process_index": 0})
    with pytest.raises(ValueError, match="5 rows can't be shared by 3"):
        run.outputs(policy, sample_rollouts(policy, prompts, tokenizer, 4))


def test_what_is_offloaded_says_what_it_said_before(lm, tokenizer, prompts):
    reference, reward_model = freeze(lm), freeze(RewardModel(copy.deepcopy(lm)))
    torch.nn.init.normal_(reward_model.model.score.weight)
    batch = sample_rollouts(reference, prompts, tokenizer, 6)
    logits, scores = response_outputs(reference, batch)[0], reward_model(batch.input_ids, batch.attention_mask)
    reference, reward_model = (accelerate.cpu_offload(m, torch.device("cpu")) for m in (reference, reward_model))
    assert all(p.device.type == "meta" for p in reference.parameters())
    assert torch.equal(response_outputs(reference, batch)[0], logits)
    assert torch.equal(reward_model(batch.input_ids, batch.attention_mask), scores)
