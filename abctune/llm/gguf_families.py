"""Which architectures become GGUF files and GGUF adapters, and how llama.cpp's version of each differs from transformers'.

After llama.cpp's convert_hf_to_gguf.py, which is not a package; names of tensors come from the `gguf` package.
Whatever is declared wrongly here shows in the export's check, which compares next-token distributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import MODEL_ARCH, TensorNameMap, get_tensor_name_map

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Family:
    """What llama.cpp calls an architecture, and what it stores or computes in another way."""

    arch: MODEL_ARCH
    interleaved: bool = False  # rotary rows: each head's two halves alternate
    biased: bool = False  # llama.cpp knows biases of the query, key and value projections
    norm_shift: float = 0.0  # added to norms' weights, where transformers keeps the difference from 1
    windows: int = 1  # every n-th layer sees the whole context, the others a sliding window; 1: all layers do
    keys: tuple[str, ...] = ()  # numbers of the config that llama.cpp is told, by GGUF_KEYS


GRANITE = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
# By `model_type` of the config.
FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Family(MODEL_ARCH.LLAMA, interleaved=True),
    "qwen2": Family(MODEL_ARCH.QWEN2, biased=True),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "qwen3_moe": Family(MODEL_ARCH.QWEN3MOE),
    "gemma": Family(MODEL_ARCH.GEMMA, norm_shift=1.0),
    "gemma2": Family(MODEL_ARCH.GEMMA2, norm_shift=1.0, windows=2, keys=CAPS),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, norm_shift=1.0, windows=6, keys=CAPS[1:]),
    "phi3": Family(MODEL_ARCH.PHI3),
    "granite": Family(MODEL_ARCH.GRANITE, interleaved=True, keys=GRANITE),
    "smollm3": Family(MODEL_ARCH.SMOLLM3, interleaved=True),
    "olmo2": Family(MODEL_ARCH.OLMO2),
    "cohere": Family(MODEL_ARCH.COMMAND_R, keys=("logit_scale",)),
    "cohere2": Family(MODEL_ARCH.COHERE2, windows=4, keys=("logit_scale",)),
    "glm4": Family(MODEL_ARCH.GLM4, biased=True),
    "nemotron": Family(MODEL_ARCH.NEMOTRON, norm_shift=1.0),
}
# A number of the config -> the method of gguf.GGUFWriter that writes it.
GGUF_KEYS = {
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "logit_scale": "add_logit_scale",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
}

# The experts' two input matrices in one tensor, as transformers 5 holds them.
GATE_AND_UP = "experts.gate_up_proj"


def text_config(base: Path) -> dict[str, Any]:
    """The config of a model folder's language model, in transformers 5's names whatever version wrote the file."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    described: dict[str, Any] = config.get_text_config().to_dict()
    return described


def head_dim(config: dict[str, Any]) -> int:
    """Width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def tensor_names(family: Family, config: dict[str, Any]) -> TensorNameMap:
    """What maps a tensor's name in transformers to GGUF's."""
    return get_tensor_name_map(family.arch, config["num_hidden_layers"])


def plain_name(key: str) -> str | None:
    """A tensor's or module's name as in a text-only model; None for the image part of a vision wrapper."""
    if any(part in key for part in ("vision_tower", "vision_model", "multi_modal_projector")):
        return None
    return key.replace("language_model.", "")


def rotary_heads(key: str, config: dict[str, Any]) -> int | None:
    """Heads of a query or key projection, whose rows an interleaved family stores in another order; else None."""
    if ".q_proj." in key:
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if ".k_proj." in key else None


def parts_of(key: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor as llama.cpp divides it, views with their names: the experts' gate and up matrices are two."""
    if key.endswith(GATE_AND_UP):
        half = tensor.shape[1] // 2
        yield key.replace("gate_up_proj", "gate_proj.weight"), tensor[:, :half]
        yield key.replace("gate_up_proj", "up_proj.weight"), tensor[:, half:]
    else:
        yield (f"{key}.weight" if key.endswith("experts.down_proj") else key), tensor


def stored(key: str, weight: np.ndarray, family: Family, config: dict[str, Any]) -> np.ndarray:
    """A tensor's numbers as a GGUF of the family holds them."""
    if key.endswith("norm.weight"):
        return weight + np.float32(family.norm_shift)
    heads = rotary_heads(key, config) if family.interleaved else None
    return weight if heads is None else interleaved(weight, heads)


def read_back(key: str, weight: np.ndarray, family: Family, config: dict[str, Any]) -> np.ndarray:
    """The inverse of `stored`: a GGUF's numbers as transformers holds them."""
    if key.endswith("norm.weight"):
        return weight - np.float32(family.norm_shift)
    heads = rotary_heads(key, config) if family.interleaved else None
    return weight if heads is None else in_halves(weight, heads)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection (or of its LoRA B) as llama.cpp wants them: each head's two halves alternate.

    Args:
        weight: (heads x head_dim, ...), in transformers' order.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`: rows in transformers' order."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
