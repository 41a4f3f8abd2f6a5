"""Which models there are to talk to: the base, and each variant whose adapter is there and whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from abctune.core.adapters import WEIGHTS, require_adapter
from abctune.core.errors import UserError
from abctune.core.params import BASE, Params
from abctune.core.provenance import sha256_of
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
    root: Path = Path()  # of the study: the workspace, or another revision's files
    variants: tuple[str, ...] = ()  # of params.yaml, served or not

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
    losses = read_losses(root / "metrics/summary.json")
    return Models(base, adapters, losses, problems, root, tuple(params.variants))


def read_adapter(path: Path, base: Path, recorded: str | None = None) -> Adapter:
    """An adapter that passes `require_adapter`: what does is served, by either engine.

    Args:
        path: the adapter's folder, models/<variant>.
        base: the base model's folder.
        recorded: the folder's hash in dvc.lock; None: nothing is recorded, as in a Space.

    Raises:
        UserError: what is wrong, and the command that mends it.
    """
    remedy = f"`dvc repro train@{path.name}` makes it, or `dvc pull` brings it"
    require_adapter(path, base, remedy, recorded)
    return Adapter(path.name, path, sha256_of(path / WEIGHTS))


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


def read_losses(summary: Path) -> dict[str, float]:
    """Each model's test loss; empty where nothing has been evaluated, which is no reason not to chat."""
    try:
        found = SummaryRecord.from_json(json.loads(summary.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # one of an older version also
        return {}
    return {name: model.loss["overall"] for name, model in found.models.items() if "overall" in model.loss}
