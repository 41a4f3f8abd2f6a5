"""Turn a variant's records into token ids and labels: `python -m stages.format VARIANT`."""

from __future__ import annotations

import shutil

import pyarrow as pa
import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, count_rows, parquet_writer, read_batches, write_text
from abctune.core.parallel import over_batches
from abctune.core.params import ItemArgument, load_params
from abctune.core.places import FORMATTED, MIXED, REFUSED
from abctune.core.records import write_record
from abctune.core.schemas import FORMATTED_ROWS, QUARANTINE
from stages.format.limits import check_quarantine
from stages.format.start import active_formatter, in_parts, start_reading, whole_batches


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    """Render a variant's conversations as token ids and labels, and write data/formatted/<variant>/."""
    params = load_params()
    params.require_variant(variant)
    formatter, rejected = active_formatter(), REFUSED / f"{variant}.parquet"
    mixed = MIXED / f"{variant}.parquet"
    rejected.unlink(missing_ok=True)
    with atomic_output(FORMATTED / variant) as folder:
        folder.mkdir()
        with (
            parquet_writer(folder / "rows.parquet", FORMATTED_ROWS) as rows,
            parquet_writer(folder / "quarantine.parquet", QUARANTINE) as bad,
        ):
            parts = in_parts(read_batches(mixed, made_by=f"mix@{variant}"))
            read = over_batches(parts, start_reading, count_rows(mixed, f"mix@{variant}"))
            for found in whole_batches(read):
                kept, refused = formatter.sort(found)
                rows.write_table(pa.Table.from_pylist(kept, FORMATTED_ROWS))
                bad.write_table(pa.Table.from_pylist(refused, QUARANTINE))
        record = formatter.record()
        if any(source.quarantined for source in record.sources.values()):
            with atomic_output(rejected) as copy:
                shutil.copy(folder / "quarantine.parquet", copy)
        check_quarantine(formatter, record, params, mixed, rejected)
        rejected.unlink(missing_ok=True)
        write_record(folder / "summary.json", record)
        write_text(folder / "preview.txt", formatter.preview.text(record))
    for source, counts in record.sources.items():
        print(f"{variant} {source}: {counts.line()}")


if __name__ == "__main__":
    typer.run(main)
