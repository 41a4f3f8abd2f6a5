"""The published adapter on other formats of the base model than the one it is judged on, row by row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from abctune.core.params import BaseFormat
from abctune.core.schemas import SERVED
from abctune.llm.device import capability, dtype_for
from abctune.llm.inference import load_for_inference
from abctune.llm.likelihood import conversation_nll

if TYPE_CHECKING:
    import torch


def other_formats(asked: Iterable[BaseFormat], judged: torch.dtype) -> list[BaseFormat]:
    """The formats asked for, without the one that models are judged on: it would give the same numbers again."""
    return [form for form in asked if form == "4bit" or judged.itemsize != 2]


def served(
    rows: pa.Table,
    adapter: Path | None,
    formats: Iterable[BaseFormat],
    judged: torch.dtype,
    batch_tokens: int,
) -> pa.Table:
    """Each format's loss on each row, by SERVED; no rows where only the judged format is in use.

    Args:
        rows: the common test rows.
        adapter: the published one; None for base, which every adapter is compared with on each format.
        formats: of the base model.
        judged: number format in which the models are judged, and in which a 4-bit base computes.
        batch_tokens: tokens per forward pass.
    """
    parts = [SERVED.empty_table()]
    ids, labels = rows["input_ids"].to_pylist(), rows["labels"].to_pylist()
    for form in other_formats(formats, judged):
        dtype = judged if form == "4bit" else sixteen_bit()
        model = load_for_inference(dtype, adapter, load_in_4bit=form == "4bit")
        columns = {name: rows[name] for name in ("id", "group", "source", "n_supervised")}
        columns |= {"format": pa.array([form] * rows.num_rows, pa.string())}
        columns |= {"nll": pa.array(conversation_nll(model, ids, labels, batch_tokens), pa.float64())}
        parts.append(pa.table(columns).select(SERVED.names).cast(SERVED))
        del model  # one at a time
    return pa.concat_tables(parts)


def sixteen_bit() -> torch.dtype:
    """bfloat16, or float16 on a GPU that lacks it."""
    return dtype_for("auto" if capability() else "bfloat16", capability())
