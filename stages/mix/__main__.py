"""Draw a variant's rows from the sources and put them in training order: `python -m stages.mix VARIANT`."""

from __future__ import annotations

import sys

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, parquet_writer, read_table
from abctune.core.params import PARAMS_FILE, ItemArgument, Params, load_params
from abctune.core.places import MIXED, RAW
from abctune.core.plural import counted
from abctune.core.records import DrawnRows, MixRecord, SourceRecord, read_record, write_record
from stages.mix.draw import draw, training_order
from stages.mix.raw import remove_leftovers, rows_file
from stages.mix.shuffle import ROWS, SourceRows, places, shuffled


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    """Write data/mixed/<variant>.parquet, the rows in training order, and <variant>.json, how many of each source."""
    params = load_params()
    remove_leftovers(params.sources)
    drawn = {source: draw_source(params, variant, source) for source in params.require_variant(variant).mix}
    record = record_of(variant, {source: counts for source, (_, counts) in drawn.items()})
    order = training_order(
        params.seed, [(source, row) for source, (rows, _) in drawn.items() for row in rows]
    )
    sources = [SourceRows(source, rows_file(source), place) for source, place in places(order).items()]
    out = MIXED / f"{variant}.parquet"
    # Both or neither: a full disk must not leave the rows of one run and the counts of another.
    with atomic_output(out) as rows, atomic_output(out.with_suffix(".json")) as about:
        with parquet_writer(rows, ROWS) as writer:
            for table in shuffled(sources, MIXED):
                writer.write_table(table)
        write_record(about, record)
    for line in record.warnings:
        print(f"warning: {line}", file=sys.stderr)
    for source, counts in record.sources.items():
        wanted = f"{params.variants[variant].mix[source]:,} x rows_scale {params.active.data.rows_scale:g}"
        print(f"{variant}: {counts.drawn:,} of {counted(counts.available, 'row')} of {source} ({wanted})")


def draw_source(params: Params, variant: str, source: str) -> tuple[list[int], DrawnRows]:
    """The numbers of the rows that a variant gets of one source, how many those are, and where they are from."""
    rows = read_table(rows_file(source), f"fetch@{source}", ["row"])["row"].to_pylist()
    if not rows:
        raise UserError(
            f"{rows_file(source)} has no rows; check profiles.{params.profile}.sources.{source} in {PARAMS_FILE}"
        )
    asked = max(1, round(params.variants[variant].mix[source] * params.active.data.rows_scale))
    chosen = draw(params.seed, source, rows, asked)
    origin = read_record(RAW / source / "source.json", SourceRecord, made_by=f"fetch@{source}")
    return chosen, DrawnRows(asked=asked, available=len(rows), drawn=len(chosen), source=origin)


def record_of(variant: str, sources: dict[str, DrawnRows]) -> MixRecord:
    """The counts, and a warning for each source that has fewer rows than are asked for."""
    warnings = [
        f"variants.{variant}.mix.{source} asks for {counted(counts.asked, 'row')} of {source}, which has {counts.available:,}:"
        " all are taken"
        for source, counts in sources.items()
        if counts.asked > counts.available
    ]
    return MixRecord(sources=sources, warnings=tuple(warnings))


if __name__ == "__main__":
    typer.run(main)
