"""The model card that travels with a published adapter."""

from __future__ import annotations

from typing import Any

from abctune.core.params import Params

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
| LoRA | r {r}, alpha {alpha}, dropout {dropout} |
| kept | step {kept_step} by {kept_by} |

All resolved settings, library versions and the hardware are in `training.json`. How it compares with its siblings
on held-out rows was not known when this was written: the complete card is the project's `plots/cards/{variant}.md`.
"""


def model_card(record: dict[str, Any], params: Params) -> str:
    """The card's Markdown, from the run's own record."""
    base, arguments, kept = record["base_model"], record["arguments"], record["kept"]
    name = base.get("repo") or base.get("package") or base.get("path") or "a local model"
    llama = "llama" in name.lower()
    return CARD.format(
        license=base["license"].lower(),
        base=name,
        revision=base.get("revision") or base.get("version") or "local",
        variant=record["variant"],
        title=f"{'Llama-' if llama else ''}abctune-{record['variant']}",
        # Both are conditions of the Llama community licence.
        llama=" Built with Llama." if llama else "",
        profile=params.profile,
        data=", ".join(f"{_origin(params, source)}" for source in record["exposure"]["conversations"]),
        seen=", ".join(
            f"{count:,} of {source}" for source, count in record["exposure"]["conversations"].items()
        ),
        epochs=record["exposure"]["epochs"],
        steps=arguments["max_steps"],
        batch=arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"],
        rate=arguments["learning_rate"],
        peak=record["schedule"]["peak_learning_rate"],
        scheduler=arguments["lr_scheduler_type"],
        warmup=arguments["warmup_steps"],
        r=record["lora"]["r"],
        alpha=record["lora"]["lora_alpha"],
        dropout=record["lora"]["lora_dropout"],
        kept_step=kept["step"],
        kept_by=kept["by"],
    )


def _origin(params: Params, source: str) -> str:
    origin = params.active.sources[source].model_dump()
    name = origin.get("repo") or origin.get("package") or origin.get("path")
    pin = origin.get("revision") or origin.get("version")
    return f"{source} = {name}{f' @ {pin}' if pin else ''} ({origin['license']})"
