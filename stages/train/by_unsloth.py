"""Unsloth's model: the base weights with its kernels, and its adapter.

The only module that imports Unsloth, which must come before transformers, trl and peft: it patches them, models that it does
not train among them (Gemma 3 then failed to compile on an H200). So a base without an entry in UNSLOTH never meets it.
The import takes several seconds.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abctune.core.params import LoraParams, TrainParams
from abctune.llm.auto_class import require_all_weights
from abctune.llm.device import capability, resolve_dtype
from abctune.llm.kernels import adapter_first
from stages.train.memory import supports_packing

if torch.cuda.is_available():
    # Leaves TRL's trainers, whose SFTTrainer stages.train.trainer subclasses, as TRL wrote them: rewriting all takes 9 s.
    os.environ.setdefault("UNSLOTH_ALLOW_CPU", "1")
gc.disable()  # a fifth of the import is looking for garbage among its objects (7.2 s instead of 9.4 on a CPU)
from unsloth import FastLanguageModel  # noqa: E402  (before transformers, see above)

gc.enable()
gc.freeze()

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NAME = "Unsloth"  # in records
CHECKPOINTING: dict[str, str | bool] = {"unsloth": "unsloth", "standard": True, "none": False}


def load(path: Path, recipe: TrainParams, max_length: int, checkpointing: str) -> PreTrainedModel:
    """The base model with Unsloth's kernels; `checkpointing` as params say, `auto` included."""
    dtype = resolve_dtype(recipe.dtype)
    if supports_packing(capability(), dtype):
        _lend_kernels()
    require_all_weights(path)
    model: PreTrainedModel
    model, _ = FastLanguageModel.from_pretrained(
        str(path),
        max_seq_length=max_length,
        dtype=dtype,
        load_in_4bit=recipe.load_in_4bit,
        trust_remote_code=False,
        use_gradient_checkpointing=CHECKPOINTING.get(checkpointing, "unsloth"),
    )
    if not torch.cuda.is_available():
        # Unsloth's chunked loss, which it switches on in its own version of TRL's trainers alone.
        model._unsloth_cpu_chunked_ce_active = True
    return model


def add_adapter(model: PreTrainedModel, lora: LoraParams, checkpointing: str, seed: int) -> PeftModel:
    """Put a LoRA adapter on the model; the seed decides its first weights."""
    adapted: PeftModel = FastLanguageModel.get_peft_model(
        model,
        **lora.model_dump(exclude={"target_modules"}),
        target_modules="all-linear" if lora.target_modules == "all-linear" else list(lora.target_modules),
        bias="none",
        use_gradient_checkpointing=CHECKPOINTING[checkpointing],
        random_state=seed,
    )
    return adapted


def _lend_kernels() -> None:
    """Let Unsloth use faster kernels for packed rows than it would choose: `adapter_first`, and torch's FlashAttention.

    FlashAttention also with torch 2.11, where Unsloth does not use it for lack of an argument that came with torch 2.12; the kernel takes the
    same inputs. Without it, attention is one call per conversation and layer: slower than padding (measured on an H100).
    """
    from torch.nn.attention import varlen
    from unsloth.kernels import fast_lora
    from unsloth.utils import attention_dispatch

    fast_lora.matmul_lora = adapter_first(fast_lora.matmul_lora)
    if attention_dispatch._TORCH_VARLEN_ATTN is None:
        attention_dispatch._TORCH_VARLEN_ATTN = varlen.varlen_attn
        attention_dispatch._varlen_can_use_cudnn = lambda *_: False
        attention_dispatch._LEAN_VARLEN = True
