"""Which models there are to talk to: the base, and each variant whose adapter is there and whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.params import BASE, Params
from abctune.core.provenance import require_same_base, sha256_of
from abctune.core.records import SummaryRecord


@dataclass(frozen=True)
class Adapter:
    """A variant's published adapter."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Models:
    """What is served, and what was meant to be but cannot."""

    base: Path
    adapters: dict[str, Adapter]
    losses: dict[str, float] = field(default_factory=dict)  # nats per token on the common test rows
    problems: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [BASE, *self.adapters]

    def label(self, name: str) -> str:
        loss = self.losses.get(name)
        return name if loss is None else f"{name} · test loss {loss:.3f}"

    def sha256(self, name: str) -> str | None:
        return self.adapters[name].sha256 if name in self.adapters else None


def find_models(root: Path, base: Path, params: Params, only: str | None = None) -> Models:
    """Look through `root`/models for the variants of params.yaml.

    Args:
        root: the workspace, or a folder that holds another revision's models/ and metrics/.
        only: serve this variant alone beside the base.

    Raises:
        UserError: the base is missing, or there is no such variant. A broken adapter is no error: it becomes
            a line in `problems`, and the others are served.
    """
    if not [*base.glob("*.safetensors"), *base.glob("*.gguf")]:
        raise UserError(f"{base} holds no model; `dvc repro fetch-model` makes it, or `dvc pull` brings it")
    names = list(params.variants)
    if only is not None:
        params.require_variant(only)
        names = [only]
    adapters, problems, recorded = {}, [], recorded_hashes(root / "dvc.lock", names)
    for name in names:
        try:
            adapters[name] = read_adapter(root / "models" / name, base, recorded.get(name))
        except UserError as error:
            problems.append(str(error))
    return Models(base, adapters, read_losses(root / "metrics/summary.json"), problems)


def read_adapter(path: Path, base: Path, recorded: str | None = None) -> Adapter:
    """Check that an adapter is there, whole, finite, the recorded one, and belongs to the base.

    The one check for all engines and commands: what passes here is served.

    Args:
        path: the adapter's folder, models/<variant>.
        base: the base model's folder.
        recorded: the folder's hash in dvc.lock; None: nothing is recorded, as in a Space.

    Raises:
        UserError: what is wrong, and the command that mends it.
    """
    from safetensors import SafetensorError, deserialize

    remedy = f"`dvc repro train@{path.name}` makes it, or `dvc pull` brings it"
    weights = path / "adapter_model.safetensors"
    for file in (path / "adapter_config.json", weights):
        if not file.exists():
            raise UserError(f"{file} not found; {remedy}")
    try:
        json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = dict(deserialize(weights.read_bytes()))  # checks that header and size agree
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, then {remedy}") from None
    if not any("lora_A" in key for key in tensors):
        raise UserError(f"{weights} holds no LoRA weights; {remedy}")
    require_same_base(path, base, remedy)
    for key, tensor in tensors.items():
        if not _finite(tensor["dtype"], tensor["data"]):
            raise UserError(
                f"{path}: {key} holds values that are not finite; `dvc repro -f train@{path.name}`"
            )
    if recorded is not None and (found := folder_hash(path)) != recorded:
        raise UserError(
            f"{path} is not what dvc.lock records ({found} instead of {recorded}); "
            f"`dvc checkout -f {path}` brings that back, `dvc commit -f train@{path.name}` records what is there"
        )
    return Adapter(path.name, path, sha256_of(weights))


def _finite(dtype: str, data: bytes) -> bool:
    """Whether all numbers of a safetensors tensor are finite. numpy has no bfloat16, so its exponent bits are read."""
    import numpy as np

    if dtype == "BF16":
        return not ((np.frombuffer(data, "<u2") & 0x7F80) == 0x7F80).any()
    numbers = np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
    return bool(np.isfinite(numbers).all())


def recorded_hashes(lock: Path, names: list[str]) -> dict[str, str]:
    """The hash of each variant's adapter that dvc.lock holds; none for a project without that file."""
    if not lock.exists():
        return {}
    from ruamel.yaml import YAML

    stages = (YAML(typ="safe", pure=False).load(lock) or {}).get("stages", {})
    return {
        name: out["md5"]
        for name in names
        for out in stages.get(f"train@{name}", {}).get("outs", [])
        if out["path"] == f"models/{name}" and "md5" in out
    }


def folder_hash(folder: Path) -> str:
    """The hash that DVC gives to a folder: of the list of its files' hashes."""

    def md5(data: bytes) -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    entries = [{"md5": md5(files[name].read_bytes()), "relpath": name} for name in sorted(files)]
    return md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def read_losses(summary: Path) -> dict[str, float]:
    """Each model's test loss; empty where nothing has been evaluated, which is no reason not to chat."""
    try:
        found = SummaryRecord.from_json(json.loads(summary.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # one of an older version also
        return {}
    return {name: model.loss["overall"] for name, model in found.models.items() if "overall" in model.loss}
