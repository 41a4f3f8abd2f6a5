"""Fine-tune one variant, once for each replicate: `python -m stages.train VARIANT`."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.params import ItemArgument, Params, load_params
from abctune.llm.tokenizer import load_tokenizer
from stages.train.checkpoints import clear, only_run
from stages.train.data import remove_rows
from stages.train.processes import is_main, joined, launch, process_state, require_work, wanted
from stages.train.publish import publish, variant_record
from stages.train.recipe import Run, resolve
from stages.train.schedule import describe
from stages.train.sharding import base_of
from stages.train.workers import train_in_workers, workers_for


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    """Train all replicates of a variant and publish the adapter of one of them."""
    started = time.perf_counter()
    params = load_params()
    params.require_variant(variant)
    if wanted():
        launch(variant)
        return
    run = resolve(params, variant)
    with joined():
        require_work(variant, run.recipe.conversations_per_step)
        with only_run(variant) if is_main() else nullcontext():
            train(run, params, started)


def train(run: Run, params: Params, started: float) -> None:
    """Train the replicates that are not trained yet; the main process then publishes, records and removes the checkpoints."""
    if is_main():
        for line in describe(run.recipe).warnings:
            print(f"warning: {run.variant}: {line}", file=sys.stderr)
    template = params.active.model.template
    if (workers := workers_for(run)) > 1:
        finished = train_in_workers(run, params, workers, started)
        tokenizer = load_tokenizer(**template)
    else:
        base = base_of(run)  # first: it imports Unsloth, which has to come before transformers
        from stages.train.fit import train_replicates

        tokenizer = load_tokenizer(**template)
        finished = train_replicates(run, params, tokenizer, base, started)
    if process_state().is_local_main_process:
        remove_rows(run.variant)
    if not is_main():
        return
    record = variant_record([one.record for one in finished], run.recipe.publish, workers)
    publish(finished, record, tokenizer, params)
    clear(run.variant)
    for replicate in record.replicates:
        used = replicate.resources
        print(
            f"{run.variant}, replicate {replicate.replicate}: {used.seconds:.1f} s, "
            f"{used.tokens_per_second:,.0f} tokens/s, peak {used.peak_gib:.2f} GiB"
            + (f", {again} steps taken again (float16)" if (again := replicate.repeated_steps) else "")
        )


if __name__ == "__main__":
    typer.run(main)
