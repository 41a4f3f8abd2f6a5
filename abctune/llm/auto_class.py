"""Which of transformers' automatic classes loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
