"""A Llama model in memory becomes one GGUF file, tensor by tensor: a second copy of the weights never exists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.llm.rotary import interleaved
from stages.export.quantize import byte_shape, encode, type_of

if TYPE_CHECKING:
    import torch

FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
# How a tokenizer cuts text before merging, as tokenizers writes it and as llama.cpp calls it.
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def refuse(config: dict[str, Any]) -> None:
    """Say what of a model's `config.json` this writer would get wrong.

    Raises:
        UserError: the architecture, or a setting of it, is one that is not handled.
    """
    rope = config.get("rope_parameters") or {}
    odd = [
        text
        for found, text in (
            (
                config.get("architectures") != ["LlamaForCausalLM"],
                f"architecture {config.get('architectures')}",
            ),
            (config.get("attention_bias") or config.get("mlp_bias"), "biases"),
            (config.get("hidden_act") != "silu", f"activation {config.get('hidden_act')}"),
            (rope.get("rope_type", "default") not in ("default", "llama3"), f"rope {rope.get('rope_type')}"),
        )
        if found
    ]
    if odd:
        raise UserError(
            f"models/base/config.json: no GGUF is written for {', '.join(odd)}; put merged_16bit into export.formats"
            " and convert it with llama.cpp's convert_hf_to_gguf.py"
        )


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
        config: Its `config.json`.
        tokenizer: A folder with `tokenizer.json` and `tokenizer_config.json`.
        fmt: `f16`, `q8_0` or `q4_k_m`.
        name: What programs show as the model's name.
        threads: For quantising.

    Raises:
        UserError: the model or its tokenizer is of a kind that is not handled.
    """
    refuse(config)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[fmt])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe(writer, config)
    _add_tokenizer(writer, config["vocab_size"], tokenizer)
    tensors = _named(weights, config)
    layers, tied = config["num_hidden_layers"], config["tie_word_embeddings"]
    kinds = {key: type_of(key, tuple(value.shape), fmt, layers, tied) for key, value in tensors.items()}
    for key, kind in kinds.items():
        shape = byte_shape(tuple(tensors[key].shape), kind)
        plain = np.float16 if kind == gguf.GGMLQuantizationType.F16 else np.float32
        dtype = np.dtype(plain if shape == tuple(tensors[key].shape) else np.uint8)
        writer.add_tensor_info(key, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for key, kind in kinds.items():
        weight = tensors[key].detach().float().cpu().numpy()
        if part := next((heads[part] for part in heads if f".{part}." in key), None):
            weight = interleaved(weight, part)
        writer.write_tensor_data(encode(weight, kind, threads))
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _named(weights: Mapping[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """The tensors under GGUF's names; a tied output matrix is left out, rotary factors are added."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors: dict[str, Any] = {}
    for key, value in weights.items():
        name = names.get_name(key, try_suffixes=(".weight",))
        if name is None:
            raise UserError(f"no GGUF is written for the tensor {key}; export merged_16bit instead")
        if not (config["tie_word_embeddings"] and name == "output.weight"):
            tensors[name] = value
    if (factors := rope_factors(config)) is not None:
        tensors["rope_freqs.weight"] = factors
    return tensors


def rope_factors(config: dict[str, Any]) -> torch.Tensor | None:
    """Llama 3's stretching of the rotary wavelengths: what each frequency is divided by; None where there is none."""
    import torch

    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    wavelength = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, head_dim, 2).double() / head_dim)
    context, low, high = (
        rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    # 1 for wavelengths that fit the old context `high` times, `factor` for those that fit less than `low` times.
    keep = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - keep) / rope["factor"] + keep)).float()


def _add_tokenizer(writer: gguf.GGUFWriter, size: int, folder: Path) -> None:
    tokenizer = read_json(folder / "tokenizer.json", made_by=f"train@{folder.name}")
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    # The matrix may have more rows than the tokenizer has tokens.
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, gguf.TokenType.UNUSED) for index in range(size)])
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how this `tokenizer.json` cuts text.

    Raises:
        UserError: it is none of the ways known here; a wrong name would give other tokens than in training.
    """
    cut = tokenizer["pre_tokenizer"] or {}
    steps = [
        (
            step["type"],
            step.get("pattern", {}).get("Regex") or step.get("individual_digits") or step.get("use_regex"),
        )
        for step in cut.get("pretokenizers", [cut] if cut else [])
    ]
    known = {
        "gpt-2": [("ByteLevel", True)],
        "smollm": [("Digits", True), ("ByteLevel", True)],
        "llama-bpe": [("Split", LLAMA_3_WORDS), ("ByteLevel", False)],
    }
    for name, wanted in known.items():
        if steps == wanted and tokenizer["model"]["type"] == "BPE" and not tokenizer["normalizer"]:
            return name
    raise UserError(
        "no GGUF is written for this tokenizer (its pre_tokenizer is none of GPT-2's, SmolLM's and Llama 3's); put"
        " merged_16bit into export.formats and convert it with llama.cpp's convert_hf_to_gguf.py"
    )
