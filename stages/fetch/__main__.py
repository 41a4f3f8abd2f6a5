"""Fetch a source, the general text or the base model: `python -m stages.fetch <source>`, `... --general`, `... --model`.

Writes data/raw/<source>/ or data/general/ (rows.parquet, source.json) or models/base/, whole or not at all. With `--own`
it writes data/own-files/ instead: which of the files in data/own/ and models/own/ each of them is made of.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import Params, key_from_dvc, load_params
from abctune.core.places import BASE_MODEL, GENERAL_TEXT, RAW
from abctune.core.plural import counted
from stages.fetch import own_files
from stages.fetch.outputs import write_model, write_source

OWN_FILES = Path("data/own-files")


@exits_with_one_line
def main(
    source: Annotated[str | None, typer.Argument(help="a name under `sources` in params.yaml")] = None,
    model: Annotated[bool, typer.Option("--model", help="fetch the base model instead")] = False,
    general: Annotated[bool, typer.Option("--general", help="fetch the general text instead")] = False,
    own: Annotated[
        Literal["data", "model"] | None, typer.Option(help="list which of data/own or models/own is used")
    ] = None,
) -> None:
    """Fetch what the active profile of params.yaml names."""
    if source is None and not (model or general or own):
        source = key_from_dvc()
    if model + general + (source is not None) + (own is not None) != 1:
        raise UserError("name one source, or --model, or --general: `python -m stages.fetch chat`")
    started = time.monotonic()
    params = load_params()
    if own == "data":
        own_files.write_sources(params, OWN_FILES / "sources")
    elif own == "model":
        own_files.write_model(params, OWN_FILES / "model.json")
    if own:
        return
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
    return f"{name}: {counted(write_source(params.active.sources[name], key, RAW / name), 'row')}"


def fetch_general(params: Params) -> str:
    """Write data/general/; return what was fetched, for people."""
    rows = write_source(params.active.general, f"profiles.{params.profile}.general", GENERAL_TEXT)
    return f"the general text: {counted(rows, 'row')}"


def fetch_model(params: Params) -> str:
    """Write models/base/; return what was fetched, for people."""
    parameters = write_model(params.active.model, f"profiles.{params.profile}.model", BASE_MODEL)
    return f"the base model: {parameters / 1e6:,.0f} million parameters"


if __name__ == "__main__":
    typer.run(main)
