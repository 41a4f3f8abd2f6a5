"""The one check of an adapter: it exists, is complete and finite, is the recorded one, and was trained on this base.

Without torch, which a Space that serves adapters does not have.
"""

from __future__ import annotations

import json
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.provenance import dvc_folder_hash, require_same_base

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def require_adapter(adapter: Path, base: Path, remedy: str, recorded: str | None = None) -> None:
    """Check an adapter before it is loaded, served or published.

    Args:
        adapter: its folder, with `WEIGHTS` and `CONFIG`.
        base: the folder of the base model that it is to be put on.
        remedy: what mends an adapter that is missing or wrong, for the message.
        recorded: the folder's hash in dvc.lock; None where nothing is recorded, as in a Space.

    Raises:
        UserError: what is wrong with it, and the remedy.
    """
    for file in (adapter / WEIGHTS, adapter / CONFIG):
        if not file.exists():
            raise UserError(f"{file} not found; {remedy}")
    require_same_base(adapter, base, remedy)
    name, tensors = adapter.name, _read(adapter, base, remedy)
    for key, (dtype, data) in tensors.items():
        if not _finite(dtype, data):
            raise UserError(
                f"{adapter / WEIGHTS} has values in {key} that are not finite; "
                f"`dvc repro --force --single-item train@{name}` makes it again"
            )
    if recorded is not None and (found := dvc_folder_hash(adapter)) != recorded:
        raise UserError(
            f"{adapter} is not what dvc.lock records ({found} instead of {recorded}); "
            f"`dvc checkout -f {adapter}` brings that back, `dvc commit -f train@{name}` records what is there"
        )


def _read(adapter: Path, base: Path, remedy: str) -> dict[str, tuple[str, bytes]]:
    """Number format and bytes of each tensor. The reader checks that the file is as long as its header says."""
    from safetensors import SafetensorError, deserialize

    try:
        json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        tensors = {
            key: (one["dtype"], one["data"]) for key, one in deserialize((adapter / WEIGHTS).read_bytes())
        }
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{adapter} does not load on {base} ({error}); {remedy}") from None
    if not any("lora_A" in key for key in tensors):
        raise UserError(f"{adapter / WEIGHTS} holds no LoRA weights; {remedy}")
    return tensors


def _finite(dtype: str, data: bytes) -> bool:
    """Whether all numbers of a safetensors tensor are finite; for bfloat16, which numpy lacks, by their exponent bits."""
    import numpy as np

    if dtype == "BF16":
        return not ((np.frombuffer(data, "<u2") & 0x7F80) == 0x7F80).any()
    formats = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    return dtype not in formats or bool(np.isfinite(np.frombuffer(data, formats[dtype])).all())
