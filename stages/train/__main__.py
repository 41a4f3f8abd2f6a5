"""Fine-tune one variant's adapter: `python -m stages.train VARIANT`."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, read_json, write_json
from abctune.core.params import ItemArgument, Params, load_params
from abctune.core.provenance import hardware, peak_reserved_gib, peak_rss_gib, versions
from abctune.llm.chat import BASE_MODEL, load_tokenizer
from stages.train.card import model_card
from stages.train.checkpoints import CheckpointStore, explaining_errors, identity, only_run
from stages.train.data import as_dataset, exposure, load_subset
from stages.train.processes import Processes, joined, launch, wanted
from stages.train.worker import follow

MODELS, METRICS = Path("models"), Path("metrics/train")


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    started = time.perf_counter()
    params = load_params()
    params.require_variant(variant)
    if wanted():
        launch(variant)
        return
    with joined() as processes:
        recipe = params.train_of(variant)
        processes.require_work(
            variant, recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        )
        if processes.is_main:
            with only_run(variant):
                train(variant, params, started, processes)
        else:
            follow(variant, params, processes)


def train(variant: str, params: Params, started: float, processes: Processes) -> None:
    recipe, max_length = params.train_of(variant), params.active.data.max_length
    rows, val = load_subset(variant, "train"), load_subset(variant, "val")

    # Unsloth, which patches transformers and trl, is imported before anything else imports them.
    from stages.train.model import load_for_training  # isort: skip
    from dvclive import Live

    from abctune.llm.device import resolve_dtype
    from stages.train.callbacks import (
        DVCLiveLogger,
        KeepBest,
        LiveSamples,
        TerminateOnNonFinite,
        ThroughputTimer,
    )
    from stages.train.micro_batching import micro_batching_for
    from stages.train.resume import Checkpoints
    from stages.train.schedule import describe
    from stages.train.trainer import Probe, build_trainer, training_arguments

    tokenizer = load_tokenizer(**params.active.model.template)
    schedule = describe(recipe)
    for line in schedule["warnings"]:
        print(f"warning: {variant}: {line}", file=sys.stderr)

    metrics = METRICS / variant
    made_of = identity(params, variant, str(resolve_dtype(recipe.dtype)))
    room = CheckpointStore(variant, made_of)
    checkpoints = Checkpoints(room, recipe.save_steps, {"kept": room.kept, "metrics": metrics}, started)
    processes.broadcast("identity", made_of)
    processes.broadcast("checkpoint", checkpoints.start and str(checkpoints.start))
    model, how = load_for_training(BASE_MODEL, recipe, params.lora, max_length, params.seed)
    cut = micro_batching_for(model, recipe, max_length)
    with Live(str(metrics), resume=bool(checkpoints.start), save_dvc_exp=False, dvcyaml=None) as live:
        clock, keep = ThroughputTimer(), KeepBest(recipe.keep, room.kept)
        samples = LiveSamples(tokenizer, metrics / "samples.jsonl", recipe.sample_every, params.seed)
        trainer = build_trainer(
            model,
            tokenizer,
            training_arguments(recipe, params.seed, output_dir=str(room.writing)),
            as_dataset(rows),
            as_dataset(val),
            callbacks=[clock, DVCLiveLogger(live, clock), keep, samples],
            eval_batch_tokens=params.active.eval.batch_tokens,
            cut=cut,
            processes=processes,
        )
        trainer.add_callback(TerminateOnNonFinite(trainer, room.last_finite))
        if not checkpoints.start:  # else the cut is the one that was found then
            trainer.add_callback(Probe(trainer, max_length))
        checkpoints.attach(trainer, {"clock": clock, "keep": keep, "samples": samples})
        processes.wait_for_others()
        with explaining_errors(room.folder), checkpoints.stopping_gently():
            trainer.train(resume_from_checkpoint=checkpoints.start)

    record = {
        "variant": variant,
        "base_model": read_json(BASE_MODEL / "source.json", made_by="fetch-model"),
        **resolved(params, variant, trainer.args),
        "cut": {"tokens_at_start": cut.tokens} | asdict(trainer.cut),
        **how,
        "schedule": schedule,
        "processes": processes.world,
        "exposure": exposure(rows, recipe),
        "kept": keep.kept._asdict(),
        "final": final_losses(trainer.state.log_history),
        "resumed_at": checkpoints.resumed_at,  # the steps at which an interrupted run was taken up again
        "resources": {
            "seconds": round(checkpoints.seconds, 2),
            "train_seconds": round(clock.seconds, 2),
            "tokens_per_second": round(clock.tokens_per_second(trainer.state), 1),
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "peak_reserved_gib": peak_reserved_gib(),
        },
        "versions": versions(),
        "hardware": hardware(),
    }
    publish(variant, room.kept, tokenizer, record, params)
    write_json(metrics / "training.json", record)
    room.leave()
    used = record["resources"]
    peak = used["peak_reserved_gib"] or used["peak_rss_gib"]
    print(
        f"{variant}: {used['seconds']:.1f} s, {used['tokens_per_second']:,.0f} tokens/s, peak {peak:.2f} GiB"
    )


def resolved(params: Params, variant: str, arguments: Any) -> dict[str, Any]:
    """Every setting as it took effect, Unsloth's and TRL's changes included."""
    recipe = params.train_of(variant)
    values = arguments.to_dict()
    return {
        "arguments": {
            key: value for key, value in sorted(values.items()) if not key.endswith(("token", "_dir"))
        },
        "max_length": params.active.data.max_length,
        "load_in_4bit": recipe.load_in_4bit,
        "dtype": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
        "lora": params.lora.model_dump(mode="json"),
    }


def final_losses(history: list[dict[str, float]]) -> dict[str, float | None]:
    def last(key: str) -> float | None:
        return next((entry[key] for entry in reversed(history) if key in entry), None)

    return {"train_loss": last("loss"), "eval_loss": last("eval_loss")}


def publish(variant: str, adapter: Path, tokenizer: Any, record: dict[str, Any], params: Params) -> None:
    """Put the kept adapter, its tokenizer and its papers at models/<variant>, all at once."""
    with atomic_output(MODELS / variant) as folder:
        shutil.copytree(adapter, folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "training.json", record)
        (folder / "README.md").write_text(model_card(record, params), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
