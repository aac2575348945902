"""Puts a model on the Hugging Face Hub, with a model card made from the run's own figures."""

import json
import re
from importlib import metadata
from pathlib import Path

import pandas as pd
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import safe_open

from rlhf_helpers.checks import LOG_IN
from rlhf_helpers.environment import PROJECT

# what goes up, and nothing else: no checkpoint, no samples, no TensorBoard files
FILES = ["*config.json", "model*.safetensors*", "adapter_model.safetensors", "value_head.safetensors", "tokenizer.*"]
FILES += ["vocab.*", "merges.txt", "special_tokens_map.json", "chat_template.jinja", "evaluation.json", "metrics.csv"]


def files(folder: Path, run: Path | None = None) -> dict[str, Path]:
    """What a push sends from `folder`, by the name it gets there. Raises FileNotFoundError if it holds no model."""
    found = {path.name: path for pattern in FILES for path in sorted(Path(folder).glob(pattern))}
    if not any(name.startswith(("model", "adapter_model")) for name in found):
        raise FileNotFoundError(f"{folder} holds no finished model: run the cells above first")
    # a notebook of beyond/ evaluates all its models at once, and an adapter's run may have a folder of its own
    elsewhere = [Path(folder).parent / "evaluation.json", Path(run or folder) / "metrics.csv"]
    return {path.name: path for path in elsewhere if path.exists()} | found


def _is_ours(name: str) -> bool:
    """Whether a preset's settings mean what is embedded in rlhf_helpers/tiny."""
    return name.startswith("embedded")


def _hub_id(name: str) -> str | None:
    """`name` if it can be a Hub id; the path of a folder is private, and of no use to others."""
    return name if not _is_ours(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def figures(evaluation: dict, of: str = "") -> list[tuple[str, str, float, str]]:
    """Whose, which, how much, and the 95 % interval, of each number in an evaluation.json."""
    rows = []
    for name, value in evaluation.items():
        if isinstance(value, dict) and name != "intervals":
            rows += figures(value, name)
        elif isinstance(value, int | float):
            interval = evaluation.get("interval") if name == "win_rate" else evaluation.get("intervals", {}).get(name)
            rows.append((of, name, value, "[{:.3f}, {:.3f}]".format(*interval) if interval else ""))
    return rows


def model_card(
    folder: Path, repo_id: str, *, about: str, prompt: str, base: str | None = None, run: Path | None = None
) -> ModelCard:
    """The card of the model in `folder`: how to load it, its figures, settings and limits.

    `about` is a sentence, `prompt` an example of what it reads, `base` the Hub id of the model that an
    adapter belongs to, `run` the folder of its training if that is another. Figures come from
    evaluation.json, else from the last row of metrics.csv; settings from the checkpoint.
    """
    sent = files(folder, run)
    with safe_open(Path(run or folder) / "checkpoint.safetensors", "pt") as checkpoint:
        settings = json.loads(checkpoint.metadata()["run"])["settings"]
    metrics = pd.read_csv(sent["metrics.csv"])
    evaluation = {"last step": metrics.iloc[-1].drop(["step", "seconds"]).dropna().to_dict()}
    if "evaluation.json" in sent:
        evaluation = json.loads(sent["evaluation.json"].read_text(encoding="utf-8"))
    rows = figures(evaluation)
    adapter = "adapter_config.json" in sent
    scores = not adapter and "ForSequenceClassification" in sent["config.json"].read_text(encoding="utf-8")
    task = "text-classification" if scores else "text-generation"
    names = {what: settings.pop(what) for what in ("model", "dataset")}
    ids = {what: _hub_id(name) for what, name in names.items()}
    ours = {what: _is_ours(name) for what, name in names.items()}
    origin = {what: ids[what] or ("the series' own" if ours[what] else "a local folder") for what in names}
    project = next(iter(metadata.distributions(name=PROJECT)), None)
    return ModelCard.from_template(
        ModelCardData(
            base_model=base or ids["model"],
            datasets=[ids["dataset"]] if ids["dataset"] else None,
            library_name="peft" if adapter else "transformers",
            license="mit" if ours["model"] or ids["model"] == "openai-community/gpt2" else None,
            pipeline_tag=task,
            tags=["rlhf"],
            model_name=(title := repo_id.split("/")[-1]),
            eval_results=[
                EvalResult(task, ids["dataset"] or "own", origin["dataset"], name, value)
                for of, name, value, _ in rows
                if of == rows[-1][0]  # of several models, the last is this one
            ],
        ),
        template_path=str(Path(__file__).with_name("model_card.md")),
        repo_id=repo_id, title=title, about=about, prompt=repr(prompt), adapter=adapter, scores=scores,
        tiny=ours["model"], origin=origin, rows=rows, steps=len(metrics), seconds=metrics["seconds"].sum(),
        settings=settings,
        url=project and project.metadata["Project-URL"].split(", ")[-1],
        command="make tutorial" if Path(folder).parent.name == settings["name"] else "make tutorial beyond",
    )  # fmt: skip


def push(folder: Path, repo_id: str | None, *, private: bool = True, **card) -> str:
    """Puts the model in `folder` on the Hub as `repo_id`, in one commit; what came of it, in words.

    With `repo_id` None nothing is sent, and what would be is listed. `card` goes to `model_card`.
    `folder` stays as it is, but for the README.md that is written into it. Raises ValueError if the
    name, or an adapter's base, won't do; PermissionError if the Hub refuses; ConnectionError if it
    can't be had.
    """
    folder, sent = Path(folder), files(folder, card.get("run"))
    text = str(model_card(folder, repo_id or "your-name/your-model", **card))
    if repo_id is None:
        size = sum(path.stat().st_size for path in sent.values()) / 1e6
        return f"nothing was pushed. With a repo_id these go up, {size:.1f} MB: README.md, {', '.join(sorted(sent))}"
    contents: dict[str, Path | bytes] = dict(sent)
    if "adapter_config.json" in sent:
        adapter = json.loads(sent["adapter_config.json"].read_bytes())
        base = card.get("base") or _hub_id(adapter["base_model_name_or_path"])
        if base is None:
            raise ValueError("the adapter's base is only on this machine: push it, and give its Hub id as `base`")
        contents["adapter_config.json"] = json.dumps(adapter | {"base_model_name_or_path": base}, indent=2).encode()
    (folder / "README.md").write_text(text, encoding="utf-8")
    contents["README.md"] = folder / "README.md"
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        commit = api.create_commit(repo_id, operations, commit_message="A model, its figures and its card")
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} can't be the name of a model: {error}") from error
    except Exception as error:  # of the Hub's library, of httpx or of hf_xet
        reason = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
        if getattr(getattr(reason, "response", None), "status_code", None) in (401, 403):
            raise PermissionError(
                f"the Hub refuses to write {repo_id}: {reason}\n{LOG_IN} The token must be one that may write, and "
                "the name before the slash yours. Nothing here was changed: run this cell again."
            ) from error
        raise ConnectionError(
            f"{repo_id} can't be pushed now: {reason}\nNothing here was changed: run this cell again. What has "
            "arrived is not sent twice, and what others see is the old or the new model, never half of one."
        ) from error
    note = ", private until you change that there" if private else ""
    return f"{repo_id}: {len(contents)} files are at {commit.commit_url}{note}"
