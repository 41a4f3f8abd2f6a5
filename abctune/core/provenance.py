"""What a result was made with: file hashes, library versions, hardware, peak memory."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import abctune
from abctune.core.errors import UserError

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "unsloth_zoo",
    "bitsandbytes",
    "liger-kernel",
    "accelerate",
    "datasets",
)
GIB = 2**30


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(file: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file, as records and manifests have them."""
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def dvc_folder_hash(folder: Path) -> str:
    """The hash that DVC gives to a folder, `.dir` at its end: that of the sorted list of its files' MD5s."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return dvc_listing_hash({name: md5(file.read_bytes()) for name, file in files.items()})


def dvc_listing_hash(hashes: Mapping[str, str | None]) -> str:
    """The same, from the MD5s by path inside the folder."""
    entries = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def md5(content: bytes) -> str:
    """Hex MD5, the hash that DVC uses."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def require_same_base(adapter: Path, base: Path, remedy: str) -> None:
    """Refuse an adapter on another base model than its own: with equal shapes it would load and answer nonsense.

    Adapters and base models from elsewhere, which have no record of ours, pass.

    Raises:
        UserError: its record names another base than `base` is.
    """
    trained_on, given = _record(adapter / "training.json").get("base_model"), _record(base / "source.json")
    if trained_on and given and trained_on != given:
        raise UserError(f"{adapter} was trained on another base model than {base} holds; {remedy}")


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def versions() -> dict[str, str]:
    """Versions of abctune, Python and the training libraries; a library that is not installed is left out."""
    found = {"abctune": abctune.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The processor and, where torch is loaded and sees one, the GPU."""
    machine: dict[str, Any] = {"cpu": _cpu_name(), "cpu_cores": os.cpu_count(), "gpu": None}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / GIB, 1),
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return machine


def peak_rss_gib() -> float:
    """The most memory this process has held, in GiB.

    Linux's ru_maxrss begins with what the process that started this one held; VmHWM counts from the start of this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return int(found[1]) * 1024 / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def peak_reserved_gib() -> float | None:
    """The most GPU memory torch has reserved in this process, in GiB; None without a GPU.

    The absolute peak, not the difference to some earlier moment: the student report took C's difference to a warm
    start (0.461 GB) for its need.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    peak: int = torch.cuda.max_memory_reserved()
    return peak / GIB


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
