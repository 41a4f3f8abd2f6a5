"""Score one model on the common test rows: `python -m stages.eval base` or `python -m stages.eval VARIANT`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, read_table, write_json, write_jsonl
from abctune.core.params import BASE, EvalParams, ItemArgument, Params, load_params
from abctune.core.provenance import peak_reserved_gib, peak_rss_gib
from abctune.llm.chat import load_tokenizer
from abctune.llm.prompts import PROMPTS

MODELS, METRICS, SPLIT = Path("models"), Path("metrics/eval"), Path("data/split")
CONVERSATIONS = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),
        "source": pa.string(),
        "nll": pa.float64(),
        "n_supervised": pa.int32(),
    }
)


@exits_with_one_line
def main(name: ItemArgument) -> None:
    started = time.perf_counter()
    params = load_params()
    if name != BASE:
        params.require_variant(name)
    rows = test_rows(params)
    tokenizer = load_tokenizer(**params.active.model.template)

    from abctune.llm.device import resolve_dtype
    from abctune.llm.inference import load_for_inference
    from abctune.llm.likelihood import conversation_nll
    from stages.eval.fused import fuse_adapter
    from stages.eval.generation import summarise
    from stages.eval.likelihood import losses
    from stages.eval.tasks import pass_rates

    dtype = resolve_dtype(params.train_of(params.evaluation.test_of).dtype)
    model = load_for_inference(dtype, None if name == BASE else MODELS / name)
    if name != BASE and model.device.type == "cuda":
        fuse_adapter(model)
    settings = params.active.eval
    nll = conversation_nll(
        model, rows["input_ids"].to_pylist(), rows["labels"].to_pylist(), settings.batch_tokens
    )
    conversations = rows.append_column("nll", pa.array(nll)).select(CONVERSATIONS.names).cast(CONVERSATIONS)
    scores = losses(conversations)
    samples, tasks = ask(model, tokenizer, rows, settings)
    rates = pass_rates(tasks)

    with atomic_output(METRICS / name) as folder:
        folder.mkdir()
        pq.write_table(conversations, folder / "conversations.parquet")
        write_jsonl(folder / "samples.jsonl", samples)
        write_jsonl(folder / "tasks.jsonl", tasks)
        resources = {
            "seconds": round(time.perf_counter() - started, 2),
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "peak_reserved_gib": peak_reserved_gib(),
        }
        test_of = params.evaluation.test_of
        record = {
            "model": name,
            "test_of": test_of,
            **scores,
            "generation": summarise(samples),
            "tasks": rates,
            "resources": resources,
        }
        write_json(folder / "metrics.json", record)
    for source, score in [*scores["sources"].items(), ("all", scores["overall"])]:
        print(
            f"{name} {source}: loss {score['loss']:.4f} nats over {score['n_conversations']:,} conversations"
        )
    for kind, rate in rates.items():
        print(f"{name} {kind}: {rate['passed']} of {rate['n']} tasks passed")


def ask(model: Any, tokenizer: Any, rows: pa.Table, settings: EvalParams) -> tuple[list[dict], list[dict]]:
    """The answers to the fixed prompts, and the checked answers to the tasks that the profile asks for."""
    from stages.eval.generation import answer_all, samples_of
    from stages.eval.lint import code_tasks
    from stages.eval.tasks import results, written_tasks

    tasks = written_tasks(settings.task_prompts)
    tasks += code_tasks(rows.select(["id", "group", "messages"]).to_pylist(), settings.code_rows)
    prompts = [*PROMPTS, *(task.prompt for task in tasks)]
    answers = answer_all(model, tokenizer, prompts, settings.max_new_tokens)
    return samples_of(answers[: len(PROMPTS)]), results(tasks, answers[len(PROMPTS) :])


def test_rows(params: Params) -> pa.Table:
    """The common test rows: those of the reference mix, the same for every model."""
    reference = params.evaluation.test_of
    path = SPLIT / reference / "test.parquet"
    columns = ["id", "group", "source", "messages", "input_ids", "labels", "n_supervised"]
    rows = read_table(path, f"split@{reference}", columns)
    if not rows.num_rows:
        raise UserError(
            f"{path} has no rows; give profiles.{params.profile}.split.test a larger share in params.yaml"
        )
    return rows


if __name__ == "__main__":
    typer.run(main)
