"""Split a variant's rows and keep its training rows away from the common test rows: `python -m stages.split VARIANT`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, parquet_writer, read_batches, read_rows, read_table, write_json
from abctune.core.params import PARAMS_FILE, ItemArgument, Params, SplitParams, load_params
from stages.split.buckets import SIDES, subset_of
from stages.split.contamination import HeldOut

FORMATTED, SPLIT = Path("data/formatted"), Path("data/split")


def rows_file(variant: str) -> Path:
    return FORMATTED / variant / "rows.parquet"


def held_out_of(reference: str, split: SplitParams) -> HeldOut:
    """The reference mix's validation and test rows, the ones that no variant may train on."""
    rows = read_rows(rows_file(reference), f"format@{reference}", columns=["id", "group", "messages"])
    return HeldOut.of(row for row in rows if subset_of(row["group"], split) != "train")


class SubsetAssigner:
    """Sorts rows onto their sides and counts, per source, what went where."""

    def __init__(self, split: SplitParams, held_out: HeldOut) -> None:
        self._split, self._held_out = split, held_out
        self.counts: dict[str, Counter[str]] = {}

    def side(self, row: dict[str, Any]) -> str | None:
        """The row's side, or None for a training row that is too near to a held-out one."""
        counts = self.counts.setdefault(row["source"], Counter())
        side: str | None = subset_of(row["group"], self._split)
        reason = self._held_out.near(row) if side == "train" else None
        if reason:
            side = None
            counts.update({"contaminated": 1, f"contaminated_{reason}": 1})
        else:
            counts.update(
                {side: 1, f"{side}_tokens": row["n_tokens"], f"{side}_supervised": row["n_supervised"]}
            )
        return side

    def summary(self) -> dict[str, Any]:
        return {
            "sources": {
                source: dict(sorted(counts.items())) for source, counts in sorted(self.counts.items())
            }
        }


def write_sides(variant: str, folder: Path, sorter: SubsetAssigner) -> None:
    schema = pq.read_schema(rows_file(variant))
    with ExitStack() as stack:
        writers = {
            side: stack.enter_context(parquet_writer(folder / f"{side}.parquet", schema)) for side in SIDES
        }
        for batch in read_batches(rows_file(variant), f"format@{variant}"):
            columns = ["id", "group", "source", "messages", "n_tokens", "n_supervised"]
            sides = [sorter.side(row) for row in batch.select(columns).to_pylist()]
            for side, writer in writers.items():
                writer.write_batch(batch.filter(pa.array([found == side for found in sides])))


def check_sides(folder: Path, variant: str, held_out: HeldOut) -> None:
    """Read back what was written: the proof that training and held-out rows share nothing does not rest on the sorting."""
    tables = {
        side: read_table(folder / f"{side}.parquet", f"split@{variant}", ["id", "group"]) for side in SIDES
    }
    for side, table in tables.items():
        if not table.num_rows:
            raise UserError(
                f"split of {variant} leaves no {side} row; give the variant more rows (variants.{variant}.mix) or "
                f"the side a larger share (profiles.*.split) in {PARAMS_FILE}"
            )
    for column, reference in (("id", held_out.ids), ("group", held_out.groups)):
        trained = set(tables["train"][column].to_pylist())
        held = reference.union(*(tables[side][column].to_pylist() for side in ("val", "test")))
        if shared := trained & held:
            raise UserError(
                f"split of {variant}: {len(shared)} training {column}s are held out too, e.g. {min(shared)}; this is a bug, please report it"
            )


def lines(variant: str, summary: dict[str, Any]) -> Iterator[str]:
    for source, counts in summary["sources"].items():
        sides = ", ".join(f"{counts.get(side, 0):,} {side}" for side in SIDES)
        yield f"{variant} {source}: {sides}; {counts.get('contaminated', 0):,} dropped as too near to a held-out row"


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    params: Params = load_params()
    params.require_variant(variant)
    split = params.active.split
    held_out = held_out_of(params.evaluation.test_of, split)
    sorter = SubsetAssigner(split, held_out)
    with atomic_output(SPLIT / variant) as folder:
        folder.mkdir()
        write_sides(variant, folder, sorter)
        check_sides(folder, variant, held_out)
        write_json(folder / "summary.json", sorter.summary())
    for line in lines(variant, sorter.summary()):
        print(line)


if __name__ == "__main__":
    typer.run(main)
