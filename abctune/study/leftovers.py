"""Outputs of variants, sources and exports that params.yaml no longer has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from abctune.core.params import BASE, Params
from abctune.study.places import COLLECTED, DATA, EVAL, SERVED, TRAIN

MODELS, CARDS = Path("models"), Path("plots/cards")
NOT_OF_VARIANTS = (BASE, "own", "replicates", "exported")  # other things below models/


def leftovers(params: Params) -> list[Path]:
    """Files and folders below data/, models/, metrics/ and plots/cards/ that belong to no variant or source of params.yaml."""
    variants = set(params.variants)
    exported = {BASE, *params.export.variants}
    places: dict[Path, set[str]] = {
        DATA / "raw": set(params.sources),
        DATA / "mixed": variants,
        DATA / "formatted": variants,
        DATA / "split": variants,
        MODELS: variants | set(NOT_OF_VARIANTS),
        MODELS / "replicates": variants,
        MODELS / "exported": variants | {BASE},  # the chat looks for base's GGUF there
        TRAIN: variants,
        EVAL: variants | {BASE},
        COLLECTED: variants,
        CARDS: variants,  # what `git checkout` leaves of an experiment with another variant
        SERVED: exported if params.export.formats else set(),
        **{SERVED / name: set(params.export.formats) for name in exported},
    }
    return [path for place, known in places.items() for path in strangers(place, known)]


def strangers(place: Path, known: set[str]) -> Iterator[Path]:
    """Entries of a folder whose names are not known, .gitignore and temporary files aside."""
    if place.is_dir():
        for path in sorted(place.iterdir()):
            if not path.name.startswith(".") and path.name.split(".")[0] not in known:
                yield path
