"""How much memory a model's weights take, read from the headers of its files without loading them."""

from __future__ import annotations

from pathlib import Path

NF4_BITS = 4.127  # a weight in 4 bits with its constants quantised again (the QLoRA paper)


def weight_bytes(model: Path, load_in_4bit: bool = False, bytes_each: int = 2) -> int:
    """Bytes of a model folder's weights on a device.

    Args:
        load_in_4bit: the layers' matrices in NF4; embeddings, head and norms stay as they are.
        bytes_each: of a weight that is not in 4 bits: 2 for float16 and bfloat16.
    """
    from safetensors import safe_open

    total = 0.0
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is not a mapping)
                shape = tensors.get_slice(name).get_shape()
                count = 1
                for length in shape:
                    count *= length
                matrix = len(shape) == 2 and not any(part in name for part in ("embed", "lm_head"))
                total += count * (NF4_BITS / 8 if load_in_4bit and matrix else bytes_each)
    return int(total)
