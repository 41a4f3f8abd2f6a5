"""Score one model on the common test rows: `python -m stages.eval base` or `python -m stages.eval VARIANT`."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output
from abctune.core.params import BASE, ItemArgument, load_params
from abctune.core.places import EVAL
from abctune.core.records import write_record, write_records
from abctune.llm.tokenizer import load_tokenizer
from stages.eval.rows import COLUMNS, general_rows, test_rows


@exits_with_one_line
def main(name: ItemArgument) -> None:
    """Score all replicates of a model, ask its published one, and write metrics/eval/<name>/."""
    started = time.perf_counter()
    params = load_params()
    if name != BASE:
        params.require_variant(name)
    rows = test_rows(params)
    tokenizer = load_tokenizer(**params.active.model.template)
    scored = pa.concat_tables([rows.select(list(COLUMNS)), general_rows(params, tokenizer)])
    from abctune.llm.device import resolve_dtype
    from stages.eval.asked import ask
    from stages.eval.record import record_of
    from stages.eval.replicates import adapters_of, measured
    from stages.eval.scores import lines_of
    from stages.eval.served import served

    dtype, settings = resolve_dtype(params.train_of(params.evaluation.test_of).dtype), params.active.eval
    adapters = adapters_of(name)
    published, folder_of_it = adapters.published, adapters.folder
    tables = {}
    for number in adapters.numbers:
        model = None  # free the previous model's memory first
        model = adapters.model(number, dtype)
        tables[number] = measured(model, scored, number, settings.batch_tokens)
        if number == published:
            samples, tasks = ask(model, tokenizer, rows, params)
    conversations = pa.concat_tables(tables[number] for number in sorted(tables))
    del model, adapters  # the same model in other formats needs this memory
    as_served = served(rows, folder_of_it, settings.served_formats, dtype, settings.batch_tokens)

    with atomic_output(EVAL / name) as folder:
        folder.mkdir()
        pq.write_table(conversations, folder / "conversations.parquet")
        pq.write_table(as_served, folder / "served.parquet")
        write_records(folder / "samples.jsonl", samples)
        write_records(folder / "tasks.jsonl", tasks)
        record = record_of(name, params, tokenizer, conversations, published, samples, tasks, started)
        write_record(folder / "metrics.json", record)
    for line in lines_of(record):
        print(line)


if __name__ == "__main__":
    typer.run(main)
