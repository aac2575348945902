"""A page on which base, SFT and both PPO policies complete one prompt, each token with its reward: `make play`.

NiceGUI serves it, to this machine alone; its labels show text as text, and nothing comes from outside.
"""

import asyncio
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from rlhf_helpers import data, judges
from rlhf_helpers.beyond.loops import normalised
from rlhf_helpers.checks import check, differences, loading
from rlhf_helpers.environment import quiet
from rlhf_helpers.evaluation import response_logprob
from rlhf_helpers.models import RewardModel, freeze, load_lm
from rlhf_helpers.plots import BLUE, ORANGE
from rlhf_helpers.presets import NOTEBOOKS, Preset, load_preset
from rlhf_helpers.rollouts import Rollouts, sample_rollouts
from rlhf_helpers.tiny import grammar

MAX_CHARACTERS = 300
LEGEND = (
    "Under each token: the reward if the text ended there, in standard deviations of what SFT writes; "
    "orange below 0, blue above. The prompt is underlined."
)
UNLIKELY = (
    "A response is called unlikely as a review if SFT, a model of reviews, gives its tokens more nats (a lower "
    "probability) than 95 % of what SFT writes. That finds words out of order and misses most small mistakes: a low "
    "probability may also mean rare words, and a usual one is no proof of a good sentence."
)
STYLE = """
.nicegui-content { max-width: 80rem; margin: auto; gap: .75rem; align-items: stretch }
.text { overflow-wrap: anywhere; unicode-bidi: isolate } .q-btn { overflow-wrap: anywhere }
.columns { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)) }
.columns > * { border: 1px solid #8888; border-radius: .5rem; padding: .75rem; min-width: 0 }
.title { font-size: 1.4rem; font-weight: 600 } .alert { color: #B3261E } .body--dark .alert { color: #FFB4AB }
.token { display: inline-block; text-align: center; padding: 0 .3rem; margin: .1rem; border-radius: .25rem }
.number { font-size: .75rem; font-variant-numeric: tabular-nums } .prompt .text { text-decoration: underline dotted }
"""


@dataclass
class Playground:
    """What is loaded once."""

    preset: Preset
    tokenizer: PreTrainedTokenizerBase
    policies: dict[str, Any]  # base, SFT, PPO and, where notebook 3 has trained it, PPO at beta 0
    reward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids, mask -> (B,), in standard deviations of SFT's
    second_judge: judges.Judge | None
    unlikely: float  # nats per token: SFT gives fewer to 95 % of its own responses
    examples: list[str]  # prompts from the validation split
    seen: set[str]  # the words of the training split
    notes: list[str]  # what is missing, and how to get it


def words(text: str) -> list[str]:
    """Words and punctuation marks, each once, in order."""
    return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", text)))


def finished_preset() -> tuple[Preset, str]:
    """The preset in RLHF_PRESET, else the one whose notebook 3 was finished last; and why it is that one.

    Its lengths, rates and the like are those of the policy it left, whatever a configuration cell made of them.
    Raises FileNotFoundError where no preset has all three notebooks finished.
    """
    folder, name, why = Path(os.environ.get("RLHF_ARTIFACTS") or "artifacts"), None, "RLHF_PRESET is set to it"
    if not os.environ.get("RLHF_PRESET"):
        records = {path.name: [path / stage / "artifact.json" for stage in NOTEBOOKS] for path in folder.glob("*")}
        finished = {name: paths[-1] for name, paths in records.items() if all(path.exists() for path in paths)}
        if not finished:
            raise FileNotFoundError(f"{folder} holds no preset with all three notebooks finished. Run `make tutorial`.")
        name = max(finished, key=lambda name: finished[name].stat().st_mtime)
        why = f"finished in {folder}: {', '.join(sorted(finished))}" + (", this one last" if len(finished) > 1 else "")
    preset = load_preset(name, why)
    record = preset.folder("policy") / "artifact.json"
    saved = json.loads(record.read_text(encoding="utf-8"))["settings"] if record.exists() else {}
    own = {k: v for k, v in saved.items() if k.startswith(("max_", "sft_", "rm_", "ppo_"))}
    return replace(preset, **own), why


def free_policy(preset: Preset) -> Any | None:
    """The policy that notebook 3 trained without a price on the KL, from its last checkpoint.

    None where that run is not there, not finished, or of other settings.
    """
    path = preset.folder("policy") / "beta_0" / "checkpoint.safetensors"
    if not path.exists():
        return None
    with loading(f"the policy of beta 0 in {path}"), safe_open(path, "pt") as file, torch.no_grad():
        run = json.loads(file.metadata()["run"])
        run["settings"].pop("made_from", None)
        if run["done"] < run["steps"] or differences(run["settings"], replace(preset, ppo_beta=0.0).settings("policy")):
            return None
        lm = load_lm(str(preset.folder("policy")))
        for name, weights in lm.named_parameters():
            weights.copy_(file.get_tensor(f"model.lm.{name}"))
    return lm


def load(preset: Preset) -> Playground:
    """The models of notebooks 1 to 3. Raises what `Preset.require` does where one is missing or damaged."""
    sft, scorer, policy = (preset.require(stage) for stage in ("sft", "reward_model", "policy"))
    paths, notes = {"base": preset.model, "SFT": str(sft), "PPO": str(policy)}, []
    policies: dict[str, Any] = {name: load_lm(path) for name, path in paths.items()}
    if (free := free_policy(preset)) is not None:
        policies["PPO, beta 0"] = free
    else:
        notes.append(
            "To see PPO without a price on the KL too (beta 0), run notebook 3 with these settings to the end of its "
            f'section "Reward hacking", which trains it and leaves it in {policy / "beta_0"}.'
        )
    policies = {name: freeze(lm).to(preset.device) for name, lm in policies.items()}
    second_judge = None
    if preset.second_judge:
        try:
            second_judge = judges.classifier_judge(preset.second_judge)
        except OSError as error:
            notes.append(f"The second judge, {preset.second_judge}, can't be had: {str(error).splitlines()[0]}")
    reward_model = freeze(RewardModel.from_pretrained(scorer)).to(preset.device)
    tokenizer, reviews = data.load_tokenizer(str(sft)), data.load_sentences(preset.dataset, preset.seed)

    def prompts(split: str, n: int, seed: int) -> list[list[int]]:
        rows = data.encode(reviews[split]["sentence"], tokenizer, preset.max_tokens)
        return data.sample_prompts(rows, n, preset.ppo_prompt_tokens, seed)

    torch.manual_seed(preset.seed)  # from here on as in notebook 3, so that a standard deviation is the same
    some, n = prompts("test", 512, preset.seed + 1), preset.ppo_new_tokens
    samples = [sample_rollouts(policies["SFT"], some[i : i + 128], tokenizer, n) for i in range(0, 512, 128)]
    surprise = torch.cat([-batch.logprobs.sum(1) / batch.response_mask.sum(1) for batch in samples])
    return Playground(
        preset, tokenizer, policies, normalised(reward_model, samples, preset), second_judge,
        unlikely=surprise.quantile(0.95).item(),
        examples=data.decode(prompts("validation", 4, preset.seed), tokenizer),
        seen=set(words("\n".join(reviews["train"]["sentence"]))), notes=notes,
    )  # fmt: skip


def read_prompt(text: str, playground: Playground) -> list[int]:
    """Token ids of what was typed; an end-of-text in it is text like any other. Raises ValueError, made to be shown."""
    check(len(text) <= MAX_CHARACTERS, f"The prompt is longer than {MAX_CHARACTERS} characters. Shorten it.")
    text = text.strip()
    check(text, "The prompt is empty. Type the first words of a review.")
    for c in text:  # control characters, and halves of a character
        wrong = unicodedata.category(c) in ("Cc", "Cs")
        check(not wrong, f"The prompt holds the control character U+{ord(c):04X}. Remove it.")
    (ids,) = data.encode([text], playground.tokenizer, end=False)
    # as long as a text in training, less the response and the end-of-text that a score needs
    most = playground.preset.max_tokens - playground.preset.ppo_new_tokens - 1
    check(len(ids) <= most, f"The prompt has {len(ids)} tokens, and there is room for {most}. Shorten it.")
    return ids


def read_seed(value: float | None) -> int:
    """Raises ValueError, made to be shown, unless it is a whole number from 0 to 2^31 - 1."""
    whole = value is not None and 0 <= value < 2**31 and value == int(value)
    check(whole, "The seed must be a whole number from 0 to 2147483647.")
    return int(value or 0)


def colour(score: float) -> str:
    """#RRGGBBAA, diverging around 0 and transparent there; never so full that text could not be read on it."""
    return f"{BLUE if score > 0 else ORANGE}{round(0x99 * min(abs(score) / 2, 1)):02X}"


def verdicts(playground: Playground, rollout: Rollouts, text: str) -> list[str]:
    """What the judges say of a text's sentiment, and whether it is a sentence at all; a line each."""
    if playground.preset.judge == "grammar":
        verdict = {1: "positive", 0: "negative", None: "not a sentence of the grammar"}
        return [f"Grammar: {verdict[grammar.judge(text)]}"]
    lines = [f"VADER: {'positive' if judges.vader_judge([text])[0] else 'not positive'}"]
    if playground.second_judge:
        name = Path(str(playground.preset.second_judge)).name
        lines.append(f"{name}: {'positive' if playground.second_judge([text])[0] else 'negative'}")
    with torch.no_grad():
        nats = -response_logprob(playground.policies["SFT"], rollout).item() / int(rollout.response_mask.sum())
    limit = playground.unlikely
    verdict = "unlikely as a review" if nats > limit else "as likely as a review of SFT"
    return [*lines, f"{verdict}: SFT gives it {nats:.2f} nats per token, and 95 % of its own are below {limit:.2f}"]


def complete(
    playground: Playground, name: str, prompt: list[int], seed: int, on_token: Callable[[int], object] = bool
) -> dict:
    """What the policy `name` makes of a prompt (ids); the same seed, the same text.

    `on_token` is called with each token's id as it is sampled, the end-of-text too. `tokens`: prompt and
    response as (text, score if the whole ended there), without the end-of-text. `score` is that of
    the whole as it is, which `ended` or has no end-of-text.
    """
    preset, tokenizer = playground.preset, playground.tokenizer
    generator = torch.Generator(preset.device).manual_seed(seed)
    rollout = sample_rollouts(
        playground.policies[name], [prompt], tokenizer, preset.ppo_new_tokens, generator,
        on_tokens=lambda rows, ids: on_token(ids.item()),
    )  # fmt: skip
    (text,), ended = rollout.texts(tokenizer), bool(rollout.ended)
    ids = rollout.input_ids[0, : -1 if ended else None].tolist()
    return {
        "text": text,
        "tokens": list(zip((token_text(playground, i) for i in ids), rewards_so_far(playground, ids))),
        "score": playground.reward(rollout.input_ids, rollout.attention_mask).item(),
        "ended": ended,
        "verdicts": verdicts(playground, rollout, text),
    }


def rewards_so_far(playground: Playground, ids: list[int]) -> list[float]:
    """The reward at each token of a text (ids, without the end-of-text) if the text ended there."""
    tokenizer = playground.tokenizer
    beginnings = [[*ids[: i + 1], tokenizer.eos_token_id] for i in range(len(ids))]
    batch = [x.to(playground.preset.device) for x in data.pad(beginnings, tokenizer.pad_token_id)]
    return playground.reward(*batch).tolist()


def token_text(playground: Playground, token_id: int) -> str:
    return str(playground.tokenizer.decode(token_id)).strip() or "␣"


def serve(playground: Playground) -> None:
    """Serves the page at a free port until interrupted. One completion runs at a time."""
    from nicegui import app, native, run, ui  # of the extra "play"

    one_at_a_time = asyncio.Lock()

    async def show(name: str, ids: list[int], seed: int) -> None:
        """A section for the policy `name`: its tokens as they are sampled, then their rewards and the verdicts."""
        loop, sampled, numbers = asyncio.get_running_loop(), asyncio.Queue(), []

        def show_token(token_id: int, kind: str = "") -> None:
            with boxes, ui.element("span").classes(f"token {kind}") as box:
                ui.label(token_text(playground, token_id)).classes("text")
                numbers.append((box, ui.label().classes("number")))

        def sample() -> dict:
            try:
                return complete(playground, name, ids, seed, lambda i: loop.call_soon_threadsafe(sampled.put_nowait, i))
            finally:
                loop.call_soon_threadsafe(sampled.put_nowait, None)

        with ui.element("section").props(f'aria-label="{name}" aria-busy=true') as section:
            ui.label(name).classes("title").props("role=heading aria-level=2")
            text = ui.label(playground.tokenizer.decode(ids)).classes("text whole")
            boxes, below = ui.element("div"), ui.element("div")
        for i in ids:
            show_token(i, "prompt")
        written, task = list(ids), asyncio.create_task(run.io_bound(sample))
        while (i := await sampled.get()) is not None:
            if i != playground.tokenizer.eos_token_id:
                written.append(i)
                text.set_text(playground.tokenizer.decode(written))
                show_token(i)
        result = await task
        text.set_text(result["text"])
        for (box, number), (_, score) in zip(numbers, result["tokens"]):
            box.style(f"background: {colour(score)}")
            number.set_text(f"{score:+.2f}")
        with below:
            ui.label(f"Score {result['score']:+.2f}" + ("" if result["ended"] else ", without an end-of-text"))
            for verdict in result["verdicts"]:
                ui.label(verdict)
        section.props("aria-busy=false")

    def page() -> None:
        async def on_complete() -> None:
            if not button.enabled:  # Enter, while a completion runs
                return
            button.disable()
            alert.set_text("")
            note.set_text("")
            columns.clear()
            try:
                ids, seed = read_prompt(prompt.value, playground), read_seed(number.value)
                if unknown := [word for word in words(prompt.value) if word not in playground.seen]:
                    note.set_text(f"The training sentences never use: {'  '.join(unknown)}")
                async with one_at_a_time:
                    for name in playground.policies:
                        with columns:
                            await show(name, ids, seed)
            except (ValueError, FloatingPointError) as error:
                alert.set_text(str(error))
            finally:
                button.enable()

        ui.add_css(STYLE)
        ui.label(f"One prompt, {len(playground.policies)} models").classes("title").props("role=heading aria-level=1")
        prompt = ui.input("Prompt", value=playground.examples[0]).props(f"outlined maxlength={MAX_CHARACTERS + 1}")
        prompt.on("keydown.enter", on_complete)
        with ui.row().props('role=group aria-label="Example prompts"'):
            for example in playground.examples:
                ui.button(example, on_click=lambda example=example: prompt.set_value(example)).props("no-caps outline")
        with ui.row():
            number = ui.number("Seed", value=1, precision=0).props("outlined dense")
            button = ui.button("Complete", on_click=on_complete)
        alert = ui.label().classes("text alert").props("role=alert")
        note = ui.label().classes("text").props("role=status")
        ui.label(LEGEND)
        if playground.preset.judge != "grammar":
            ui.label(UNLIKELY)
        for line in playground.notes:
            ui.label(line).classes("text")
        columns = ui.element("div").classes("columns").props("aria-live=polite")

    port = native.find_open_port()
    app.on_startup(lambda: print(f"The playground: http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True))
    ui.run(
        page, host="127.0.0.1", port=port, title="RLHF playground", dark=None, language="en-US", show=False,
        reload=False, show_welcome_message=False,
    )  # fmt: skip


def main() -> None:
    if find_spec("nicegui") is None:
        sys.exit("The playground needs NiceGUI. `make play` installs it; or pip install -e '.[play]'")
    quiet()
    try:
        preset, why = finished_preset()
        print("Loading the models and drawing 512 samples of SFT, the unit of the reward: minutes for a large model")
        playground = load(preset)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    playground.notes.insert(0, f"Preset {preset.name} ({why}).")
    serve(playground)


if __name__ == "__main__":
    main()
