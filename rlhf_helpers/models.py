"""A reward model and a policy with a value head, around any causal language model that transformers loads."""

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as LANGUAGE_MODELS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS
from transformers.utils import find_adapter_config_file

from rlhf_helpers.checks import check, loading
from rlhf_helpers.data import positions

ATTENTION = "sdpa_with_fp32_on_cpu"


def _attention(module: nn.Module, query, key, value, attention_mask, **kwargs):
    """transformers' own attention, "sdpa", but in fp32 on a CPU even under autocast.

    PyTorch's CPU kernel takes up to four times as long for short rows in bfloat16 (docs/speed.md).
    """
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


transformers.AttentionInterface.register(ATTENTION, _attention)
transformers.AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attention_of(config: PreTrainedConfig) -> str:
    """PyTorch's attention; transformers' own where that can't be had, as for Bloom and Gemma 2."""
    lm_class: Any = LANGUAGE_MODELS.get(type(config), None)
    return ATTENTION if getattr(lm_class, "_supports_sdpa", True) else "eager"


def _ensure_classifier(config: PreTrainedConfig) -> None:
    """Registers transformers' generic classifier for an architecture that has none of its own (Cohere, Granite)."""
    lm_class: Any = LANGUAGE_MODELS.get(type(config), None)
    if type(config) in CLASSIFIERS or lm_class is None:
        return
    base = next(c for c in lm_class.__mro__ if c.__name__.endswith("PreTrainedModel"))
    name = lm_class.__name__.replace("ForCausalLM", "ForSequenceClassification")
    classifier = type(name, (GenericForSequenceClassification, base), {"config_class": type(config)})
    transformers.AutoModelForSequenceClassification.register(type(config), classifier, exist_ok=True)


def _load(auto: Any, name_or_path: str, what: str) -> Any:
    with loading(f"{what} {name_or_path!r}"):
        adapter = find_adapter_config_file(name_or_path)  # names the model that it belongs to
        base = json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter else None
        config = transformers.AutoConfig.from_pretrained(base or name_or_path, trust_remote_code=False)
        _ensure_classifier(config)
        model, info = auto.from_pretrained(
            name_or_path, dtype=torch.float32, attn_implementation=_attention_of(config),
            use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    missing = sorted(info["missing_keys"])  # which transformers fills with random numbers
    check(not missing, f"{name_or_path} lacks {len(missing)} weights of {what}, as {missing[:1]}: of another kind?")
    return model


@torch.no_grad()
def load_lm(name_or_path: str) -> PreTrainedModel:
    """A causal language model with fp32 weights, from safetensors only.

    Raises ConnectionError if it can't be had; ValueError if it is broken, or does to its logits what `lm_logits` can't.
    """
    lm = _load(transformers.AutoModelForCausalLM, name_or_path, "the model").eval()
    # saved with it, and what servers go by: sample at temperature 1 from all tokens, as is done here
    special = {name: getattr(lm.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    lm.generation_config = transformers.GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special)
    ids = torch.tensor([[0, 1], [0, 2]])
    own = lm(ids).logits.float()
    causal = own[0, 0].allclose(own[1, 0], atol=1e-4)
    check(causal, f"{name_or_path} sees later tokens: an encoder, no causal language model")
    apart = (lm_logits(lm, hidden_states(lm, ids)) - own).abs().max() / own.abs().max().clamp(min=1)
    more = f"a {type(lm).__name__} does more to its logits than scale or soft-cap them"
    check(apart < 1e-3, f"{name_or_path}: {more}, and its log-probabilities would be wrong here.")
    return lm


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from the first real token of each row, (B, T).

    GPT-2 counts from the first column if it isn't told, and a left-padded row then gets other logits (trl#469).
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def disable_dropout(model: nn.Module) -> nn.Module:
    """Sets every dropout to 0: two passes then agree, and the first PPO ratio is 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):  # OPT and Llama keep plain numbers
                setattr(module, name, 0.0)
    return model


def checkpoint_layers(model: nn.Module) -> nn.Module:
    """Keeps only each layer's input for the backward pass, which computes the layer once more (arXiv 1604.06174).

    The same gradients from less memory; a step takes about a third longer. Acts in training mode.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):  # transformers 5.23 renamed it
            enable = getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
    return model.train()


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode and no gradients: for the reference and the reward model."""
    return model.eval().requires_grad_(False)


def left_aligned(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The rows moved to the first column and cut to the longest, (B, longest).

    So they need no mask: the trunk looks only backwards, and what now stands behind a row is never looked at.
    """
    total, first = attention_mask.sum(1), attention_mask.argmax(1)
    columns = first[:, None] + torch.arange(int(total.max()), device=input_ids.device)
    return input_ids.gather(1, columns.clamp(max=input_ids.shape[1] - 1))


def hidden_states(lm: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
    """Last hidden states of any causal language model's trunk, (B, T, d).

    Positions are counted by the mask. Without one, rows must start in the first column.
    """
    width, longest = input_ids.shape[1], positions(lm.config)
    check(attention_mask is not None or width <= longest, f"{width} tokens, but the model has {longest} positions")
    if "position_ids" not in inspect.signature(lm.base_model.forward).parameters:
        kwargs.pop("position_ids", None)  # Bloom counts distances, by the mask itself
    elif attention_mask is not None:
        kwargs.setdefault("position_ids", position_ids(attention_mask)[:, -width:])
    return lm.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state


def in_fp32(head: nn.Module, hidden: Tensor) -> Tensor:
    """A linear head on hidden states (..., d), in fp32 even under autocast.

    bfloat16 keeps 8 bits: logits of -30 to -100, as GPT-2's are, would be rounded to steps of 0.125 to 0.5.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())


def lm_logits(lm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Last hidden states (..., d) -> the model's own next-token logits (..., V) in fp32, scaled and soft-capped."""
    config, logits = lm.config.get_text_config(), in_fp32(lm.get_output_embeddings(), hidden)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * (logits / cap).tanh()
    return logits


@torch.no_grad()
def same_on_cpu(lm: PreTrainedModel, device: str) -> bool:
    """Whether `device` gives the logits that the CPU gives, up to rounding; says so if it does not.

    Some accelerators have computed wrong logits in silence (LLMs-from-scratch#846, TransformerLens#1178). One
    batch is compared, padded on the left as in sampling. `lm` is on the CPU, as `load_lm` leaves it.
    """
    ids = torch.arange(48).view(4, 12) % lm.config.get_text_config().vocab_size
    mask = (torch.arange(12) >= torch.tensor([[0], [2], [5], [8]])).long()
    moved: Any = copy.deepcopy(lm)
    expected = lm_logits(lm, hidden_states(lm, ids, mask))
    found = lm_logits(moved.to(device), hidden_states(moved, ids.to(device), mask.to(device))).cpu()
    apart = (found.log_softmax(-1) - expected.log_softmax(-1))[mask == 1].abs().max().item()
    # fp32 rounds to 6e-8 of a logit, TF32 to 5e-4; a wrong kernel is off by whole nats
    if apart >= 0.05:
        print(f"{device} is not used: its log-probabilities are {apart:.2g} nats from the CPU's. Another torch may do.")
    return apart < 0.05


class RewardModel(nn.Module):
    """A trunk and a linear reward head on the last real token (InstructGPT, section 3.4).

    Gives a logit: sigmoid(logit) is the probability that the text is positive, and the difference of two logits
    the log-odds that one text is preferred (Bradley-Terry). The head starts at zero, so that every first score is 0
    and the first loss ln 2. Dropout is off, as in TRL's: a pass or two over the data is not memorised.
    """

    def __init__(self, lm_or_path: PreTrainedModel | str | Path):
        """From a causal language model, or from its Hub id or folder."""
        super().__init__()
        lm = lm_or_path if isinstance(lm_or_path, nn.Module) else load_lm(str(lm_or_path))
        config = copy.deepcopy(lm.config)
        _ensure_classifier(config)
        config.num_labels, config.id2label, config.label2id = 1, {0: "positive"}, {"positive": 0}
        self.model = transformers.AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, attn_implementation=_attention_of(config)
        )
        self.model.base_model.load_state_dict(lm.base_model.state_dict())
        nn.init.zeros_(self.model.score.weight)
        disable_dropout(self.model)
        if config.pad_token_id in (None, config.eos_token_id):
            # transformers' classifier scores the last token that isn't padding, and would skip
            # the end-of-text that scores here: give it a padding id of its own, one row more
            self.model.resize_token_embeddings(config.vocab_size + 1, mean_resizing=False)
            self.model.config.pad_token_id = self.model.config.vocab_size - 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) ids and mask, padded on either side with any id -> (B,) logits."""
        hidden = hidden_states(self.model, left_aligned(input_ids, attention_mask))
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
        return in_fp32(self.model.score, last).squeeze(-1)

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Saves it so that `AutoModelForSequenceClassification` gives equal scores, of `text + tokenizer.eos_token`.

        The tokenizer saved beside it pads with the padding token that the classifier skips.
        """
        self.model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer = copy.deepcopy(tokenizer)
            if tokenizer.pad_token_id != self.model.config.pad_token_id:
                tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
            tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "RewardModel":
        """What `save_pretrained` saved. Raises ConnectionError if there is none, ValueError if it is another model."""
        model = disable_dropout(_load(transformers.AutoModelForSequenceClassification, str(folder), "the reward model"))
        check(model.num_labels == 1, f"{folder} holds no reward model but a classifier of {model.num_labels} labels")
        reward_model = cls.__new__(cls)
        nn.Module.__init__(reward_model)
        reward_model.model = model
        return reward_model


class PolicyWithValueHead(nn.Module):
    """A causal language model (the policy) and a linear value head, on the same trunk or on a critic's own.

    The head starts at zero: the first advantages are then the returns themselves, and no
    random value moves the policy. Dropout is off, so the ratio of an update's first pass is 1.
    """

    def __init__(self, lm_or_path: PreTrainedModel | str | Path, critic: RewardModel | None = None):
        """From a causal language model (which it wraps, not copies), or its Hub id or folder.

        With `critic`, the value head reads the states of a copy of that reward model's trunk, which is then
        trained with it (InstructGPT, section 3.5): it knows from the start what the reward looks at.
        """
        super().__init__()
        self.lm = lm_or_path if isinstance(lm_or_path, nn.Module) else load_lm(str(lm_or_path))
        disable_dropout(self.lm)
        head, self.critic = self.lm.get_output_embeddings(), None
        if critic is not None:
            head, self.critic = critic.model.score, copy.deepcopy(critic.model.base_model).requires_grad_(True)
        self.value_head = nn.Linear(head.in_features, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) ids and mask -> logits (B, T, V) and values (B, T), both fp32. Positions are counted by the mask."""
        return self.heads(*self.states(input_ids, attention_mask))

    def states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last hidden states (B, T, d) that the output matrix reads, and those that the value head reads."""
        hidden = hidden_states(self.lm, input_ids, attention_mask)
        return hidden, hidden if self.critic is None else hidden_states(self.critic, input_ids, attention_mask)

    def heads(self, hidden: Tensor, value_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Both kinds of states (..., d) -> logits (..., V) and values (...), both fp32."""
        return lm_logits(self.lm, hidden), in_fp32(self.value_head, value_hidden).squeeze(-1)

    def parameter_groups(self, lr: float, value_lr: float) -> list[dict]:
        """For an optimiser: the policy's weights, and the critic's with the value head, that are to be trained."""
        policy = [p for p in self.lm.parameters() if p.requires_grad]
        critic = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("lm.")]
        return [{"params": policy, "lr": lr}, {"params": critic, "lr": value_lr}]

    def save_pretrained(self, folder: str | Path) -> None:
        """The language model as transformers saves it, the head in value_head.safetensors, a critic in critic/.

        An index names the model's weights: without one vLLM takes every safetensors file for a part of the model.
        """
        self.lm.save_pretrained(folder)
        if (weights := Path(folder) / "model.safetensors").exists():  # else it is an adapter, or has its index
            with safe_open(weights, "pt") as file:
                index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), weights.name)}
            weights.with_name("model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        save_file(self.value_head.state_dict(), Path(folder) / "value_head.safetensors")
        if self.critic is not None:
            self.critic.save_pretrained(Path(folder) / "critic")
        else:  # one that an earlier policy left here is not this one's
            shutil.rmtree(Path(folder) / "critic", ignore_errors=True)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PolicyWithValueHead":
        """What `save_pretrained` saved. Raises ConnectionError if there is none, ValueError if it is broken."""
        policy, critic = cls(folder), Path(folder) / "critic"
        with loading(f"the value head of {folder}"):
            head = load_file(Path(folder) / "value_head.safetensors")
            if critic.exists():
                policy.critic = disable_dropout(_load(transformers.AutoModel, str(critic), "the critic"))
                policy.value_head = nn.Linear(head["weight"].shape[1], 1)
            policy.value_head.load_state_dict(head)
        return policy


LanguageModel = PolicyWithValueHead | PreTrainedModel  # what samples and has log-probabilities
