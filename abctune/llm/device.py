"""The device a model runs on and the number format it runs in."""

from __future__ import annotations

import torch

Capability = tuple[int, int] | None  # of a GPU, (9, 0) for an H100; None: a CPU
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    """The GPU that is current, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def why_no_gpu() -> str:
    """Why torch sees no GPU, in its own words: there is no driver, or one too old for this torch, or none is visible."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).split(". ")[0].splitlines()[0].rstrip(".")
    return "torch sees no GPU"


def capability() -> Capability:
    """The GPU's compute capability, as (9, 0) of an H100; None on a CPU."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def dtype_for(name: str, capability: Capability) -> torch.dtype:
    """The number format that params name; `auto` by the GPU's compute capability.

    bfloat16 needs sm_80 (A100 and later); a T4 (sm_75) gets float16, as in the student report, a CPU float32.
    """
    if name != "auto":
        return DTYPES[name]
    if capability is None:
        return torch.float32
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def resolve_dtype(name: str) -> torch.dtype:
    """`dtype_for` on this machine."""
    return dtype_for(name, capability())


def free_bytes(index: int | None = None) -> int:
    """GPU memory that this process can still take, also under torch.cuda.set_per_process_memory_fraction.

    Args:
        index: which GPU; by default the one in use.
    """
    free, total = torch.cuda.mem_get_info(index)
    reserved = torch.cuda.memory_reserved(index)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(index)) - reserved
    return int(min(free, allowed) + reserved - torch.cuda.memory_allocated(index))
