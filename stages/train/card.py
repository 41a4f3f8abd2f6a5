"""The model card that travels with a published adapter."""

from __future__ import annotations

from abctune.core.params import Params
from abctune.core.records import SourceRecord, TrainingRecord

CARD = """---
library_name: peft
license: {license}
base_model: {base}
---

# {title}

A LoRA adapter on {base} ({revision}), variant {variant} of an abctune run with profile {profile}.{llama}

| | |
|---|---|
| data | {data} |
| conversations seen | {seen} ({epochs:.2f} epochs) |
| steps x batch | {steps} x {batch} |
| learning rate | {rate:g} (realised peak {peak:.3g}), {scheduler}, warmup {warmup} |
| LoRA | r {r}, alpha {alpha}, dropout {dropout}{kind} |
| replicate | {replicate} of {replicates} trainings that differ in the seed alone |
| kept | step {kept_step} by {kept_by} |

All resolved settings, library versions and the hardware are in `training.json`. How it compares with its siblings
on held-out rows was not known when this was written: the complete card is the project's `plots/cards/{variant}.md`.
"""


def model_card(record: TrainingRecord, params: Params) -> str:
    """The card's Markdown, from the variant's own record."""
    base, kept, seen = record.base_model, record.published_replicate.kept, record.exposure
    return CARD.format(
        license=base.license.lower(),
        base=base.name,
        revision=base.pin or "local",
        variant=record.variant,
        title=f"{'Llama-' if base.is_llama else ''}abctune-{record.variant}",
        # Both are conditions of the Llama community license.
        llama=" Built with Llama." if base.is_llama else "",
        profile=params.profile,
        replicate=record.published,
        replicates=len(record.replicates),
        data=", ".join(_origin(params, source) for source in seen.conversations),
        seen=", ".join(f"{count:,} of {source}" for source, count in seen.conversations.items()),
        epochs=seen.epochs,
        steps=record.argument("max_steps"),
        batch=record.conversations_per_step,
        rate=record.argument("learning_rate"),
        peak=record.schedule.peak_learning_rate,
        scheduler=record.argument("lr_scheduler_type"),
        warmup=record.argument("warmup_steps"),
        r=record.lora["r"],
        alpha=record.lora["lora_alpha"],
        dropout=record.lora["lora_dropout"],
        kind="".join(f", {kind}" for kind in ("rslora", "dora") if record.lora[f"use_{kind}"]),
        kept_step=kept.step,
        kept_by=kept.by,
    )


def _origin(params: Params, source: str) -> str:
    origin = SourceRecord.model_validate(
        {
            key: value
            for key, value in params.active.sources[source].model_dump().items()
            if key in SourceRecord.model_fields and key != "files"
        }
    )
    return f"{source} = {origin.name}{f' @ {origin.pin}' if origin.pin else ''} ({origin.license})"
