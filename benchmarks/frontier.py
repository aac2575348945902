"""Reward and judge against KL: PPO, RLOO, GRPO, DPO, IPO, rejection sampling, best-of-n; and why is DPO below PPO?

    python benchmarks/frontier.py                  # every row: about two hours of one core
    python benchmarks/frontier.py DPO "DPO, one epoch"  # those of two methods
    python benchmarks/frontier.py models                # PPO and DPO from several pairs of models

On the preset `tiny`, from the models of notebooks 1 and 2, which are run once. Each run is a row of
frontier-tiny.csv, or with `models` of frontier-models-tiny.csv, and not repeated. A method may sample 1,024
responses, at temperature 1, in some rows 13,824; best-of-n trains nothing and samples n for each answer that it
gives. Every policy answers the same 512 held-out prompts.
"""

import copy
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import logsigmoid
from trained import after_notebooks_1_and_2, notebook_3
from workload import collect

from rlhf_helpers import evaluation, judges, models
from rlhf_helpers.beyond import loops, preferences
from rlhf_helpers.environment import prepare
from rlhf_helpers.rollouts import sample_rollouts
from rlhf_helpers.training import linear_schedule

RESULTS = Path(__file__).with_name("frontier-tiny.csv")
MODELS = Path(__file__).with_name("frontier-models-tiny.csv")
RESPONSES, SEEDS = 1024, range(3)
STEPS = 96  # of DPO, 3 epochs of its 512 pairs, and of whatever else learns from pairs or chosen responses


def scores(run, batch):
    """(B,), in standard deviations of the SFT policy's; a response that never ended scores as in PPO."""
    reward = run.reward(batch.input_ids, batch.attention_mask)
    return torch.where(batch.ended, reward, run.preset.ppo_no_eos_score)


def sample(run, lm, prompts, seed):
    generator = torch.Generator(run.preset.device).manual_seed(seed)
    return sample_rollouts(lm, prompts, run.tokenizer, run.preset.ppo_new_tokens, generator)


def figures(run, kl, reward, texts, ended) -> dict:
    """A row of the table: means, the judge's verdict and the variety of the texts."""
    judged, variety = judges.JUDGES[run.preset.judge](texts).mean(), evaluation.distinct_n(texts)
    means = {"kl": kl, "reward": reward.mean(), "judge": judged, "ended": ended.float().mean(), "distinct_2": variety}
    return {name: round(float(x), 4) for name, x in means.items()}


@torch.no_grad()
def measure(run, lm) -> dict:
    batch = sample(run, lm, run.prompts("validation", 512, run.preset.seed), run.preset.seed)
    kl = evaluation.response_logprob(lm, batch) - evaluation.response_logprob(run.reference, batch)
    return figures(run, kl.mean(), scores(run, batch), batch.texts(run.tokenizer), batch.ended)


def with_rewards(run, beta, seed, k=1, estimate=lambda experience: experience, critic=False, responses=RESPONSES):
    """PPO's loop: `k` responses to a prompt, 64 an update."""
    preset = replace(run.preset, seed=seed, ppo_beta=beta, ppo_critic_updates=0, ppo_minibatch=64)
    policy, updates, n = copy.deepcopy(run.policy), responses // 64, 64 // k
    if not critic:
        policy = models.PolicyWithValueHead(run.sft).to(preset.device)
        preset = replace(preset, ppo_value_coef=0.0)

    def prompts(update):
        return [prompt for prompt in run.prompts("test", n, 1000 * seed + update) for _ in range(k)]

    with TemporaryDirectory() as folder:
        training = loops.new_run(Path(folder), policy, preset, "policy", steps=updates, lr=preset.ppo_lr)
        rest = (run.reference, run.reward, prompts, run.tokenizer)
        loops.align(training, preset, policy, *rest, estimate=estimate)
    return measure(run, policy.eval())


def group_relative(experience, k, of_group):
    advantages = of_group(experience.rewards.sum(1).view(-1, k)).flatten()
    return replace(experience, advantages=advantages[:, None] * experience.rollouts.response_mask)


def one_out(R):
    return R - (R.sum(1, keepdim=True) - R) / (R.shape[1] - 1)


def in_deviations(R):
    return (R - R.mean(1, keepdim=True)) / (R.std(1, keepdim=True) + 1e-4)


def only_the_order(experience, k=2):
    """RLOO that is told which of two responses scores higher, and not by how much."""
    s = experience.scores.view(-1, k)
    order = torch.where(s == s.amax(1, keepdim=True), 0.5, -0.5).flatten()
    penalty = experience.rewards.sum(1) - experience.scores
    return group_relative(replace(experience, rewards=(order + penalty)[:, None]), k, one_out)


def dpo(h, difference, beta):
    return -logsigmoid(beta * h).mean()


def ipo(h, difference, beta):
    return (h - 1 / (2 * beta)).square().mean()


def rewards_apart(h, difference, beta):
    """The optimum's own log-ratios: apart by the difference of the rewards over beta (REBEL, arXiv 2404.16767)."""
    return (h - difference / beta).square().mean()


def apart(lm, chosen, rejected):
    return evaluation.response_logprob(lm, chosen) - evaluation.response_logprob(lm, rejected)


def fitted(lm, batches, loss_of, optimizer, scheduler):
    for batch in batches:
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


def learner(run, steps, lr):
    lm = models.disable_dropout(models.load_lm(run.sft)).to(run.preset.device).train()
    optimizer = torch.optim.Adam(lm.parameters(), lr=lr, eps=1e-5, fused=True)
    return lm, optimizer, linear_schedule(optimizer, steps)


def shuffled(n, size, epochs):
    return [rows for _ in range(epochs) for rows in torch.randperm(n).split(size)]


def with_pairs(run, beta, seed, loss=dpo, responses=RESPONSES, k=2, rounds=1, drawn=False, epochs=3, lr=4e-4):
    """DPO and its kin, on all pairs of `k` responses to a prompt, which in each round the policy of then samples.

    The response with the higher score is preferred, or, if `drawn`, it is so with Bradley-Terry's probability.
    """
    pairs = torch.tensor(list(combinations(range(k), 2)))
    prompts = responses // k // rounds
    n = prompts * len(pairs)
    lm, *state = learner(run, rounds * epochs * -(-n // 16), lr)
    for turn in range(rounds):
        torch.manual_seed(1000 * seed + turn)
        asked = [p for p in run.prompts("test", prompts, 1000 * seed + turn) for _ in range(k)]
        batch = sample_rollouts(lm, asked, run.tokenizer, run.preset.ppo_new_tokens)
        found = scores(run, batch)
        a, b = (pairs[None] + k * torch.arange(prompts)[:, None, None]).view(-1, 2).unbind(1)
        difference = found[a] - found[b]
        swap = torch.rand(n) > difference.sigmoid() if drawn else difference < 0
        sides = batch[torch.where(swap, b, a)], batch[torch.where(swap, a, b)]
        difference = torch.where(swap, -difference, difference)
        with torch.no_grad():
            reference = apart(run.reference, *sides)

        def loss_of(rows, sides=sides, reference=reference, difference=difference):
            h = apart(lm, *(side[rows] for side in sides)) - reference[rows]
            return loss(h, difference[rows], beta)

        fitted(lm, shuffled(n, 16, epochs), loss_of, *state)
    return measure(run, lm.eval())


def with_chosen(run, n, seed, choose, lr=4e-4, responses=RESPONSES):
    """Fine-tuning on one response to each prompt, that of `n` which `choose` picks."""
    torch.manual_seed(seed)
    prompts, steps = responses // n, STEPS * responses // RESPONSES
    lm, *state = learner(run, steps, lr)
    asked = [p for p in run.prompts("test", prompts, 1000 * seed) for _ in range(n)]
    batch = sample_rollouts(lm, asked, run.tokenizer, run.preset.ppo_new_tokens)
    picked = choose(scores(run, batch).view(-1, n)) + n * torch.arange(prompts)
    batches = shuffled(prompts, 16, -(-steps * 16 // prompts))[:steps]
    fitted(lm, batches, lambda rows: preferences.response_loss(lm, batch[picked[rows]]), *state)
    return measure(run, lm.eval())


@torch.no_grad()
def best_of(run, n, seed):
    """Nothing is trained: the best of n answers of the SFT policy, by the reward."""
    prompts = run.prompts("validation", 512, run.preset.seed)
    batches = [sample(run, run.reference, prompts, 100 * seed + i) for i in range(n)]
    found = torch.stack([scores(run, batch) for batch in batches])
    best, texts = found.argmax(0).tolist(), [batch.texts(run.tokenizer) for batch in batches]
    chosen = [texts[i][row] for row, i in enumerate(best)]
    ended = torch.stack([batch.ended for batch in batches])[best, range(len(prompts))]
    return figures(run, evaluation.best_of_n_kl(n), found.amax(0), chosen, ended)


def rloo(run, beta, seed, k=4, of_group=one_out, responses=RESPONSES):
    return with_rewards(run, beta, seed, k, partial(group_relative, k=k, of_group=of_group), responses=responses)


def untrained(run, strength, seed):
    """The SFT policy, with the random numbers with which every trained policy is measured."""
    return measure(run, run.reference)


BETAS, SIZES = (1.0, 0.3, 0.1, 0.03), (2, 4, 8, 16)
METHODS = {  # what trains it, and its strengths, from the weakest on: a price of KL, or how many it chooses from
    "SFT": (untrained, [1]),
    "PPO": (partial(with_rewards, critic=True), BETAS),
    "RLOO": (rloo, BETAS),
    "GRPO": (partial(rloo, of_group=in_deviations), BETAS),
    "DPO": (with_pairs, (3.0, 1.0, 0.3, 0.1)),
    "IPO": (partial(with_pairs, loss=ipo), BETAS),
    "rejection sampling": (partial(with_chosen, choose=lambda s: s.argmax(1)), SIZES),
    "a random one of n": (partial(with_chosen, choose=lambda s: torch.randint(s.shape[1], s.shape[:1])), SIZES),
    "best of n": (best_of, SIZES),
}
CHANGES = {  # DPO with one thing changed, and RLOO, at strengths that end on either side of 0.75 nats
    "the rewards' difference": (partial(with_pairs, loss=rewards_apart), (1.0, 0.3, 0.1)),
    "fresh pairs in 8 rounds": (partial(with_pairs, rounds=8), (3.0, 1.0, 0.3)),
    "the rewards' difference, fresh in 8 rounds": (partial(with_pairs, loss=rewards_apart, rounds=8), (1.0, 0.3, 0.1)),
    "labels drawn by Bradley-Terry": (partial(with_pairs, drawn=True), (3.0, 1.0, 0.3)),
    "a quarter of the learning rate": (partial(with_pairs, lr=1e-4), (0.3, 0.03)),
    "one epoch": (partial(with_pairs, epochs=1), (0.3, 0.1, 0.03)),
    "all six pairs of four responses": (partial(with_pairs, k=4), (10.0, 3.0, 1.0, 0.3)),
    "four times the responses": (partial(with_pairs, responses=4 * RESPONSES), (10.0, 3.0, 1.0, 0.3)),
}
METHODS |= {f"DPO, {name}": change for name, change in CHANGES.items()}
told_less = partial(with_rewards, k=2, estimate=only_the_order)
METHODS |= {
    "RLOO, k = 2": (partial(rloo, k=2), (1.0, 0.3, 0.1)),
    "RLOO, k = 2, told the order": (told_less, (0.3, 0.1)),
}
LONG = 13_824  # responses, about as many as notebook 3's PPO has on tiny, and a multiple of all batches
AGAIN = {"PPO": (0.3, 0.1), "RLOO": (0.3, 0.1), "DPO": (1.0, 0.3), "rejection sampling": (4, 16)}
METHODS |= {f"{x}, {LONG:,} responses": (partial(METHODS[x][0], responses=LONG), AGAIN[x]) for x in AGAIN}


def jobs(names):
    for preset in after_notebooks_1_and_2("tiny", seeds=1):
        run = notebook_3(preset)
        for seed, name in product(SEEDS, names):
            train, strengths = METHODS[name]
            for strength in strengths:
                yield {"method": name, "strength": strength, "seed": seed}, partial(train, run, strength, seed)


def jobs_of_models(n=5):
    """PPO and DPO at two strengths. A seed trains the SFT and the reward model, too, and splits the data."""
    for preset in after_notebooks_1_and_2("tiny", n):
        run = notebook_3(preset)
        for name, strength in (("SFT", 1), ("PPO", 0.3), ("PPO", 0.1), ("DPO", 1.0), ("DPO", 0.3), ("best of n", 4)):
            what = {"method": name, "strength": strength, "seed": preset.seed}
            yield what, partial(METHODS[name][0], run, strength, preset.seed)


if __name__ == "__main__":
    prepare()
    asked = sys.argv[1:]
    runs = collect(MODELS, jobs_of_models()) if asked == ["models"] else collect(RESULTS, jobs(asked or METHODS))
    print(runs.groupby(["method", "strength"], sort=False).mean().round(2).to_string())
