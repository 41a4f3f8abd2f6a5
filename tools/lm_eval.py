"""Standard benchmarks with EleutherAI's lm-eval: `python -m tools.lm_eval --tasks arc_easy,hellaswag`.

An extra outside the pipeline, for machines that reach a dataset hub. Base and variants are asked the same questions;
every score is stored with its standard error in metrics/harness/<model>.json.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import write_json
from abctune.core.params import BASE, load_params
from abctune.core.places import BASE_MODEL, MODELS
from abctune.core.provenance import sha256_of, versions
from abctune.llm.tokenizer import load_tokenizer

RESULTS = Path("metrics/harness")


@exits_with_one_line
def main(
    tasks: Annotated[str, typer.Option(help="lm-eval task names, separated by commas")],
    models: Annotated[str, typer.Option(help="base and variants, separated by commas; default: all")] = "",
    limit: Annotated[int | None, typer.Option(help="questions per task; default: all")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    chat: Annotated[bool, typer.Option(help="ask in the model's chat template")] = False,
    include_path: Annotated[Path | None, typer.Option(help="a folder with task files of your own")] = None,
    offline: Annotated[bool, typer.Option(help="use data sets in the local cache only")] = False,
) -> None:
    """Score a model with EleutherAI's harness on tasks of its own, for figures to compare with papers'."""
    params = load_params()
    names = [name.strip() for name in models.split(",")] if models else [BASE, *params.variants]
    for name in names:
        require_model(name)
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-eval is not installed; `pip install 'lm-eval==0.4.13'` into this environment adds it"
        )
    # abctune.llm.environment has switched the hub off for the pipeline; here the questions come from it.
    os.environ["HF_HUB_OFFLINE"] = "1" if offline else "0"

    from abctune.llm.device import resolve_dtype

    dtype = resolve_dtype(params.train_of(params.evaluation.test_of).dtype)
    tokenizer = load_tokenizer(**params.active.model.template)
    for name in names:
        model = load_model(name, dtype, tokenizer, batch_size)
        found = evaluate(model, tasks.split(","), limit, chat, include_path)
        record = {"model": name, "limit": limit, "chat": chat, "adapter_sha256": adapter_hash(name), **found}
        write_json(RESULTS / f"{name}.json", record)
        for task, scores in record["tasks"].items():
            for metric, score in scores["scores"].items():
                error = "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
                print(f"{name} {task} {metric}: {score['value']:.4f}{error} (n = {scores['n']})")


def require_model(name: str) -> None:
    """Check that `name` is base or a variant whose adapter is there."""
    if name == BASE:
        return
    load_params().require_variant(name)
    if not (MODELS / name / "adapter_config.json").exists():
        raise UserError(
            f"{MODELS / name} has no adapter; `dvc repro train@{name}` makes it, or `dvc pull` brings it"
        )


def load_model(name: str, dtype: Any, tokenizer: Any, batch_size: int) -> Any:
    """The base model, with the variant's adapter on it, as lm-eval takes one."""
    from lm_eval.models.huggingface import HFLM

    from abctune.llm.device import device

    # The base is handed over explicitly: the path in an adapter's config is where it was trained.
    return HFLM(
        pretrained=str(BASE_MODEL),
        peft=None if name == BASE else str(MODELS / name),
        tokenizer=tokenizer,
        dtype=dtype,
        device=str(device()),  # its default is cuda, on a machine without one too
        batch_size=batch_size,
    )


def evaluate(
    model: Any, tasks: list[str], limit: int | None, chat: bool, include_path: Path | None
) -> dict[str, Any]:
    """lm-eval's results: per task the number of questions, its version, and each score with its standard error."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    try:
        found = lm_eval.simple_evaluate(
            model=model, tasks=tasks, limit=limit, apply_chat_template=chat, task_manager=manager
        )
    # An unknown task is a ValueError or KeyError by version, a data set out of reach a ConnectionError.
    except (ValueError, KeyError, ConnectionError) as error:
        raise UserError(f"lm-eval cannot run {','.join(tasks)}: {str(error).splitlines()[0]}") from None
    return {
        "tasks": {
            task: {
                "n": (found.get("n-samples") or {}).get(task, {}).get("effective"),
                "version": (found.get("versions") or {}).get(task),
                "scores": scores_of(values),
            }
            for task, values in found["results"].items()
        },
        "versions": versions() | {"lm_eval": importlib.metadata.version("lm_eval")},
    }


def scores_of(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """`acc,none` and `acc_stderr,none` -> acc: its value and standard error."""
    scores: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        metric, _, answer_filter = key.partition(",")
        if not isinstance(value, float | int) or metric.endswith("_stderr") or not answer_filter:
            continue
        stderr = values.get(f"{metric}_stderr,{answer_filter}")
        name = metric if answer_filter == "none" else f"{metric} ({answer_filter})"
        scores[name] = {"value": float(value), "stderr": stderr if isinstance(stderr, float) else None}
    return scores


def adapter_hash(name: str) -> str | None:
    """SHA-256 of the adapter that was scored; None for base."""
    return None if name == BASE else sha256_of(MODELS / name / "adapter_model.safetensors")


if __name__ == "__main__":
    typer.run(main)
