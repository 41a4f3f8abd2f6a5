"""Score an exported file on the common test rows, as it will be served: `python -m stages.served VARIANT FORMAT`."""

from __future__ import annotations

import time

import pyarrow.parquet as pq
import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, read_table
from abctune.core.params import (
    BASE,
    FormatArgument,
    VariantArgument,
    exported_item,
    exported_stage,
    load_params,
)
from abctune.core.places import EXPORTED, MODELS, SERVED, SPLIT
from abctune.llm.tokenizer import load_tokenizer

COLUMNS = ["id", "group", "source", "n_supervised", "input_ids", "labels", "messages", "extra"]


@exits_with_one_line
def main(variant: VariantArgument = "", fmt: FormatArgument = "") -> None:
    """Write metrics/served/<variant>/<format>.parquet: the file's loss on each test row."""
    started = time.perf_counter()
    params = load_params()
    variant, fmt = exported_item(params, variant, fmt)
    test_of = params.evaluation.test_of
    rows = read_table(SPLIT / test_of / "test.parquet", f"split@{test_of}", COLUMNS)
    from stages.served.files import open_export
    from stages.served.rows import as_rendered, scored

    served = open_export(EXPORTED / variant / fmt, exported_stage("export", variant, fmt))
    template = params.active.model.template
    trained = load_tokenizer(**template) if variant == BASE else load_tokenizer(MODELS / variant)
    rows = as_rendered(rows, trained, served.template)
    table = scored(served.load(), rows, fmt, params.active.eval.batch_tokens)
    with atomic_output(SERVED / variant / f"{fmt}.parquet") as file:
        pq.write_table(table, file)
    loss = sum(table["nll"].to_pylist()) / sum(table["n_supervised"].to_pylist())
    print(
        f"{variant} {fmt}: loss {loss:.4f} nats over {table.num_rows:,} conversations, {time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
