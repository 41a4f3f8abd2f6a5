"""What the machine has: its device and the number format to compute in."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(name: str, capability: tuple[int, int] | None) -> torch.dtype:
    """The number format that params name; `auto` by the GPU's compute capability (None: a CPU).

    bfloat16 needs sm_80 (A100 and later); a T4 (sm_75) gets float16, as in the report, a CPU float32.
    """
    if name != "auto":
        return DTYPES[name]
    if capability is None:
        return torch.float32
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def resolve_dtype(name: str) -> torch.dtype:
    """`dtype_for` on this machine."""
    return dtype_for(name, torch.cuda.get_device_capability() if torch.cuda.is_available() else None)
