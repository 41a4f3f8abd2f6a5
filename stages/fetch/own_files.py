"""Which of a person's own files a source, the general text or the base model is made of, by hash.

What `fetch` depends on in place of data/own and models/own as a whole: a file that is added or edited there makes only
what names it out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abctune.core.files import atomic_output, write_json
from abctune.core.params import LocalModel, LocalSource, ModelOrigin, Params, SourceOrigin
from abctune.core.provenance import hash_of
from stages.fetch.data_files import data_files
from stages.fetch.local import hashes, model_files

GENERAL = "general"  # no source can have this name


def write_sources(params: Params, folder: Path) -> None:
    """Write <source>.json for each source and general.json: a file's hash and size by its name below data/own/.

    Raises:
        UserError: a path in params.yaml names nothing that can be read.
    """
    key = f"profiles.{params.profile}"
    named = {name: (f"{key}.sources.{name}", origin) for name, origin in params.active.sources.items()}
    named[GENERAL] = (f"{key}.general", params.active.general)
    with atomic_output(folder) as temporary:
        temporary.mkdir()
        for name, (key, origin) in named.items():
            write_json(temporary / f"{name}.json", of_source(origin, key))


def write_model(params: Params, path: Path) -> None:
    """Write one JSON file for the model and its chat template: a file's hash and size by its name.

    Raises:
        UserError: the folder that params.yaml names is not a model.
    """
    write_json(path, of_model(params.active.model, f"profiles.{params.profile}.model"))


def of_source(origin: SourceOrigin, key: str) -> dict[str, Any]:
    """The own files that are a source; none where it comes from elsewhere."""
    if not isinstance(origin, LocalSource):
        return {}
    return hashes(data_files(origin.paths, f"params.yaml: {key}.path", origin.split).files)


def of_model(origin: ModelOrigin, key: str) -> dict[str, Any]:
    """The own files that are the model or its chat template."""
    files = model_files(origin, key) if isinstance(origin, LocalModel) else []
    template = Path(origin.chat_template)
    if "/" in origin.chat_template and template.is_file():
        files = [*files, template]
    return {path.as_posix(): hash_of(path) for path in files}
