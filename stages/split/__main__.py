"""Split a variant's rows and keep its training rows away from the common test rows: `python -m stages.split VARIANT`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, read_rows
from abctune.core.params import ItemArgument, Params, load_params
from abctune.core.places import FORMATTED, REFUSED, SPLIT
from abctune.core.records import SplitRecord, write_record
from stages.split.buckets import SUBSETS, subset_of
from stages.split.check import check_subsets
from stages.split.contamination import HeldOut
from stages.split.subsets import Assigner, write_subsets


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    """Write data/split/<variant>, the train, val and test rows, and <variant>.json, how many of each source they are."""
    params = load_params()
    params.require_variant(variant)
    held_out = held_out_of(params)
    assigner = Assigner(params.active.split)
    with atomic_output(SPLIT / variant) as folder, atomic_output(SPLIT / f"{variant}.json") as counts:
        folder.mkdir()
        write_subsets(
            rows_file(variant), f"format@{variant}", folder, assigner, held_out, params.active.split
        )
        check_subsets(
            rows_file(variant), folder, variant, held_out, assigner, REFUSED / f"{variant}-near.jsonl"
        )
        record = SplitRecord(sources=assigner.summary())
        write_record(counts, record)
    for line in lines(variant, record):
        print(line)


def rows_file(variant: str) -> Path:
    """Where format puts a variant's rows."""
    return FORMATTED / variant / "rows.parquet"


def held_out_of(params: Params) -> HeldOut:
    """The reference mix's validation and test rows, the ones that no variant may train on."""
    reference, split = params.evaluation.test_of, params.active.split
    rows = read_rows(
        rows_file(reference), f"format@{reference}", columns=["id", "group", "source", "messages"]
    )
    return HeldOut.of(
        rows, params.split.near, params.split.common, lambda row: subset_of(row["group"], split) != "train"
    )


def lines(variant: str, record: SplitRecord) -> Iterator[str]:
    """What a person reads: one line per source."""
    for source, counts in record.sources.items():
        subsets = ", ".join(f"{counts.get(subset, 0):,} {subset}" for subset in SUBSETS)
        yield f"{variant} {source}: {subsets}; {counts.get('contaminated', 0):,} dropped as too near to a held-out row"


if __name__ == "__main__":
    typer.run(main)
