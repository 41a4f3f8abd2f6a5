"""Models that Unsloth's kernels do not support, trained by stock transformers and PEFT; and which layers get an adapter.

Unsloth rewrites other models as they are loaded; what it makes of each new architecture nobody here has checked, and its
packed rows know attention alone, not the state that linear attention carries on. So those are trained plainly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abctune.core.params import LoraParams, TrainParams
from abctune.llm.auto_class import load_model, nf4
from abctune.llm.device import device, resolve_dtype

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "transformers"  # in records
# The `model_type`s that Unsloth has hand-written kernels for (unsloth/models/loader.py, `dispatch_model`) and that
# benchmarks.gpu_models found right. Its Gemma 1 and 2 fail to compile on an H200 (torch 2.11: InductorError).
UNSLOTH = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def load(path: Path, recipe: TrainParams, max_length: int, checkpointing: str) -> PreTrainedModel:
    """The base model by transformers, ready to be trained; `add_adapter` switches gradient checkpointing."""
    dtype = resolve_dtype(recipe.dtype)
    quantization = nf4(dtype) if recipe.load_in_4bit else None
    model = load_model(path, dtype, quantization, device_map=device())
    if is_wrapper(model.config):
        model.register_forward_pre_hook(_text_only, with_kwargs=True)
    return model


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether the language model is a part of it, next to a vision or audio tower."""
    return config.get_text_config() is not config


def _text_only(
    model: PreTrainedModel, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Mark all tokens as text for a vision wrapper: Gemma's requires it in training."""
    if model.training and "input_ids" in named and model.config.model_type.startswith("gemma"):
        named.setdefault("token_type_ids", torch.zeros_like(named["input_ids"]))
    return arguments, named


def add_adapter(model: PreTrainedModel, lora: LoraParams, checkpointing: str, seed: int) -> PeftModel:
    """Put a LoRA adapter in float32 on the model; the seed decides its first weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if checkpointing == "none":
        model.gradient_checkpointing_disable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.get_text_config().use_cache = False
    set_seed(seed)
    config = LoraConfig(
        **lora.model_dump(exclude={"target_modules"}),
        target_modules=targets(model, lora),
        exclude_modules=routers(model) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def targets(model: PreTrainedModel, lora: LoraParams) -> str | list[str]:
    """PEFT's `target_modules`: the modules that params name; in a vision wrapper, those of its language model.

    A model that lacks one of the names has another structure than params assume, and gets an adapter on every linear
    layer.
    """
    linear = linear_layers(model)
    names = {name.rpartition(".")[2] for name in linear}
    everywhere = lora.target_modules == "all-linear" or not set(lora.target_modules) <= names
    if not is_wrapper(model.config):
        return "all-linear" if everywhere else list(lora.target_modules)
    return [name for name in linear if everywhere or name.rpartition(".")[2] in lora.target_modules]


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the language model's linear layers, without the output matrix and routers."""
    text = {id(module) for module in model.get_decoder().modules()}
    others = routers(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and id(module) in text
        and module is not model.get_output_embeddings()
        and name not in others
    ]


def routers(model: PreTrainedModel) -> list[str]:
    """Names of linear layers that the architecture makes return more than a product, as Llama 4's routers do.

    PEFT's `all-linear` takes them for usual ones, and the first step fails.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and type(module).forward.__module__.startswith("transformers.models.")
    ]


def unreached(model: PeftModel) -> list[str]:
    """Matrices of the language model that the adapter leaves as they are, each kind once: `mlp.experts.down_proj`.

    Embeddings and the output matrix are not counted: adapters usually leave them.
    """
    base = model.get_base_model()
    decoder = base.get_decoder()
    embeddings = {id(weight) for weight in base.get_input_embeddings().parameters()}
    if (head := base.get_output_embeddings()) is not None:
        embeddings |= {id(weight) for weight in head.parameters()}
    adapted = {
        name.partition(".lora_A")[0].replace(".base_layer", "")
        for name, _ in decoder.named_modules()
        if ".lora_A" in name
    }
    found: dict[str, None] = {}
    for name, weight in decoder.named_parameters():
        if ".lora_" in name or weight.dim() < 2 or name.endswith("bias") or id(weight) in embeddings:
            continue
        module = name.replace(".base_layer", "").removesuffix(".weight")
        if not any(module == one or module.startswith(f"{one}.") for one in adapted):
            parts = [part for part in module.split(".") if not part.isdigit() and part != "layers"]
            found[".".join(parts[-3:])] = None
    return list(found)
