"""An adapter becomes a model file for other programs: `python -m stages.export VARIANT FORMAT`.

`base` for VARIANT writes the base model itself: what an exported adapter's gain is measured against, and, as GGUF, what the
chat applies adapters to.
"""

from __future__ import annotations

import time

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import read_table
from abctune.core.params import BASE, FormatArgument, VariantArgument, exported_item, load_params
from abctune.core.places import SPLIT


@exits_with_one_line
def main(variant: VariantArgument = "", fmt: FormatArgument = "") -> None:
    """Write models/exported/<variant>/<format> if it says what the adapter says."""
    started = time.perf_counter()
    params = load_params()
    variant, fmt = exported_item(params, variant, fmt)
    rows_of = params.evaluation.test_of if variant == BASE else variant
    rows = read_table(SPLIT / rows_of / "val.parquet", made_by=f"split@{rows_of}")
    from stages.export.write import export  # loads torch, so it comes after the checks

    model = params.active.model
    record = export(variant, fmt, rows, model.template, model.license)
    print(
        f"{variant} {fmt}: {record.bytes / 1e6:,.0f} MB, loss {record.file_loss:.4f} (the adapter's "
        f"{record.adapter_loss:.4f}), mean KL {record.mean_kl:.2g} nats, {time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
