"""A model's folder loaded by the one of transformers' automatic classes that knows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel


def load_model(
    folder: Path, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, **placement: Any
) -> PreTrainedModel:
    """The model in a folder by stock transformers, from the disk alone.

    Args:
        dtype: of its weights, and what it computes in.
        quantization: `nf4` for 4-bit weights; None for those of `dtype`.
        placement: from_pretrained's arguments that say where the weights go.

    Raises:
        UserError: as auto_class.
    """
    model: PreTrainedModel = auto_class(folder).from_pretrained(
        folder, dtype=dtype, local_files_only=True, quantization_config=quantization, **placement
    )
    return model


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
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(_config(folder))
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(
        f"{folder}/config.json: a model of type {kind.model_type} does not continue a text; take a causal language model"
    )


def _config(folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig, __version__

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except ValueError as error:  # the type is unknown, or its code would have to be run
        why = str(error).partition(". ")[0]
        raise UserError(
            f"{folder}/config.json: transformers {__version__} has no code for this model ({why}); take another model"
        ) from None
