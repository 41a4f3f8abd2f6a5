"""A model's folder loaded by the one of transformers' automatic classes that knows it, if its weights are all there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

SHOWN = 3  # tensors that a message names


def load_model(
    folder: Path, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, **placement: Any
) -> PreTrainedModel:
    """The model in a folder by stock transformers, from the disk alone.

    Args:
        dtype: of its weights, and what it computes in.
        quantization: `nf4` for 4-bit weights; None for those of `dtype`.
        placement: from_pretrained's arguments that say where the weights go.

    Raises:
        UserError: as require_all_weights.
    """
    require_all_weights(folder)
    model: PreTrainedModel = auto_class(folder).from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        quantization_config=quantization,
        **placement,
    )
    return model


def require_all_weights(folder: Path) -> None:
    """Refuse a folder whose safetensors lack a tensor of the model, or have one in another shape.

    transformers itself compares, so that tied matrices, buffers and what it renames or joins count as it counts them. It
    gets shapes without numbers: the files' headers are read, and no memory is used.

    Raises:
        UserError: a tensor is missing or of another shape; or as auto_class.
    """
    if getattr(_config(folder), "quantization_config", None):
        return  # packed: other tensors than the model's (gpt-oss)
    if wrong := _wrong_tensors(folder):
        raise UserError(
            f"{folder}: its safetensors {wrong}, for which transformers would take random numbers; take a whole copy of"
            " the causal language model (profiles.<profile>.model in params.yaml)"
        )


def _wrong_tensors(folder: Path) -> str:
    """What keeps a folder's tensors from being its config's model, for a message; empty where nothing does."""
    import torch

    with _quiet(), _unsharded(), torch.device("meta"):
        empty = auto_class(folder).from_config(_config(folder))
        try:
            _, found = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=_shapes(folder),
                device_map="meta",
                ignore_mismatched_sizes=True,  # told by the caller
                output_loading_info=True,
            )
        except RuntimeError as error:
            if "conversion of the weights" not in str(error):
                raise
            # Experts that are stored one by one could not be joined; the error says no more.
            return "do not hold all tensors of its experts in the shapes that config.json says"
    if missing := found["missing_keys"]:
        return f"lack {_some(missing)}"
    others = {name for name, *_ in found["mismatched_keys"]}
    return f"have another shape than config.json says: {_some(others)}" if others else ""


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _shapes(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors by its name, without its numbers."""
    import torch
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    found[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); copy or make it again") from None
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its table of what is missing, which is told here in one line."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def _unsharded() -> Iterator[None]:
    """Outside FSDP's environment, in which all processes but the first make every tensor anew on the CPU."""
    sharded = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if sharded is not None:
            os.environ["ACCELERATE_USE_FSDP"] = sharded


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's 4-bit weights as Unsloth's `load_in_4bit` makes them; bitsandbytes does it on GPUs and on CPUs."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def auto_class(folder: Path) -> Any:
    """AutoModelForCausalLM, or AutoModelForImageTextToText where only that knows the model in a folder.

    A model that reads images too (Mistral Small 3, Qwen2.5-VL) has no causal language model of its own: its language
    model is trained, scored and asked inside the whole.

    Raises:
        UserError: transformers does not know the model, or it is none that continues a text.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    config = _config(folder)
    kind = type(config)
    # BERT and its kin: a class for continuing texts reads their weights, but unless they say so, attends both ways.
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", True) is False
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and (config.is_encoder_decoder or not encodes):
        return AutoModelForCausalLM
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(
        f"{folder}/config.json: a model of type {kind.model_type} does not continue a text; take a causal language model"
    )


def _config(folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig, __version__

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError as error:  # the type is unknown, or its code would have to be run
        why = str(error).partition(". ")[0]
        raise UserError(
            f"{folder}/config.json: transformers {__version__} has no code for this model ({why}); take another model"
        ) from None
