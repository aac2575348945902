"""docs/after-training.md: its blocks, taken from the page, run from top to bottom as a reader would run them.

Once on the models of `tiny`; once on small ones of SmolLM2's architecture, with its own tokenizer, where `make smollm2`
has fetched that. A block whose program is not there is skipped and says so; pip installs into the test's folder.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import untrained
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_helpers import data, models, presets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "after-training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
TITLES = [re.findall(r"^## (.*)$", PAGE.partition(text)[0], re.M)[-1] for _, text in BLOCKS]
NO_INDEX = ("Failed to establish a new connection", "Could not find a version that sat")


def small_smollm2(folder: Path) -> Path:
    """A random model of two layers, with SmolLM2's heads of 64 dimensions and its tokenizer."""
    base = ROOT / presets.SMOLLM2
    if not base.exists():
        pytest.skip(f"{base} is not there; make smollm2 fetches it")
    config = AutoConfig.from_pretrained(base, num_hidden_layers=2, hidden_size=128, intermediate_size=256)
    config.num_attention_heads, config.num_key_value_heads, config.initializer_range = 2, 1, 0.1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    data.load_tokenizer(str(base)).save_pretrained(folder)
    return folder


def add_adapter(artifacts: Path) -> None:
    """What Beyond 1 leaves: an adapter that names its base, the SFT policy, by the path that it was loaded from."""
    lm, tokenizer = models.load_lm(str(artifacts / "sft")), data.load_tokenizer(str(artifacts / "sft"))
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(lm, config)
    for name, weights in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    for part in (adapted, tokenizer):
        part.save_pretrained(artifacts / "beyond-1" / "adapter")


class Reader:
    """Runs the blocks in a folder: Python in one session, servers in the background until the next one starts."""

    def __init__(self, preset: str):
        self.preset, self.names, self.outcomes, self.server = preset, {}, [], None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.environment["PYTHONPATH"] = str(Path("site").resolve())
        self.environment.pop("HF_HUB_OFFLINE", None)

    def lacks(self, text: str) -> str | None:
        """Why a block can't run here."""
        tiny, vllm = self.preset == "tiny", Path(".vllm").exists()
        serving = find_spec("fastapi") and find_spec("uvicorn")
        reasons = [
            ("transformers serve", not serving, "FastAPI is not installed; make play does it"),
            ("transformers chat", tiny, "tiny has no chat template"),
            ("transformers chat", not self.server, "no server runs"),
            ("curl", not self.server, "no server runs"),
            ("--outfile", tiny, "llama.cpp does not know tiny's tokenizer"),
            ("--outfile", not list(Path().glob("llama_cpp_python-*/")), "the converter is not here"),
            ("import xllamacpp", not Path("my-policy.gguf").exists(), "there is no GGUF"),
            ("ollama create", not shutil.which("ollama"), "Ollama is not installed"),
            ("-m venv .vllm", vllm, "the root's .vllm is taken"),
            ("-m venv .vllm", not vllm, "3.5 GB: to have vLLM tested, run this block in the root"),
            ("api_server", tiny, "vLLM's attention on a CPU has no kernel for tiny's heads"),
            ("api_server", not vllm, "vLLM is not in the root's .vllm"),
        ]
        return next((why for part, lacking, why in reasons if part in text and lacking), None)

    def run(self, language: str, text: str) -> str | Exception:
        """What a block prints, or the exception that it ended in."""
        text = text.replace("artifacts/tiny", f"artifacts/{self.preset}").replace("8000", self.port)
        try:
            if reason := self.lacks(text):
                pytest.skip(reason)
            if language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(text, str(ROOT / "docs" / "after-training.md"), "exec"), self.names)
                return printed.getvalue()
            return self.serve(text) if "--port" in text else self.shell(text)
        except (Exception, pytest.skip.Exception) as outcome:
            return outcome

    def shell(self, text: str) -> str:
        text = text.replace("pip install", "pip install --target site")
        done = subprocess.run(
            ["bash", "-ec", text], input="What is a film?\n!exit\n!exit\n", capture_output=True, text=True,
            env=self.environment, timeout=400,
        )  # fmt: skip
        if "pip" in text and any(sign in done.stderr for sign in NO_INDEX):
            pytest.skip("no package index answers")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serve(self, text: str) -> str:
        self.stop()
        with open("server.log", "w") as log:
            self.server = subprocess.Popen(
                ["bash", "-c", text], stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://localhost:{self.port}/health"):
                return "it answers"
            assert self.server.poll() is None, Path("server.log").read_text()
            time.sleep(1)
        raise TimeoutError(Path("server.log").read_text())

    def stop(self) -> None:
        if self.server:
            os.killpg(self.server.pid, signal.SIGTERM)  # vLLM has processes of its own
            self.server.wait(30)
            self.server = None


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def reader(request, tmp_path_factory):
    """A reader who has been through the page."""
    folder = tmp_path_factory.mktemp(request.param)
    own = {} if request.param == "tiny" else {"name": "smollm2", "model": str(small_smollm2(folder / "base"))}
    untrained.make(folder / "artifacts", **own)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "site").mkdir()
        patch.syspath_prepend(folder / "site")
        add_adapter(Path("artifacts") / request.param)
        reader = Reader(request.param)
        stars = "".join(f'"The soup was {i} degrees.",{1 + i % 5}\n' for i in range(40))
        Path("my-reviews.csv").write_text("text,stars\n" + stars)
        if (ROOT / ".vllm").exists():
            Path(".vllm").symlink_to(ROOT / ".vllm")
        reader.outcomes = [reader.run(language, text) for language, text in BLOCKS]
        yield reader
        reader.stop()


def result(reader, part: str) -> str:
    """What the block that holds `part` printed."""
    (outcome,) = [o for o, (_, text) in zip(reader.outcomes, BLOCKS) if part in text]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@pytest.mark.parametrize("i", range(len(BLOCKS)), ids=[f"{i + 1} {title}" for i, title in enumerate(TITLES)])
def test_block_runs(reader, i):
    if isinstance(reader.outcomes[i], BaseException):
        raise reader.outcomes[i]


def test_it_samples_as_trained(reader):
    printed, names = result(reader, "policy.generate("), reader.names
    assert printed.strip().startswith("the film is") and "a slow start , but" in printed
    policy = AutoModelForCausalLM.from_pretrained(names["folder"])
    settings = dict(max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
    whole = policy.generate(**names["prompts"], **settings).scores[0]
    assert policy.generation_config.do_sample and whole.isfinite().all(), "some tokens are never sampled"
    for row in range(2):  # padding moves nothing
        alone = names["tokenizer"](["the film is", "a slow start , but"][row], return_tensors="pt")
        assert policy(**alone).logits[0, -1].allclose(whole[row], atol=1e-4)


def test_scores_are_the_helpers(reader):
    result(reader, "reward_model(**reader")
    folder = f"artifacts/{reader.preset}"
    reward_model = models.RewardModel.from_pretrained(f"{folder}/reward_model")
    tokenizer = data.load_tokenizer(f"{folder}/sft")
    rows = data.encode(["a warm and funny film .", "a dull film ."], tokenizer)
    expected = reward_model(*data.pad(rows, tokenizer.pad_token_id)).tolist()
    assert reader.names["scores"].tolist() == pytest.approx(expected, abs=1e-4) and expected[0] != expected[1]
    texts, pipe = reader.names["texts"], reader.names["score"]
    for function, values in (("none", expected), (None, torch.tensor(expected).sigmoid().tolist())):
        found = pipe(texts, function_to_apply=function)
        assert [x["score"] for x in found] == pytest.approx(values, abs=1e-4)
        assert {x["label"] for x in found} == {"positive"}


def test_the_folder_for_others_holds_the_policy_alone(reader):
    result(reader, 'policy.save_pretrained("my-policy")')
    assert [path.name for path in Path("my-policy").glob("*.safetensors")] == ["model.safetensors"]
    assert len(list(Path(f"artifacts/{reader.preset}/policy").glob("*.safetensors"))) > 1


def test_merging_changes_nothing(reader):
    result(reader, "merge_and_unload")
    ids = reader.names["tokenizer"]("the film is good .", return_tensors="pt")["input_ids"]
    folder = f"artifacts/{reader.preset}"
    base, adapted = (models.load_lm(f"{folder}/{name}")(ids).logits for name in ("sft", "beyond-1/adapter"))
    merged = AutoModelForCausalLM.from_pretrained("my-merged")(ids).logits
    assert merged.allclose(adapted, atol=1e-3) and not merged.allclose(base, atol=1e-2)


def test_the_server_completes(reader):
    answer = json.loads(result(reader, "curl"))["choices"][0]
    assert answer["finish_reason"] in ("stop", "length") and isinstance(answer["text"], str)


def test_vllm_gives_the_same_log_probabilities(reader):
    result(reader, "api_server")
    request = {"model": "my-policy", "prompt": "the film is", "max_tokens": 1, "temperature": 0, "logprobs": 0}
    address, form = f"http://localhost:{reader.port}/v1/completions", {"Content-Type": "application/json"}
    asked = urllib.request.Request(address, json.dumps(request).encode(), form)
    answer = json.load(urllib.request.urlopen(asked))["choices"][0]
    expected = next_logprobs(reader)
    assert answer["logprobs"]["token_logprobs"] == pytest.approx([expected.max().item()], abs=1e-3)
    (curl,) = [text for _, text in BLOCKS if "curl" in text]
    assert json.loads(reader.shell(curl.replace("8000", reader.port)))["choices"][0]["text"]


def next_logprobs(reader) -> torch.Tensor:
    """transformers' log-probabilities of what follows "the film is", (V,)."""
    inputs = reader.names["tokenizer"]("the film is", return_tensors="pt")
    return reader.names["policy"](**inputs).logits[0, -1].log_softmax(-1)


def test_llama_cpp_has_the_same_distribution(reader):
    result(reader, "import xllamacpp")
    request = {"prompt": "the film is", "max_tokens": 1, "temperature": 0, "logprobs": 20}
    first = reader.names["llama"].handle_completions(request)["choices"][0]["logprobs"]["content"][0]
    expected = next_logprobs(reader)
    found = {x["id"]: x["logprob"] for x in first["top_logprobs"]}
    assert len(found) == 20 and found == pytest.approx({i: expected[i].item() for i in found}, abs=0.02)
    assert expected.argmax().item() in found


def test_own_data_arrives(reader):
    printed, sentences = result(reader, "my-reviews.csv"), data.load_sentences("my-data")
    assert all(name in printed for name in ("train", "validation", "test", "sentence", "label"))
    assert sum(len(split) for split in sentences.values()) == 40
    labels = {row["sentence"]: row["label"] for split in sentences.values() for row in split}
    assert labels["The soup was 3 degrees."] == 1 and labels["The soup was 2 degrees."] == 0
