"""A PEFT LoRA adapter as the GGUF adapter that llama.cpp applies at run time.

Its rank is made odd, by a row and a column of zeros that change no result. llama.cpp multiplies matrices of even rank in
another order of summation when it reads many tokens than when it reads one; the rounding then decides near ties, and a
greedy answer depends on what was read before (measured: differences of up to 0.2 nats in a token's score, and none
with an odd rank).
"""

from __future__ import annotations

import re
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.files import atomic_output, read_json

TENSOR = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])\.weight$")
FORM = "odd"  # in the name of the file: an older conversion is made again
# Settings that change what an adapter computes and that a plain GGUF LoRA cannot represent.
UNSUPPORTED = ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "lora_bias")


def gguf_of(adapter: Path, sha256: str, base: Path, cache: Path) -> Path:
    """The adapter's GGUF, converted the first time its weights are seen."""
    target = cache / f"{sha256}.{FORM}.gguf"
    if not target.exists():
        with atomic_output(target) as temporary:
            convert(adapter, base, temporary)
    return target


def convert(adapter: Path, base: Path, target: Path) -> None:
    """Write `target`.

    Raises:
        UserError: the adapter holds something that llama.cpp would silently ignore.
    """
    import gguf
    import numpy as np
    from safetensors import safe_open

    from abctune.llm.gguf_families import (
        FAMILIES,
        interleaved,
        plain_name,
        rotary_heads,
        tensor_names,
        text_config,
    )

    config = read_json(adapter / "adapter_config.json", made_by=f"train@{adapter.name}")
    shape = text_config(base)
    if used := [key for key in UNSUPPORTED if config.get(key)]:
        raise UserError(f"{adapter}: llama.cpp cannot apply {', '.join(used)}; use --engine transformers")
    family = FAMILIES.get(shape["model_type"])
    if family is None:
        raise UserError(
            f"{adapter}: no GGUF adapter is written for {shape['model_type']}; use --engine transformers"
        )
    names = tensor_names(family, shape)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    odd = config["r"] | 1
    divisor = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    # llama.cpp divides by the rank that it finds.
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]) * odd / divisor)
    # Through torch: numpy has no bfloat16, which a GPU run may publish.
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (not a dictionary)
            found = TENSOR.search(key)
            module = plain_name(found[1]) if found else None
            name = names.get_name(module) if module else None
            if not found or module is None or name is None:
                raise UserError(f"{adapter}: llama.cpp cannot apply {key}; use --engine transformers")
            weight = tensors.get_tensor(key).float().numpy()
            side = found[2]
            heads = rotary_heads(f"{module}.", shape) if family.interleaved and side == "B" else None
            if heads is not None:
                weight = interleaved(weight, heads)
            missing = odd - config["r"]
            weight = np.pad(weight, ((0, 0), (0, missing)) if side == "B" else ((0, missing), (0, 0)))
            weight = np.ascontiguousarray(weight, dtype=np.float32)
            writer.add_tensor(f"{name}.weight.lora_{side.lower()}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
