"""The folders that fetch writes, whole or not at all: rows.parquet or a model's files, and source.json."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from abctune.core.errors import UserError
from abctune.core.files import atomic_output, write_json, write_rows
from abctune.core.params import ModelOrigin, SourceOrigin
from abctune.core.records import SourceRecord
from stages.fetch.model_files import TEMPLATES, count_parameters
from stages.fetch.origins import open_model, open_source
from stages.fetch.records import count_rows

SCHEMA = pa.schema(
    [("row", pa.int64()), ("record", pa.string()), ("group", pa.string()), ("problem", pa.string())]
)


def write_source(origin: SourceOrigin, key: str, target: Path) -> int:
    """Write the folder of a source; return the number of its rows.

    Args:
        key: where params.yaml describes the source, for messages.
    """
    with output_folder(target) as (folder, scratch):
        records, provenance = open_source(origin, key, scratch)
        rows = write_rows(folder / "rows.parquet", count_rows(records), SCHEMA)
        if not rows:
            raise UserError(
                f"params.yaml: {key}: {', '.join(provenance['files'])} holds no rows; name a file that does"
            )
        describe(folder, origin, provenance | {"rows": rows})
    return rows


def write_model(origin: ModelOrigin, key: str, target: Path) -> int:
    """Write the folder of the base model; return the number of its parameters.

    Args:
        key: where params.yaml describes the model, for messages.
    """
    with output_folder(target) as (folder, scratch):
        provenance = open_model(origin, key, folder, scratch)
        put_own_template(origin.chat_template, key, folder)
        parameters = count_parameters(folder)
        describe(folder, origin, provenance | {"parameters": parameters})
    return parameters


@contextmanager
def output_folder(target: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that replaces `target` once it is complete, and one for files that are needed only until then."""
    with atomic_output(target) as folder:
        folder.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            yield folder, Path(scratch)


def put_own_template(chat_template: str, key: str, folder: Path) -> None:
    """Put a chat template of the user's own, where params name one, in the place of the model's."""
    if "/" not in chat_template:
        return
    if not Path(chat_template).is_file():
        raise UserError(f"params.yaml: {key}.chat_template: there is no file {chat_template}")
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)  # else the model's `tool_use` would still be taken
    shutil.copy(chat_template, folder / "chat_template.jinja")


def describe(folder: Path, origin: SourceOrigin | ModelOrigin, provenance: dict[str, Any]) -> None:
    """Write source.json, a SourceRecord: what params.yaml says of the origin, and what was found there."""
    found = {"origin": origin.origin, "license": origin.license, **provenance}
    SourceRecord.model_validate(found)  # what its readers do not know would be an error in a later stage
    write_json(folder / "source.json", found)
