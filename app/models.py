"""The models that can be served: the base, and each variant whose adapter is present and intact."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import abctune
from abctune.core.adapters import WEIGHTS, require_adapter
from abctune.core.errors import UserError
from abctune.core.params import BASE, Params
from abctune.core.provenance import require_same_base, sha256_of
from abctune.core.records import Record, SourceRecord, write_record
from app.optional_records import optional_record, summary_of

UNSCORED = "trained again since it was scored; `dvc repro` scores it"
CONVERTED_RECORD = "converted.json"


class Converted(Record):
    """`converted.json`: which adapter a GGUF was made of, and its own hash."""

    sha256: str
    gguf_sha256: str
    commit: str | None


@dataclass(frozen=True)
class Adapter:
    """A variant's published adapter."""

    name: str
    path: Path
    sha256: str
    commit: str | None = None  # of the revision that it comes from; None: the workspace's
    gguf: Path | None = None  # converted already, as in a Space, which has no other form of it


@dataclass(frozen=True)
class Models:
    """The models that are served, and the reasons why others are not."""

    base: Path
    adapters: dict[str, Adapter]
    losses: dict[str, float] = field(default_factory=dict)  # nats per token on the common test rows
    problems: list[str] = field(default_factory=list)
    root: Path = Path()  # of the study: the workspace, or another revision's files
    variants: tuple[str, ...] = ()  # of params.yaml, served or not
    unscored: frozenset[str] = (
        frozenset()
    )  # trained again since they were scored: metrics/ are of other adapters

    @property
    def names(self) -> list[str]:
        """Base, then the variants."""
        return [BASE, *self.adapters]

    def about(self) -> dict[str, Any]:
        """What the answers depend on, for records: abctune's version, the base, and each adapter's hash and commit."""
        source = optional_record(
            self.base / "source.json", SourceRecord
        )  # None: a base that fetch-model did not bring
        return {
            "abctune": abctune.__version__,
            "base": {"source": source and source.model_dump(mode="json"), "sha256": self.base_sha256},
            "adapters": {
                name: {"sha256": one.sha256, **({"commit": one.commit} if one.commit else {})}
                for name, one in self.adapters.items()
            },
        }

    @cached_property
    def base_sha256(self) -> dict[str, str]:
        """Hash of each file of weights, by name; read when first asked for, since a large base takes seconds."""
        weights = sorted([*self.base.glob("*.gguf"), *self.base.glob("*.safetensors")])
        return {path.name: sha256_of(path) for path in weights}

    def label(self, name: str) -> str:
        """The name with its test loss, where there is one."""
        loss = self.losses.get(name)
        return name if loss is None else f"{name} · test loss {loss:.3f}"

    def sha256(self, name: str) -> str | None:
        """The adapter's SHA-256; None for base."""
        return self.adapters[name].sha256 if name in self.adapters else None


def find_models(root: Path, base: Path, params: Params, only: str | None = None) -> Models:
    """Find the variants of params.yaml whose adapters in `root`/models can be served.

    Args:
        root: the workspace, or a folder that holds another revision's models/ and metrics/.
        only: serve only the base and this variant.

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
    # app.revision names a revision's folder by its commit.
    commit = root.name if re.fullmatch("[0-9a-f]{40}", root.name) else None
    for name in names:
        try:
            found = read_adapter(root / "models" / name, base, recorded.get(name))
            adapters[name] = replace(found, commit=found.commit or commit)
        except UserError as error:
            problems.append(str(error))
    unscored = trained_since_scored(root / "dvc.lock", list(params.variants))
    losses = read_losses(root)
    losses = {name: loss for name, loss in losses.items() if name not in unscored}
    return Models(base, adapters, losses, problems, root, tuple(params.variants), unscored)


def join_revisions(found: Mapping[str, Models]) -> Models:
    """Several revisions' models as one: `B@rev` for each variant and revision.

    Args:
        found: by the revision's name as it was asked for, its models; all on one base.
    """
    named = {f"{name}@{rev}": (models, name) for rev, models in found.items() for name in models.adapters}
    adapters = {key: replace(models.adapters[name], name=key) for key, (models, name) in named.items()}
    losses = {key: models.losses[name] for key, (models, name) in named.items() if name in models.losses}
    problems = [f"{rev}: {problem}" for rev, models in found.items() for problem in models.problems]
    unscored = frozenset(key for key, (models, name) in named.items() if name in models.unscored)
    first = next(iter(found.values()))
    return Models(first.base, adapters, losses, problems, first.root, first.variants, unscored)


def read_adapter(path: Path, base: Path, recorded: str | None = None) -> Adapter:
    """Read an adapter that passes `require_adapter`; either engine can serve it.

    Args:
        path: the adapter's folder, models/<variant>.
        base: the base model's folder.
        recorded: the folder's hash in dvc.lock; None: nothing is recorded, as in a Space.

    Raises:
        UserError: what is wrong, and the command that fixes it.
    """
    remedy = f"`dvc repro train@{path.name}` makes it, or `dvc pull` brings it"
    if (path / CONVERTED_RECORD).exists() and not (path / WEIGHTS).exists():
        return read_converted(path, base)
    require_adapter(path, base, remedy, recorded)
    return Adapter(path.name, path, sha256_of(path / WEIGHTS))


def write_converted(folder: Path, gguf: Path, adapter: Adapter) -> None:
    """Write an adapter's GGUF into a folder, with a record that names the adapter and holds the file's hash."""
    target = folder / "adapter.gguf"
    shutil.copy(gguf, target)
    record = Converted(sha256=adapter.sha256, gguf_sha256=sha256_of(target), commit=adapter.commit)
    write_record(folder / CONVERTED_RECORD, record)


def read_converted(path: Path, base: Path) -> Adapter:
    """Read what `write_converted` wrote.

    Raises:
        UserError: the file is missing or damaged, or belongs to another base.
    """
    remedy = "`python -m app.space` writes it again"
    record, gguf = optional_record(path / CONVERTED_RECORD, Converted), path / "adapter.gguf"
    if record is None or not gguf.exists() or sha256_of(gguf) != record.gguf_sha256:
        raise UserError(f"{gguf} is missing or damaged; {remedy}")
    require_same_base(path, base, remedy)
    return Adapter(path.name, path, record.sha256, record.commit, gguf)


def recorded_hashes(lock: Path, names: list[str]) -> dict[str, str]:
    """The hash of each variant's adapter that dvc.lock holds; none for a project without that file."""
    return _hashes(_stages(lock), names, "train", "outs")


def trained_since_scored(lock: Path, names: list[str]) -> frozenset[str]:
    """The variants whose adapter in dvc.lock is not the one that eval has read."""
    stages = _stages(lock)
    trained, scored = _hashes(stages, names, "train", "outs"), _hashes(stages, names, "eval", "deps")
    return frozenset(name for name in trained if name in scored and trained[name] != scored[name])


def _stages(lock: Path) -> dict[str, Any]:
    if not lock.exists():
        return {}
    from ruamel.yaml import YAML

    stages: dict[str, Any] = (YAML(typ="safe", pure=False).load(lock) or {}).get("stages", {})
    return stages


def _hashes(stages: Mapping[str, Any], names: list[str], stage: str, side: str) -> dict[str, str]:
    """The hash of models/<name> among the `outs` or `deps` of each variant's stage."""
    return {
        name: entry["md5"]
        for name in names
        for entry in stages.get(f"{stage}@{name}", {}).get(side, [])
        if entry["path"] == f"models/{name}" and "md5" in entry
    }


def read_losses(root: Path) -> dict[str, float]:
    """Each model's test loss; empty where nothing has been evaluated: the chat works without."""
    found = summary_of(root)
    models = found.models if found else {}
    return {name: model.loss["overall"] for name, model in models.items() if "overall" in model.loss}
