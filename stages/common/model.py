"""The model to train: base weights through Unsloth, with a fresh LoRA adapter.

The only module that imports Unsloth. It must be imported before transformers, trl and peft, which it patches,
and it costs several seconds; for scoring and generating use stages.common.inference.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unsloth import FastLanguageModel  # isort: skip  (first, see above)

import torch

from stages.common.device import resolve_dtype
from stages.common.errors import UserError
from stages.common.params import LoraParams, TrainParams

if TYPE_CHECKING:
    from peft import PeftModel


def load_for_training(
    path: Path, recipe: TrainParams, lora: LoraParams, max_length: int, seed: int
) -> PeftModel:
    """Load the base model and put a new adapter on it; the seed decides the adapter's first weights.

    Raises:
        UserError: 4-bit weights are asked for where there is no GPU.
    """
    if recipe.load_in_4bit and not torch.cuda.is_available():
        raise UserError(
            "load_in_4bit: true needs a CUDA GPU and none is visible; use profile tiny, or set "
            "profiles.<profile>.train.load_in_4bit to false in params.yaml"
        )
    checkpointing = {"unsloth": "unsloth", "standard": True, "none": False}[recipe.gradient_checkpointing]
    model, _ = FastLanguageModel.from_pretrained(
        str(path),
        max_seq_length=max_length,
        dtype=resolve_dtype(recipe.dtype),
        load_in_4bit=recipe.load_in_4bit,
        use_gradient_checkpointing=checkpointing,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
    )
