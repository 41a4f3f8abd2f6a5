"""Fetch a source, the general text or the base model: `python -m stages.fetch <source>`, `... --general`, `... --model`.

Writes data/raw/<source>/ or data/general/ (rows.parquet, source.json) or models/base/, whole or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, write_json, write_rows
from abctune.core.params import Params, SourceOrigin, key_from_dvc, load_params
from stages.fetch.model_files import count_parameters
from stages.fetch.origins import open_model, open_source
from stages.fetch.records import count_rows

RAW, GENERAL_TEXT = Path("data/raw"), Path("data/general")
BASE_MODEL = Path("models/base")
SCHEMA = pa.schema(
    [("row", pa.int64()), ("record", pa.string()), ("group", pa.string()), ("problem", pa.string())]
)


@exits_with_one_line
def main(
    source: Annotated[str | None, typer.Argument(help="a name under `sources` in params.yaml")] = None,
    model: Annotated[bool, typer.Option("--model", help="fetch the base model instead")] = False,
    general: Annotated[bool, typer.Option("--general", help="fetch the general text instead")] = False,
) -> None:
    """Fetch what the active profile of params.yaml names."""
    if source is None and not (model or general):
        source = key_from_dvc()
    if model + general + (source is not None) != 1:
        raise UserError("name one source, or --model, or --general: `python -m stages.fetch chat`")
    started = time.monotonic()
    params = load_params()
    if source is None:
        done = fetch_model(params) if model else fetch_general(params)
    else:
        done = fetch_source(params, source)
    print(f"fetched {done} in {time.monotonic() - started:.1f} s")


def fetch_source(params: Params, name: str) -> str:
    """Write data/raw/<name>/; return what was fetched, for people."""
    if name not in params.active.sources:
        raise UserError(f"params.yaml: no source {name!r}; sources has {', '.join(params.active.sources)}")
    key = f"profiles.{params.profile}.sources.{name}"
    return f"{name}: {fetch_rows(params.active.sources[name], key, RAW / name):,} rows"


def fetch_general(params: Params) -> str:
    """Write data/general/; return what was fetched, for people."""
    rows = fetch_rows(params.active.general, f"profiles.{params.profile}.general", GENERAL_TEXT)
    return f"the general text: {rows:,} rows"


def fetch_rows(origin: SourceOrigin, key: str, target: Path) -> int:
    """Write the folder of a source; return the number of its rows.

    Args:
        key: where params.yaml describes the source, for messages.
    """
    with atomic_output(target) as folder:
        folder.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            records, provenance = open_source(origin, key, Path(scratch))
            rows = write_rows(folder / "rows.parquet", count_rows(records), SCHEMA)
        if not rows:
            raise UserError(
                f"params.yaml: {key}: {', '.join(provenance['files'])} holds no rows; name a file that does"
            )
        write_json(folder / "source.json", described(origin, provenance) | {"rows": rows})
    return rows


def fetch_model(params: Params) -> str:
    """Write models/base/; return what was fetched, for people."""
    origin, key = params.active.model, f"profiles.{params.profile}.model"
    with atomic_output(BASE_MODEL) as folder:
        folder.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            provenance = open_model(origin, key, folder, Path(scratch))
        put_own_template(origin.chat_template, key, folder)
        parameters = count_parameters(folder)
        write_json(folder / "source.json", described(origin, provenance) | {"parameters": parameters})
    return f"the base model: {parameters / 1e6:,.0f} million parameters"


def put_own_template(chat_template: str, key: str, folder: Path) -> None:
    """Put a chat template of the user's own, where params name one, in the place of the model's."""
    if "/" not in chat_template:
        return
    if not Path(chat_template).is_file():
        raise UserError(f"params.yaml: {key}.chat_template: there is no file {chat_template}")
    shutil.copy(chat_template, folder / "chat_template.jinja")


def described(origin: Any, provenance: dict[str, Any]) -> dict[str, Any]:
    return {"origin": origin.origin, "license": origin.license, **provenance}


if __name__ == "__main__":
    typer.run(main)
