"""Turn a variant's records into token ids and labels: `python -m stages.format VARIANT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, parquet_writer, read_batches, write_json, write_text
from abctune.core.params import PARAMS_FILE, ItemArgument, Params, load_params
from abctune.llm.chat import load_tokenizer, template_hash
from abctune.llm.conversation import Message, conversation_group, conversation_id
from stages.format.render import Example, Renderer
from stages.format.schemas import Rejected, to_messages
from stages.format.summary import Preview, Tally

MIXED, FORMATTED = Path("data/mixed"), Path("data/formatted")
ROWS = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),
        "source": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "n_tokens": pa.int32(),
        "n_supervised": pa.int32(),
    }
)
QUARANTINE = pa.schema(
    {"source": pa.string(), "row": pa.int64(), "reason": pa.string(), "record": pa.string()}
)


class Formatter:
    """Formats record batches; what it has seen so far is in `tally`."""

    def __init__(self, params: Params) -> None:
        self._schemas = {name: source.schema_ for name, source in params.sources.items()}
        tokenizer = load_tokenizer(chat_template=params.active.model.chat_template)
        self._renderer = Renderer(tokenizer, params.active.data.max_length)
        self._seen: set[str] = set()
        self.tally = Tally(params.active.data.max_length)
        self.preview = Preview(tokenizer)
        self.template_hash = template_hash(tokenizer)

    def batch(self, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Format some records of data/mixed; returns the rows to keep and the rows to quarantine."""
        parsed, rejected = [], []
        for record in records:
            try:
                messages = to_messages(record["record"], self._schemas[record["source"]])
                parsed.append((record, messages, self._renderer.cut(messages)))
            except Rejected as reason:
                rejected.append(self._reject(record, str(reason)))
        kept = []
        examples = self._renderer.encode([pieces for _, _, pieces in parsed])
        for (record, messages, _), example in zip(parsed, examples, strict=True):
            if example.n_supervised:
                kept += self._keep(record, messages, example)
            else:
                rejected.append(self._reject(record, "nothing supervised after truncation"))
        return kept, rejected

    def _keep(
        self, record: dict[str, Any], messages: list[Message], example: Example
    ) -> Iterator[dict[str, Any]]:
        identity, source = conversation_id(messages), record["source"]
        if identity in self._seen:
            self.tally.duplicate(source)
            return
        self._seen.add(identity)
        self.tally.kept(source, example)
        self.preview.add(source, identity, example)
        yield {
            "id": identity,
            "group": record["group"] or conversation_group(messages),
            "source": source,
            "messages": messages,
            "input_ids": example.input_ids,
            "labels": example.labels,
            "n_tokens": len(example.input_ids),
            "n_supervised": example.n_supervised,
        }

    def _reject(self, record: dict[str, Any], reason: str) -> dict[str, Any]:
        self.tally.quarantined(record["source"], reason)
        return {
            "source": record["source"],
            "row": record["row"],
            "reason": reason,
            "record": record["record"],
        }


def without_torch() -> None:
    """Make transformers start without torch, which a tokenizer does not need: 2.4 s a run instead of 7."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns that torch was not found


def check_quarantine(tally: Tally, params: Params, variant: str) -> None:
    """Stop when too many rows are unusable: then the schema is wrong, not a few rows."""
    if lines := tally.over_limit(params.format.max_quarantined):
        raise UserError(
            f"{MIXED / f'{variant}.parquet'}: {'; '.join(lines)}; the limit is format.max_quarantined = "
            f"{params.format.max_quarantined:g} in {PARAMS_FILE}. Check sources.*.schema, or raise the limit"
        )
    if not any(counts["kept"] for counts in tally.sources.values()):
        raise UserError(f"{MIXED / f'{variant}.parquet'} has no usable row")


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    without_torch()
    params = load_params()
    params.require_variant(variant)
    formatter = Formatter(params)
    with atomic_output(FORMATTED / variant) as folder:
        folder.mkdir()
        with (
            parquet_writer(folder / "rows.parquet", ROWS) as rows,
            parquet_writer(folder / "quarantine.parquet", QUARANTINE) as bad,
        ):
            for batch in read_batches(MIXED / f"{variant}.parquet", made_by=f"mix@{variant}"):
                kept, rejected = formatter.batch(batch.to_pylist())
                rows.write_table(pa.Table.from_pylist(kept, ROWS))
                bad.write_table(pa.Table.from_pylist(rejected, QUARANTINE))
        check_quarantine(formatter.tally, params, variant)
        summary = formatter.tally.summary() | {"chat_template_sha256": formatter.template_hash}
        write_json(folder / "summary.json", summary)
        write_text(folder / "preview.txt", formatter.preview.text())
    for source, counts in summary["sources"].items():
        print(
            f"{variant} {source}: {counts['read']:,} read = {counts['kept']:,} kept + {counts['duplicate']:,} duplicate + "
            f"{sum(counts['quarantined'].values()):,} quarantined; {counts['truncated']:,} truncated"
        )


if __name__ == "__main__":
    typer.run(main)
