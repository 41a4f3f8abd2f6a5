"""A model in memory becomes one GGUF file, tensor by tensor: a second copy of the weights never exists."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from abctune.core.errors import UserError
from abctune.llm.gguf_families import (
    FAMILIES,
    GGUF_KEYS,
    Family,
    head_dim,
    parts_of,
    plain_name,
    stored,
    tensor_names,
)
from stages.export.gguf_tokenizer import add_tokenizer
from stages.export.quantize import byte_shape, encode, type_of

if TYPE_CHECKING:
    import torch

FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
SCALINGS = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}


def family_of(config: dict[str, Any]) -> Family:
    """How a model of this config is written.

    Raises:
        UserError: the architecture, or a setting of it, is one that is not handled.
    """
    family = FAMILIES.get(config["model_type"])
    rope = _rope(config).get("rope_type", "default")
    odd = []
    if family is None:
        odd.append(f"architecture {config['model_type']}")
    elif not _windows_as_declared(family, config):
        odd.append(f"these layer_types of {config['model_type']}")
    if rope not in ("default", "llama3", "longrope", *SCALINGS):
        odd.append(f"rope {rope}")
    if config.get("mlp_bias") or (config.get("attention_bias") and not (family and family.biased)):
        odd.append("biases")
    if config.get("norm_topk_prob") is False:
        odd.append("experts whose weights do not sum to 1 (norm_topk_prob: false)")
    if odd or family is None:
        raise UserError(
            f"models/base/config.json: no GGUF is written for {', '.join(odd)}; put merged_16bit into export.formats"
            " and convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    return family


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of layers that see the whole context."""
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def _windows_as_declared(family: Family, config: dict[str, Any]) -> bool:
    """Whether the layers with a sliding window are those that llama.cpp takes for it."""
    if family.windows == 1:
        return True
    sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    return sliding == [bool((layer + 1) % family.windows) for layer in range(len(sliding))]


def write_gguf(
    target: Path,
    weights: Mapping[str, torch.Tensor],
    config: dict[str, Any],
    tokenizer: Path,
    fmt: str,
    name: str,
    threads: int,
) -> None:
    """Write `target`.

    Args:
        weights: The model's state dict, in transformers' names.
        config: Its language model's, from `abctune.llm.gguf_families.text_config`.
        tokenizer: A folder with `tokenizer.json` and `tokenizer_config.json`.
        fmt: `f16`, `q8_0` or `q4_k_m`.
        name: What programs show as the model's name.
        threads: For quantising.

    Raises:
        UserError: the model or its tokenizer is of a kind that is not handled.
    """
    family = family_of(config)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[fmt])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe(writer, family, config)
    add_tokenizer(writer, config["vocab_size"], tokenizer)
    tensors = dict(_named(weights, family, config))
    layers, tied = config["num_hidden_layers"], "output.weight" not in tensors
    kinds = {key: type_of(key, shape, fmt, layers, tied) for key, (shape, _) in tensors.items()}
    for key, kind in kinds.items():
        whole = tensors[key][0]
        shape = byte_shape(whole, kind)
        plain = np.float16 if kind == gguf.GGMLQuantizationType.F16 else np.float32
        dtype = np.dtype(plain if shape == whole else np.uint8)
        writer.add_tensor_info(key, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for key, kind in kinds.items():
        writer.write_tensor_data(encode(tensors[key][1](), kind, threads))
    writer.close()


def _describe(writer: gguf.GGUFWriter, family: Family, config: dict[str, Any]) -> None:
    width, rope = head_dim(config), _rope(config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(_context(family, config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for key in ("norm_eps", "layer_norm_eps"):
        if config.get(key):
            writer.add_layer_norm_eps(config[key])
    for key in family.keys:
        if config.get(key) is not None:
            getattr(writer, GGUF_KEYS[key])(config[key])
    if family.windows > 1:
        writer.add_sliding_window(config["sliding_window"])
    if family.arch == gguf.MODEL_ARCH.PHI3:
        writer.add_sliding_window(0)  # the file's context is no longer than the window
    if "num_experts_per_tok" in config:
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    _describe_rope(writer, config)


def _context(family: Family, config: dict[str, Any]) -> int:
    """Tokens of context; where llama.cpp has no sliding window and the model does, no more than that has."""
    kinds = config.get("layer_types")
    slides = "sliding_attention" in kinds if kinds else bool(config.get("sliding_window"))
    longest: int = config["max_position_embeddings"]
    return min(longest, config["sliding_window"]) if slides and family.windows == 1 else longest


def _describe_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = _rope(config)
    if scaling := SCALINGS.get(rope.get("rope_type", "default")):
        writer.add_rope_scaling_type(scaling)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope.get("rope_type") == "longrope":
        stretch = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
        usual = math.sqrt(1 + math.log(stretch) / math.log(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or (usual if stretch > 1 else 1.0))
    sliding = config["rope_parameters"].get("sliding_attention")
    if sliding:
        writer.add_rope_freq_base_swa(sliding["rope_theta"])


def _named(
    weights: Mapping[str, torch.Tensor], family: Family, config: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """(GGUF's name, (shape, a function that makes the float32 array)) of every tensor.

    A tied output matrix and the image part of a vision wrapper are left out, rotary factors are added.
    """
    names = tensor_names(family, config)
    embedding = next(value for key, value in weights.items() if key.endswith("embed_tokens.weight"))
    for given, value in weights.items():
        key = plain_name(given)
        if key is None or (key.startswith("lm_head") and value.data_ptr() == embedding.data_ptr()):
            continue
        for part, tensor in parts_of(key, value):
            name = names.get_name(part, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UserError(f"no GGUF is written for the tensor {given}; export merged_16bit instead")
            yield (
                name,
                (
                    tuple(tensor.shape),
                    lambda part=part, tensor=tensor: stored(part, _array(tensor), family, config),
                ),
            )
    for name, factors in rotary_factors(config).items():
        yield f"{name}.weight", (tuple(factors.shape), lambda factors=factors: factors.numpy())


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array


def rotary_factors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The divisor of each rotary frequency, by llama.cpp's name of the tensor; empty where there is none."""
    import torch

    rope = _rope(config)
    if rope.get("rope_type") == "longrope":
        long, short = (torch.tensor(rope[key]).float() for key in ("long_factor", "short_factor"))
        return {"rope_factors_long": long, "rope_factors_short": short}
    found = rope_factors(config)
    return {} if found is None else {"rope_freqs": found}


def rope_factors(config: dict[str, Any]) -> torch.Tensor | None:
    """Llama 3's stretching of the rotary wavelengths: what each frequency is divided by; None where there is none."""
    import torch

    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    width = head_dim(config)
    wavelength = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
    context, low, high = (
        rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    # 1 for wavelengths that fit the old context `high` times, `factor` for those that fit less than `low` times.
    keep = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - keep) / rope["factor"] + keep)).float()
