"""A page on which base, SFT and PPO complete one prompt, each token with its reward: `make play`.

NiceGUI serves it, to this machine alone; its labels show text as text, and nothing comes from outside.
"""

import asyncio
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_helpers import data, judges
from rlhf_helpers.beyond.loops import normalised
from rlhf_helpers.checks import check
from rlhf_helpers.environment import quiet
from rlhf_helpers.models import RewardModel, freeze, load_lm
from rlhf_helpers.plots import BLUE, ORANGE
from rlhf_helpers.presets import Preset, load_preset
from rlhf_helpers.rollouts import sample_rollouts

MAX_CHARACTERS = 300
LEGEND = (
    "Under each token: the reward if the text ended there, in standard deviations of what SFT writes; "
    "orange below 0, blue above. The prompt is underlined."
)
STYLE = """
.nicegui-content { max-width: 80rem; margin: auto; gap: .75rem; align-items: stretch }
.text { overflow-wrap: anywhere; unicode-bidi: isolate } .q-btn { overflow-wrap: anywhere }
.columns { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
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
    policies: dict[str, Any]  # base, SFT, PPO
    reward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids, mask -> (B,), in standard deviations of SFT's
    examples: list[str]  # prompts from the validation split
    seen: set[str]  # the words of the training split


def words(text: str) -> list[str]:
    """Words and punctuation marks, each once, in order."""
    return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", text)))


def load(preset: Preset) -> Playground:
    """The models of notebooks 1 to 3. Raises what `Preset.require` does where one is missing or damaged."""
    sft, scorer, policy = (preset.require(stage) for stage in ("sft", "reward_model", "policy"))
    paths = {"base": preset.model, "SFT": str(sft), "PPO": str(policy)}
    policies: dict[str, Any] = {name: freeze(load_lm(path)).to(preset.device) for name, path in paths.items()}
    reward_model = freeze(RewardModel.from_pretrained(scorer)).to(preset.device)
    tokenizer, reviews = data.load_tokenizer(str(sft)), data.load_sentences(preset.dataset, preset.seed)

    def prompts(split: str, n: int, seed: int) -> list[list[int]]:
        rows = data.encode(reviews[split]["sentence"], tokenizer, preset.max_tokens)
        return data.sample_prompts(rows, n, preset.ppo_prompt_tokens, seed)

    torch.manual_seed(preset.seed)  # from here on as in notebook 3, so that a standard deviation is the same
    some, n = prompts("test", 512, preset.seed + 1), preset.ppo_new_tokens
    samples = [sample_rollouts(policies["SFT"], some[i : i + 128], tokenizer, n) for i in range(0, 512, 128)]
    examples = data.decode(prompts("validation", 4, preset.seed), tokenizer)
    seen = set(words("\n".join(reviews["train"]["sentence"])))
    return Playground(preset, tokenizer, policies, normalised(reward_model, samples, preset), examples, seen)


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


def complete(playground: Playground, prompt: list[int], seed: int) -> dict[str, dict]:
    """What each policy makes of a prompt (ids), by its name; the same seed, the same text.

    `tokens`: prompt and response as (text, score if the whole ended there), without the
    end-of-text. `score` is that of the whole as it is, which `ended` or has no end-of-text.
    """
    preset, tokenizer, completions = playground.preset, playground.tokenizer, {}
    for name, policy in playground.policies.items():
        generator = torch.Generator(preset.device).manual_seed(seed)
        rollout = sample_rollouts(policy, [prompt], tokenizer, preset.ppo_new_tokens, generator)
        (text,), ended = rollout.texts(tokenizer), bool(rollout.ended)
        ids = rollout.input_ids[0, : -1 if ended else None].tolist()
        prefixes = [[*ids[: i + 1], tokenizer.eos_token_id] for i in range(len(ids))]
        batch = [x.to(preset.device) for x in data.pad(prefixes, tokenizer.pad_token_id)]
        scores = playground.reward(*batch).tolist()
        completions[name] = {
            "text": text,
            "tokens": [(str(tokenizer.decode(i)).strip() or "␣", score) for i, score in zip(ids, scores)],
            "score": playground.reward(rollout.input_ids, rollout.attention_mask).item(),
            "ended": ended,
            "verdict": "positive" if judges.JUDGES[preset.judge]([text])[0] else "not positive",
        }
    return completions


def serve(playground: Playground) -> None:
    """Serves the page at a free port until interrupted. One completion runs at a time."""
    from nicegui import app, native, run, ui  # of the extra "play"

    one_at_a_time = asyncio.Lock()

    def show_token(text: str, score: float, kind: str = "") -> None:
        with ui.element("span").classes(f"token {kind}").style(f"background: {colour(score)}"):
            ui.label(text).classes("text")
            ui.label(f"{score:+.2f}").classes("number")

    def show(name: str, result: dict, prompt_tokens: int) -> None:
        with ui.element("section").props(f'aria-label="{name}"'):
            ui.label(name).classes("title").props("role=heading aria-level=2")
            ui.label(result["text"]).classes("text whole")
            with ui.element("div"):
                for i, (text, score) in enumerate(result["tokens"]):
                    show_token(text, score, "prompt" if i < prompt_tokens else "")
            ui.label(f"Score {result['score']:+.2f}" + ("" if result["ended"] else ", without an end-of-text"))
            ui.label(f"Judge: {result['verdict']}")

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
                    results = await run.io_bound(complete, playground, ids, seed)
                with columns:
                    for name, result in results.items():
                        show(name, result, len(ids))
            except (ValueError, FloatingPointError) as error:
                alert.set_text(str(error))
            finally:
                button.enable()

        ui.add_css(STYLE)
        ui.label("One prompt, three models").classes("title").props("role=heading aria-level=1")
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
        playground = load(load_preset())
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    serve(playground)


if __name__ == "__main__":
    main()
