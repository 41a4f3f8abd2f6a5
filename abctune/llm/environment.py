"""Importing this sets environment variables that must be set before torch and the Hugging Face libraries are imported."""

import hashlib
import logging
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CARDS = Path("/proc/driver/nvidia/gpus")  # as NVIDIA's Linux driver lists them
COMPILED = Path(".compiled")


def compiled_folder(cards: Path = CARDS) -> Path | None:
    """Where compiled GPU kernels are kept, `.compiled/<card>-<versions>`; None where there is no NVIDIA card.

    A later variant, a later run, or another machine with the same card that the folder is copied to finds them there.
    """
    models = {
        model[1].strip()
        for file in cards.glob("*/information")
        if (model := re.search(r"Model:(.+)", file.read_text(encoding="utf-8", errors="replace")))
    }
    if not models:
        return None
    versions = []
    for package in ("torch", "triton", "unsloth", "unsloth_zoo", "transformers"):
        try:
            versions.append(f"{package}-{version(package)}")
        except PackageNotFoundError:
            continue
    card = re.sub(r"\W+", "-", min(models))
    return COMPILED / f"{card}-{hashlib.sha256(' '.join(versions).encode()).hexdigest()[:12]}"


if folder := compiled_folder():
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder.absolute() / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute() / "inductor"))
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(folder / "unsloth"))

# OpenMP threads that spin while another process uses the cores made a training step 8 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Everything is on disk: nothing may be fetched in the middle of a run.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Warnings at import that no user of ours can act on: optional kernels, a deprecation inside torchao.
for name in ("bitsandbytes.backends.cpu.ops", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
