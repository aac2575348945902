"""Puts a model on the Hugging Face Hub, with a model card made from the run's own figures."""

import json
import re
from importlib import metadata
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open

from rlhf_helpers.checks import LOG_IN, check

# what goes up, and nothing else: no checkpoint, no samples, no TensorBoard files
FILES = ["*config.json", "model*.safetensors*", "adapter_model.safetensors", "value_head.safetensors", "tokenizer.*"]
FILES += ["vocab.*", "merges.txt", "chat_template.jinja", "evaluation.json", "metrics.csv"]


def figures(evaluation: dict, of: str = "") -> list[tuple[str, float, str]]:
    """Name, value and 95 % interval of each number in an evaluation.json, those of several models one below another."""
    rows = []
    for name, value in evaluation.items():
        if isinstance(value, dict) and name != "intervals":
            rows += figures(value, f"{name} ")
        elif isinstance(value, int | float):
            interval = evaluation.get("interval") if name == "win_rate" else evaluation.get("intervals", {}).get(name)
            rows.append((of + name, value, "[{:.3f}, {:.3f}]".format(*interval) if interval else ""))
    return rows


def _hub_id(name: str) -> str | None:
    """`name` if it can be a Hub id; the path of a folder is private, and of no use to others."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("embedded") and not Path(name).exists()
    return name if is_id else None


def model_card(
    folder: Path, repo_id: str, *, about: str, prompt: str, base: str | None = None, run: Path | None = None
) -> ModelCard:
    """The card of the model in `folder`: how to load it, its figures, settings and limits.

    `about` is a sentence, `prompt` an example of what it reads, `base` the Hub id of the model that an adapter belongs
    to, `run` the folder of its training if that is another. Figures come from evaluation.json, else from metrics.csv.
    """
    folder, run = Path(folder), Path(run or folder)
    with safe_open(run / "checkpoint.safetensors", "pt") as checkpoint:
        settings = json.loads(checkpoint.metadata()["run"])["settings"]
    metrics = pd.read_csv(run / "metrics.csv")
    evaluation = {"last step": metrics.iloc[-1].drop(["step", "seconds"]).dropna().to_dict()}
    for path in (folder.parent / "evaluation.json", folder / "evaluation.json"):  # of all models of a notebook, or one
        evaluation = json.loads(path.read_text(encoding="utf-8")) if path.exists() else evaluation
    adapter = (folder / "adapter_config.json").exists()
    scores = not adapter and "ForSequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
    model, dataset = (settings.pop(what) for what in ("model", "dataset"))
    embedded = {name: "the series' own" for name in (model, dataset) if name.startswith("embedded")}
    project = next(iter(metadata.distributions(name="rlhf-in-notebooks")), None)
    return ModelCard.from_template(
        ModelCardData(
            base_model=base or _hub_id(model),
            datasets=_hub_id(dataset),
            library_name="peft" if adapter else "transformers",
            license="mit" if model in (*embedded, "openai-community/gpt2") else None,
            pipeline_tag="text-classification" if scores else "text-generation",
            tags=["rlhf"],
        ),
        template_path=str(Path(__file__).with_name("model_card.md")),
        repo_id=repo_id, title=repo_id.split("/")[-1], about=about, prompt=repr(prompt), adapter=adapter, scores=scores,
        tiny=model in embedded, rows=figures(evaluation), steps=len(metrics), settings=settings,
        base=embedded.get(model) or _hub_id(model) or "a local folder",
        dataset=embedded.get(dataset) or _hub_id(dataset) or "a local folder",
        url=project and project.metadata["Project-URL"].split(", ")[-1],
        command="make tutorial" if folder.parent.name == settings["name"] else "make tutorial beyond",
    )  # fmt: skip


def push(folder: Path, repo_id: str | None, *, private: bool = True, **card) -> str:
    """Puts the model in `folder` on the Hub as `repo_id`, in one commit; what came of it, in words.

    With `repo_id` None nothing is sent, and what would be is listed. `card` goes to `model_card`. Raises ValueError if
    the name, or an adapter's base, won't do; PermissionError if the Hub refuses; ConnectionError if it can't be had.
    """
    folder, api = Path(folder), HfApi()
    names = sorted({path.name for pattern in FILES for path in folder.glob(pattern)})
    if not any(name.startswith(("model", "adapter_model")) for name in names):
        raise FileNotFoundError(f"{folder} holds no finished model: run the cells above first")
    text = str(model_card(folder, repo_id or "your-name/your-model", **card))
    if repo_id is None:
        size = sum((folder / name).stat().st_size for name in names) / 1e6
        return f"nothing was pushed. With a repo_id these go up, {size:.1f} MB: README.md, {', '.join(names)}"
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        config = json.loads(adapter.read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"] = card.get("base") or _hub_id(config["base_model_name_or_path"])
        check(base, "the adapter's base is only on this machine: push it, and give its Hub id as `base`")
    (folder / "README.md").write_text(text, encoding="utf-8")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if adapter.exists():  # as others need it: here it names a folder
            names.remove(adapter.name)
            content = json.dumps(config, indent=2).encode()
            api.upload_file(path_or_fileobj=content, path_in_repo=adapter.name, repo_id=repo_id)
        commit = api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=[*names, "README.md"])
    except ValueError:  # a name that can't be
        raise
    except Exception as error:  # of the Hub's library, of httpx or of hf_xet
        reason = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
        if getattr(getattr(reason, "response", None), "status_code", None) in (401, 403):
            raise PermissionError(
                f"the Hub refuses to write {repo_id}: {reason}\n{LOG_IN} The token must be one that may write, and "
                "the name before the slash yours. Nothing here was changed: run this cell again."
            ) from error
        raise ConnectionError(f"{repo_id} can't be pushed now: {reason}. Run this cell again.") from error
    note = ", private until you change that there" if private else ""
    return f"{repo_id}: the model and its card are at {commit.commit_url}{note}"
