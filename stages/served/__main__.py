"""Score an exported file on the common test rows, as it will be served: `python -m stages.served VARIANT FORMAT`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, get_args

import pyarrow.parquet as pq
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, read_table
from abctune.core.params import ExportFormat, key_from_dvc, load_params
from abctune.llm.tokenizer import load_tokenizer

MODELS, EXPORTED, SPLIT, SERVED = (
    Path(name) for name in ("models", "models/exported", "data/split", "metrics/served")
)
COLUMNS = ["id", "group", "source", "n_supervised", "input_ids", "labels", "messages", "extra"]
VariantArgument = Annotated[str, typer.Argument(help="a name under `variants` in params.yaml")]
FormatArgument = Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(get_args(ExportFormat)))]


@exits_with_one_line
def main(variant: VariantArgument = "", fmt: FormatArgument = "") -> None:
    """Write metrics/served/<variant>/<format>.parquet: the file's loss on each test row."""
    started = time.perf_counter()
    params = load_params()
    if not variant:  # DVC's name of the stage: served@B-q8_0
        variant, _, fmt = (key_from_dvc() or "").rpartition("-")
    params.require_variant(variant)
    if fmt not in get_args(ExportFormat):
        raise UserError(f"no exported format {fmt!r}; there are {', '.join(get_args(ExportFormat))}")
    test_of = params.evaluation.test_of
    rows = read_table(SPLIT / test_of / "test.parquet", f"split@{test_of}", COLUMNS)
    from stages.served.files import open_export
    from stages.served.rows import as_rendered, scored

    served = open_export(EXPORTED / variant / fmt, f"export@{variant}-{fmt}")
    rows = as_rendered(rows, load_tokenizer(MODELS / variant), served.template)
    table = scored(served.load(), rows, fmt, params.active.eval.batch_tokens)
    with atomic_output(SERVED / variant / f"{fmt}.parquet") as file:
        pq.write_table(table, file)
    loss = sum(table["nll"].to_pylist()) / sum(table["n_supervised"].to_pylist())
    print(
        f"{variant} {fmt}: loss {loss:.4f} nats over {table.num_rows:,} conversations, {time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
