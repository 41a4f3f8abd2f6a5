"""The model to train: base weights through Unsloth where it has kernels for them, with a fresh LoRA adapter.

The only module that imports Unsloth. It must be imported before transformers, trl and peft, which it patches,
and it costs several seconds; for scoring and generating use abctune.llm.inference.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abctune.core.errors import UserError
from abctune.core.params import LoraParams, TrainParams
from abctune.llm.device import capability, free_bytes, resolve_dtype, why_no_gpu
from abctune.llm.kernels import adapter_first
from abctune.llm.tokenizer import BASE_MODEL
from stages.train.memory import (
    choose_checkpointing,
    needless_4bit,
    supports_packing,
    worth_dequantizing,
)
from stages.train.plain import UNSLOTH, add_adapter, load_plain, unreached

if torch.cuda.is_available():
    # Leaves TRL's trainers, of which none is used here, as they are: rewriting them all takes 9 s.
    os.environ.setdefault("UNSLOTH_ALLOW_CPU", "1")
gc.disable()  # a fifth of the import is looking for garbage among its objects (7.2 s instead of 9.4 on a CPU)
from unsloth import FastLanguageModel  # noqa: E402  (before transformers, see above)

gc.enable()
gc.freeze()

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CHECKPOINTING: dict[str, str | bool] = {"unsloth": "unsloth", "standard": True, "none": False}


class Base:
    """The base model that one process trains on: loaded once, with one adapter after the other on it."""

    def __init__(self, recipe: TrainParams, max_length: int, path: Path = BASE_MODEL) -> None:
        self._recipe = recipe
        self._max_length = max_length
        self._path = path
        self._adapted: PeftModel | None = None
        self._checkpointing = ""
        # What was decided about kernels, gradient checkpointing, 4-bit weights and layers, in words; known once loaded.
        self.decisions: dict[str, str] = {}

    def with_adapter(self, lora: LoraParams, seed: int) -> PeftModel:
        """The model with a new adapter on it instead of the one before; the seed decides the first weights.

        Raises:
            UserError: 4-bit weights are asked for where there is no GPU.
        """
        if self._adapted is None:
            model, self._checkpointing, self.decisions = load_base(self._path, self._recipe, self._max_length)
        else:
            model = self._adapted.unload()
        self._adapted = new_adapter(model, lora, self._checkpointing, seed)
        self._name_unreached(self._adapted)
        return self._adapted

    def _name_unreached(self, adapted: PeftModel) -> None:
        """Say once which layers the adapter leaves as they are."""
        if "unreached" not in self.decisions:
            self.decisions["unreached"] = ", ".join(unreached(adapted))
            if kinds := self.decisions["unreached"]:
                print(f"note: lora.target_modules leaves these without an adapter: {kinds}", file=sys.stderr)


def new_adapter(model: PreTrainedModel, lora: LoraParams, checkpointing: str, seed: int) -> PeftModel:
    """Put a LoRA adapter on the model; the seed decides its first weights."""
    if model.config.model_type not in UNSLOTH:
        adapted = add_adapter(model, lora, checkpointing, seed)
    else:
        adapted = _by_unsloth(model, lora, checkpointing, seed)
    for config in adapted.peft_config.values():
        # Sets, which PEFT would write to adapter_config.json in another order in every process.
        config.target_modules = sorted(config.target_modules)
        if config.target_parameters:
            config.target_parameters = sorted(config.target_parameters)
    return adapted


def _by_unsloth(model: PreTrainedModel, lora: LoraParams, checkpointing: str, seed: int) -> PeftModel:
    adapted: PeftModel = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules="all-linear" if lora.target_modules == "all-linear" else list(lora.target_modules),
        bias="none",
        use_gradient_checkpointing=CHECKPOINTING[checkpointing],
        random_state=seed,
    )
    return adapted


def load_base(
    path: Path, recipe: TrainParams, max_length: int
) -> tuple[PreTrainedModel, str, dict[str, str]]:
    """The base model, its gradient checkpointing, and for the record what was decided about both, in words."""
    if recipe.load_in_4bit and not torch.cuda.is_available():
        raise UserError(
            f"load_in_4bit: true needs a CUDA GPU, and there is none to use ({why_no_gpu()}); mend that, use profile"
            " tiny, or set profiles.<profile>.train.load_in_4bit to false in params.yaml"
        )
    how = {"base_weights": str(resolve_dtype(recipe.dtype)).removeprefix("torch.")}
    if supports_packing(capability(), resolve_dtype(recipe.dtype)):
        _lend_kernels()
    asked: str = recipe.gradient_checkpointing
    why = "as params say"
    if asked == "auto" and not torch.cuda.is_available():
        asked, why = "none", "a CPU's memory is no concern"
    model, how["kernels"] = _load(path, recipe, max_length, asked)
    config = model.config.get_text_config()
    if asked == "auto":
        asked, why = choose_checkpointing(free_bytes(), config, max_length, capability())
    how["gradient_checkpointing"] = f"{asked}: {why}"
    if recipe.load_in_4bit:
        how["base_weights"] = "4-bit, unpacked at every use"
        more = 2 * model.num_parameters() - model.get_memory_footprint()
        if warning := needless_4bit(more, free_bytes(), config, max_length):
            print(f"warning: {warning}", file=sys.stderr)
        if asked == "none" and worth_dequantizing(more, free_bytes(), config, max_length, capability()):
            model = model.dequantize()
            how["base_weights"] = f"4-bit, unpacked once, which takes {more / 2**30:.1f} GiB more"
    if not torch.cuda.is_available():
        # Unsloth's chunked loss, which it switches on in TRL's trainer alone.
        model._unsloth_cpu_chunked_ce_active = True
    return model, asked, how


def _load(
    path: Path, recipe: TrainParams, max_length: int, checkpointing: str
) -> tuple[PreTrainedModel, str]:
    """The base model, and by what it is trained."""
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
    if kind not in UNSLOTH:
        print(
            f"note: {kind} is trained by transformers and PEFT: Unsloth has no kernels of its own for it that work",
            file=sys.stderr,
        )
        return load_plain(path, resolve_dtype(recipe.dtype), recipe.load_in_4bit), "transformers"
    model, _ = FastLanguageModel.from_pretrained(
        str(path),
        max_seq_length=max_length,
        dtype=resolve_dtype(recipe.dtype),
        load_in_4bit=recipe.load_in_4bit,
        use_gradient_checkpointing=CHECKPOINTING.get(checkpointing, "unsloth"),
    )
    return model, "Unsloth"


def _lend_kernels() -> None:
    """Let Unsloth have faster kernels for packed rows than it takes: `adapter_first`, and torch's FlashAttention.

    That with torch 2.11 as well: Unsloth looks for an argument that came with torch 2.12; the kernel below it takes the
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
