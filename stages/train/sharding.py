"""Whether the base model is split over the processes; decided before anything is loaded, in all of them alike."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

from abctune.core.places import BASE_MODEL
from abctune.llm.weights import weight_bytes
from stages.train.processes import is_main, process_state
from stages.train.recipe import Run

if TYPE_CHECKING:
    from stages.train.fit import Model


def decide(run: Run) -> str | None:
    """Why the base is split over the processes; None where each of them holds the whole."""
    if "RANK" not in os.environ:  # one process
        return None
    import torch
    from accelerate.utils import gather_object

    from abctune.llm.device import free_bytes
    from stages.train.memory import activation_bytes_per_token, choose_sharding

    state = process_state()
    asked = run.recipe.sharding
    if asked == "auto" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        asked = "fsdp"
    if asked == "auto" and not torch.cuda.is_available():
        asked = "none"  # processes of one CPU share its memory anyway
    free = min(gather_object([free_bytes()])) if torch.cuda.is_available() else 0
    config = SimpleNamespace(**json.loads((BASE_MODEL / "config.json").read_text(encoding="utf-8")))
    conversation = run.max_length * activation_bytes_per_token(config, checkpointing=True)  # type: ignore[arg-type]
    weights = weight_bytes(BASE_MODEL, run.recipe.load_in_4bit)
    sharded, why = choose_sharding(asked, state.num_processes, weights, conversation, free)
    return why if sharded else None


def base_of(run: Run) -> Model:
    """The base model to train on: whole in every process, with Unsloth; or split over them, without it."""
    if why := decide(run):
        from stages.train.sharded_model import ShardedBase

        if is_main():
            print(f"the base model is split over the processes (FSDP2), without Unsloth: {why}", flush=True)
        return ShardedBase(run.recipe, why)
    from stages.train.model import Base

    return Base(run.recipe, run.max_length)
