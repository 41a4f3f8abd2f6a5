"""Draw a variant's rows from the sources and put them in training order: `python -m stages.mix VARIANT`."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import BATCH_ROWS, atomic_output, read_table
from abctune.core.params import PARAMS_FILE, ItemArgument, Params, load_params
from abctune.core.records import DrawnRows, MixRecord, SourceRecord, read_record, write_record
from stages.mix.draw import draw, training_order

RAW, MIXED = Path("data/raw"), Path("data/mixed")
COLUMNS = ("source", "row", "record", "group")


def draw_source(params: Params, variant: str, source: str) -> tuple[pa.Table, DrawnRows]:
    """The rows a variant gets of one source (columns COLUMNS), how many those are, and where they are from."""
    rows = read_table(RAW / source / "rows.parquet", made_by=f"fetch@{source}")
    if not rows.num_rows:
        raise UserError(
            f"{RAW / source / 'rows.parquet'} has no rows; check profiles.{params.profile}.sources.{source} in {PARAMS_FILE}"
        )
    asked = max(1, round(params.variants[variant].mix[source] * params.active.data.rows_scale))
    chosen = draw(params.seed, source, rows["row"].to_pylist(), asked)
    table = rows.filter(pc.is_in(rows["row"], pa.array(chosen, pa.int64())))
    table = table.append_column("source", pa.array([source] * len(table), pa.string())).select(COLUMNS)
    origin = read_record(RAW / source / "source.json", SourceRecord, made_by=f"fetch@{source}")
    return table, DrawnRows(asked=asked, available=rows.num_rows, drawn=len(table), source=origin)


def in_training_order(params: Params, tables: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables)
    pairs = list(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))
    position = {pair: index for index, pair in enumerate(pairs)}
    return table.take(pa.array([position[pair] for pair in training_order(params.seed, pairs)], pa.int64()))


def warnings(variant: str, counts: dict[str, DrawnRows]) -> tuple[str, ...]:
    """A line for each source that has fewer rows than the variant asks for."""
    return tuple(
        f"variants.{variant}.mix.{source} asks for {count.asked:,} rows of {source}, which has {count.available:,}: all are taken"
        for source, count in counts.items()
        if count.asked > count.available
    )


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    params = load_params()
    drawn = {source: draw_source(params, variant, source) for source in params.require_variant(variant).mix}
    counts = {source: count for source, (_, count) in drawn.items()}
    record = MixRecord(sources=counts, warnings=warnings(variant, counts))
    table = in_training_order(params, [rows for rows, _ in drawn.values()])
    # Both or neither: a full disk must not leave the rows of one run beside the counts of another.
    with (
        atomic_output(MIXED / f"{variant}.parquet") as rows,
        atomic_output(MIXED / f"{variant}.json") as about,
    ):
        pq.write_table(table, rows, compression="zstd", row_group_size=BATCH_ROWS)
        write_record(about, record)
    for line in record.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{variant}: " + ", ".join(f"{count.drawn:,} rows of {source}" for source, count in counts.items()))


if __name__ == "__main__":
    typer.run(main)
