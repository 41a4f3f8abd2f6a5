"""What must hold of a split; where it does not, the error names the cause and a remedy."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from abctune.core.errors import UserError
from abctune.core.files import read_table, write_jsonl
from abctune.core.params import PARAMS_FILE
from abctune.core.plural import counted
from stages.split.buckets import SUBSETS, Subset
from stages.split.contamination import HeldOut
from stages.split.subsets import Assigner

FEW_GROUPS = 10  # below so many groups of a source, chance alone may leave a subset empty


def check_subsets(
    rows: Path, folder: Path, variant: str, held_out: HeldOut, assigner: Assigner, refused: Path
) -> None:
    """Read back what was written: the proof that training and held-out rows share nothing does not rest on the Assigner.

    Args:
        rows: what format made of the variant.
        folder: the subsets of it.
        refused: where the dropped training rows are listed if none is left.

    Raises:
        UserError: a subset is empty, or a training row is held out too.
    """
    refused.unlink(missing_ok=True)
    tables = {
        subset: read_table(folder / f"{subset}.parquet", f"split@{variant}", ["id", "group"])
        for subset in SUBSETS
    }
    for subset, table in tables.items():
        if not table.num_rows:
            raise UserError(
                f"split of {variant} leaves no {subset} row: {_cause(rows, variant, subset, assigner, refused)}"
            )
    for source, counts in assigner.summary().items():
        if counts.get("contaminated") and not counts.get("train"):
            raise UserError(
                f"split of {variant} leaves no training row of {source}: {_too_near(assigner, refused, source)}"
            )
    for column, reference in (("id", held_out.ids), ("group", held_out.groups)):
        held = [pa.array(reference, pa.string()), *(tables[subset][column] for subset in ("val", "test"))]
        for some in held:
            trained = tables["train"][column]
            if shared := pc.unique(trained.filter(pc.is_in(trained, value_set=some))).to_pylist():
                raise UserError(
                    f"split of {variant}: training {column}s are held out too ({len(shared):,}, e.g. {min(shared)}); this is a bug, please report it"
                )


def _cause(rows: Path, variant: str, subset: Subset, assigner: Assigner, refused: Path) -> str:
    if subset == "train" and assigner.refused:
        return _too_near(assigner, refused)
    table = read_table(rows, f"format@{variant}", ["source", "group"])
    groups = (
        table.group_by(["source", "group"])
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending")])
    )
    if groups.num_rows < min(FEW_GROUPS, table.num_rows):
        largest = groups.slice(0, 1).to_pylist()[0]
        return (
            f"its {counted(table.num_rows, 'row')} are {counted(groups.num_rows, 'group')} (the largest has {counted(largest['count_all'], 'row')} of {largest['source']}), and"
            " a group stays together: rows with the same first message or the same value of group_by. Name a column that tells the rows apart as"
            f" profiles.*.sources.{largest['source']}.group_by in {PARAMS_FILE}; more rows of these groups would not help"
        )
    return (
        f"it has {counted(table.num_rows, 'row')}, which is too few; give the variant more rows (variants.{variant}.mix, profiles.*.data.rows_scale) or"
        f" the subset a larger share (profiles.*.split) in {PARAMS_FILE}"
    )


def _too_near(assigner: Assigner, refused: Path, source: str | None = None) -> str:
    rows = [row for row in assigner.refused if source in (None, row["source"])]
    write_jsonl(refused, rows)
    return (
        f"each of its {counted(len(rows), 'row')} is too near to a held-out row ({refused} lists them). Where a shared text"
        f" makes them near, lower split.common in {PARAMS_FILE}; where they are variations of a few texts, raise split.near"
    )
