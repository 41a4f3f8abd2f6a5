"""The model to train where one GPU cannot hold it: plain transformers and PEFT, to be split over the processes by FSDP2.

Unsloth's kernels read a layer's weights where FSDP2 has not gathered them yet, so none of them is used here, and this
module must be imported instead of stages.train.by_unsloth: importing Unsloth changes transformers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abctune.core.errors import UserError
from abctune.core.params import LoraParams, TrainParams
from abctune.core.places import BASE_MODEL
from abctune.llm.auto_class import load_model, nf4
from abctune.llm.device import device, resolve_dtype
from abctune.llm.inference import fuse
from stages.train.adapter_files import sort_targets
from stages.train.plain import add_adapter, unreached

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class ShardedBase:
    """The base model of a sharded training; loaded again for each adapter, since what is sharded stays so."""

    def __init__(self, recipe: TrainParams, why: str, path: Path = BASE_MODEL) -> None:
        self._recipe = recipe
        self._path = path
        dtype = resolve_dtype(recipe.dtype)
        if dtype == torch.float16:
            raise UserError(
                "a model split over GPUs (FSDP2) is trained in bfloat16 or float32, and this GPU computes in float16; use "
                "GPUs from the A100 on, set profiles.<profile>.train.dtype to float32, or "
                "profiles.<profile>.train.sharding to none in params.yaml"
            )
        self._dtype = dtype
        four_bit = "4-bit, unpacked at every use"
        self.decisions = {
            "kernels": "transformers",
            "base_weights": four_bit if recipe.load_in_4bit else str(dtype).removeprefix("torch."),
            "sharded": why,
            "gradient_checkpointing": (
                "none: as params say"
                if recipe.gradient_checkpointing == "none"
                else "standard: a model that is sharded is short of memory"
            ),
        }

    def with_adapter(self, lora: LoraParams, seed: int) -> PeftModel:
        """The model with a new adapter on it, not sharded yet; the seed decides the adapter's first weights."""
        model = load_whole(self._path, self._dtype, self._recipe.load_in_4bit)
        adapted = add_adapter(model, lora, checkpointing="none", seed=seed)  # FSDP2 does the checkpointing
        sort_targets(adapted)
        self.decisions["unreached"] = ", ".join(unreached(adapted))
        return adapted


def load_whole(path: Path, dtype: torch.dtype, load_in_4bit: bool) -> PreTrainedModel:
    """The base as it is before it is sharded.

    16-bit weights are read by one process of each machine into its memory, and sharding sends every other its part;
    4-bit weights, a quarter as large, are made on every GPU whole.
    """
    os.environ["ACCELERATE_USE_FSDP"] = "true"  # by which from_pretrained knows, like the next one
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = str(not load_in_4bit).lower()
    quantization = nf4(dtype) if load_in_4bit else None
    if quantization:
        # FSDP2 splits floating-point tensors: bitsandbytes stores eight 4-bit numbers as one of float32. Not in 16 bits: CUDA's
        # copy of many tensors (torch._foreach_copy_), by which FSDP2 gathers, takes those through float32 and makes one
        # NaN of all; 0.08 % of a 4-bit base's bytes change (pytorch/pytorch#159333, bitsandbytes#1945).
        quantization.bnb_4bit_quant_storage = torch.float32
    model = load_model(path, dtype, quantization, device_map={"": device()} if load_in_4bit else None)
    model.config.get_text_config().use_cache = False
    if torch.cuda.is_available():
        fuse(model)
    return model


def fsdp_arguments(model: PeftModel, recipe: TrainParams) -> dict[str, object]:
    """The TrainingArguments that set up sharding."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            # The classes of the model's blocks, the units that FSDP2 gathers one after the other.
            "transformer_layer_cls_to_wrap": sorted(model.get_base_model()._no_split_modules),
            "activation_checkpointing": recipe.gradient_checkpointing != "none",
            "cpu_ram_efficient_loading": not recipe.load_in_4bit,
            "reshard_after_forward": True,
        },
    }
