"""The model to train: base weights through Unsloth where it has kernels for them, else plain, with a fresh LoRA adapter.

Make a `Base` before anything imports transformers: it may have to import Unsloth, which comes first. For scoring and
generating use abctune.llm.inference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from abctune.core.errors import UserError
from abctune.core.params import LoraParams, TrainParams
from abctune.core.places import BASE_MODEL
from abctune.llm.device import capability, free_bytes, resolve_dtype, why_no_gpu
from stages.train import plain
from stages.train.adapter_files import sort_targets
from stages.train.memory import choose_checkpointing, needless_4bit, supports_packing, worth_dequantizing
from stages.train.micro_batching import require_packing

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Kernels(Protocol):
    """A module by which models are trained: stages.train.by_unsloth or stages.train.plain."""

    NAME: str

    def load(self, path: Path, recipe: TrainParams, max_length: int, checkpointing: str) -> PreTrainedModel:
        """The base model; `checkpointing` as params say, `auto` included."""
        ...

    def add_adapter(
        self, model: PreTrainedModel, lora: LoraParams, checkpointing: str, seed: int
    ) -> PeftModel:
        """A LoRA adapter on the model, its first weights drawn by the seed."""
        ...


class Base:
    """The base model that one process trains on: loaded once, with one adapter after the other on it."""

    def __init__(self, recipe: TrainParams, max_length: int, path: Path = BASE_MODEL) -> None:
        self._recipe = recipe
        self._max_length = max_length
        self._path = path
        self._kernels = kernels_for(path)
        # Checked here as well as where rows are packed: loading takes minutes.
        require_packing(
            recipe, model_type_of(path), supports_packing(capability(), resolve_dtype(recipe.dtype))
        )
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
            model, self._checkpointing, self.decisions = load_base(
                self._kernels, self._path, self._recipe, self._max_length
            )
        else:
            model = self._adapted.unload()
        self._adapted = self._kernels.add_adapter(model, lora, self._checkpointing, seed)
        sort_targets(self._adapted)
        self._name_unreached(self._adapted)
        return self._adapted

    def _name_unreached(self, adapted: PeftModel) -> None:
        """Say once which layers the adapter leaves as they are."""
        if "unreached" not in self.decisions:
            self.decisions["unreached"] = ", ".join(plain.unreached(adapted))
            if kinds := self.decisions["unreached"]:
                print(f"note: lora.target_modules leaves these without an adapter: {kinds}", file=sys.stderr)


def model_type_of(path: Path) -> str:
    """The architecture of the base model in a folder, by its config.json."""
    return str(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"])


def kernels_for(path: Path) -> Kernels:
    """What trains the base model in a folder. Without reading it by transformers, before which Unsloth is imported."""
    kind = model_type_of(path)
    if kind in plain.UNSLOTH:
        from stages.train import by_unsloth

        return by_unsloth
    print(
        f"note: {kind} is trained by transformers and PEFT: Unsloth has no kernels of its own for it that work",
        file=sys.stderr,
    )
    return plain


def load_base(
    kernels: Kernels, path: Path, recipe: TrainParams, max_length: int
) -> tuple[PreTrainedModel, str, dict[str, str]]:
    """The base model, its gradient checkpointing, and for the record what was decided about both, in words.

    Raises:
        UserError: 4-bit weights are asked for where there is no GPU.
    """
    if recipe.load_in_4bit and not torch.cuda.is_available():
        raise UserError(
            f"load_in_4bit: true needs a CUDA GPU, and there is none to use ({why_no_gpu()}); mend that, use profile"
            " tiny, or set profiles.<profile>.train.load_in_4bit to false in params.yaml"
        )
    how = {
        "kernels": kernels.NAME,
        "base_weights": str(resolve_dtype(recipe.dtype)).removeprefix("torch."),
    }
    asked: str = recipe.gradient_checkpointing
    why = "as params say"
    if asked == "auto" and not torch.cuda.is_available():
        asked, why = "none", "a CPU's memory is not the limit"
    model = kernels.load(path, recipe, max_length, asked)
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
    return model, asked, how
