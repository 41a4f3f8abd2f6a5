"""Outputs of variants, sources and exports that params.yaml no longer has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from abctune.core.params import BASE, Params
from abctune.core.places import CARDS, EXPORTED, SERVED

PIPELINE = Path("dvc.yaml")
KEY = "${key}"  # in a path of dvc.yaml: the item of a stage with `foreach`


def leftovers(params: Params) -> list[Path]:
    """Files and folders that belong to no variant, source or export of params.yaml, in the folders that have one for each.

    Those folders are the parents of dvc.yaml's outputs with `${key}` in their name, exports' and the model cards'.
    """
    exported = {BASE, *params.export.variants}
    places: dict[Path, set[str]] = {
        **folders_by_item(params),
        EXPORTED: set(params.variants) | {BASE},  # the chat looks for base's GGUF there
        CARDS: set(params.variants),  # what `git checkout` leaves of an experiment with another variant
        SERVED: exported if params.export.formats else set(),
        **{SERVED / name: set(params.export.formats) for name in exported},
    }
    return [path for place, known in places.items() for path in unknown_entries(place, known)]


def folders_by_item(params: Params) -> dict[Path, set[str]]:
    """Per folder with an output for each variant or source, the names that belong there by dvc.yaml."""
    stages = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    items = {"${variants}": set(params.variants), "${sources}": set(params.sources)}
    found: dict[Path, set[str]] = {}
    for stage in stages.values():
        names = items.get(str(stage.get("foreach")), set())
        for path in paths_of(stage, "outs"):
            if names and KEY in path.name:
                found.setdefault(path.parent, set()).update(names)
    named = [path for stage in stages.values() for part in ("outs", "deps") for path in paths_of(stage, part)]
    for folder, known in found.items():
        inside = [path.relative_to(folder).parts[:1] for path in named if path.is_relative_to(folder)]
        known.update(name for parts in inside for name in parts if "$" not in name)  # models/base, models/own
    return found


def paths_of(stage: dict[str, Any], part: str) -> Iterator[Path]:
    """The paths under a stage's `outs` or `deps`, each of which is text or a mapping of the path to its options."""
    for entry in stage.get("do", stage).get(part, []):
        yield Path(entry if isinstance(entry, str) else next(iter(entry)))


def unknown_entries(place: Path, known: set[str]) -> Iterator[Path]:
    """Entries of a folder whose names are not known, .gitignore and temporary files aside."""
    if place.is_dir():
        for path in sorted(place.iterdir()):
            if not path.name.startswith(".") and path.name.split(".")[0] not in known:
                yield path
