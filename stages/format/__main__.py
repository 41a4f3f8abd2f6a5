"""Turn a variant's records into token ids and labels: `python -m stages.format VARIANT`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, parquet_writer, read_batches, write_text
from abctune.core.params import ItemArgument, Params, load_params
from abctune.core.records import write_record
from abctune.core.schemas import FORMATTED_ROWS, QUARANTINE
from abctune.llm.tokenizer import load_tokenizer
from stages.format.formatter import Formatter
from stages.format.limits import check_quarantine

MIXED, FORMATTED = Path("data/mixed"), Path("data/formatted")
REJECTED = Path("data/quarantine")  # where a stopped run leaves the rows that it refused


def without_torch() -> None:
    """Make transformers start without torch, which a tokenizer does not need: 2.4 s a run instead of 7."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns that torch was not found


def make_formatter(params: Params) -> Formatter:
    """A formatter of the active profile's sources, tokenizer and length; group_by's columns count as read."""
    sources = {}
    for name, options in params.sources.items():
        group_by = getattr(params.active.sources[name], "group_by", None)
        read = (group_by.split(".")[0],) if group_by else ()
        sources[name] = options.model_copy(update={"ignore": options.ignore + read})
    return Formatter(sources, load_tokenizer(**params.active.model.template), params.active.data.max_length)


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    without_torch()
    params = load_params()
    params.require_variant(variant)
    formatter, rejected = make_formatter(params), REJECTED / f"{variant}.parquet"
    rejected.unlink(missing_ok=True)
    with atomic_output(FORMATTED / variant) as folder:
        folder.mkdir()
        with (
            parquet_writer(folder / "rows.parquet", FORMATTED_ROWS) as rows,
            parquet_writer(folder / "quarantine.parquet", QUARANTINE) as bad,
        ):
            for batch in read_batches(MIXED / f"{variant}.parquet", made_by=f"mix@{variant}"):
                kept, refused = formatter.batch(batch.to_pylist())
                rows.write_table(pa.Table.from_pylist(kept, FORMATTED_ROWS))
                bad.write_table(pa.Table.from_pylist(refused, QUARANTINE))
        record = formatter.record()
        if any(source.quarantined for source in record.sources.values()):
            with atomic_output(rejected) as copy:
                shutil.copy(folder / "quarantine.parquet", copy)
        check_quarantine(record, params, MIXED / f"{variant}.parquet", rejected)
        rejected.unlink(missing_ok=True)
        write_record(folder / "summary.json", record)
        write_text(folder / "preview.txt", formatter.preview.text(record))
    for source, counts in record.sources.items():
        print(f"{variant} {source}: {counts.line()}")


if __name__ == "__main__":
    typer.run(main)
