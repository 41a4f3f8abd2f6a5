"""Exported files, opened as a serving program opens them: with their own weights and their own chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.places import BASE_MODEL
from abctune.llm.device import capability, device, dtype_for, free_bytes
from abctune.llm.gguf_families import FAMILIES, parts_of, read_back, tensor_names
from abctune.llm.inference import WORKING_BYTES, load_for_inference

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Export:
    """One exported file or folder."""

    template: str  # its chat template
    load: Callable[[], PreTrainedModel]


def open_export(folder: Path, made_by: str) -> Export:
    """What `export` wrote into a folder.

    Raises:
        UserError: it is missing, or has no chat template.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files and not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no exported model; `dvc repro {made_by}` makes it")
    export = _gguf(files[0]) if files else _merged(folder)
    if not export.template:
        raise UserError(
            f"{folder} has no chat template of its own; run `dvc repro --force --single-item {made_by}`"
        )
    return export


def _merged(folder: Path) -> Export:
    """A merged model's folder, loaded in its own number format by `from_pretrained`."""
    name = read_json(folder / "config.json", "export").get("dtype", "float32")
    template = AutoTokenizer.from_pretrained(folder, local_files_only=True).chat_template
    return Export(template, lambda: load_for_inference(getattr(torch, name), base=folder))


def _gguf(file: Path) -> Export:
    reader = gguf.GGUFReader(file)
    field = reader.fields.get("tokenizer.chat_template")
    return Export(field.contents() if field else "", lambda: dequantised(reader, file.name))


def unpacked_dtype(weights: int) -> torch.dtype:
    """float32, which rounds no weight of a file; a GPU's 16 bits where it has no room for it.

    Args:
        weights: bytes of all of them in float32.
    """
    if not torch.cuda.is_available() or weights + WORKING_BYTES <= free_bytes():
        return torch.float32
    return dtype_for("auto", capability())


def dequantised(reader: gguf.GGUFReader, name: str, base: Path = BASE_MODEL) -> PreTrainedModel:
    """A GGUF's weights, unpacked to float32 or what fits the GPU, in the base's architecture.

    These are the numbers that llama.cpp multiplies by. It rounds what it multiplies them with, too: `export` compares its
    own distributions with the adapter's (check.json). Asked token by token it would take hours for a test set.

    Raises:
        UserError: the file lacks a tensor that the base has.
    """
    config = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config()
    described = config.to_dict()
    family = FAMILIES[config.model_type]
    names, tensors = tensor_names(family, described), {tensor.name: tensor for tensor in reader.tensors}
    # No file holds the rotary tables: they come from the config.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, place in parts_of(key, weight):
            found = tensors.get(names.get_name(part, try_suffixes=(".weight", ".bias")) or "")
            if found is None:
                raise UserError(f"{name} lacks {key} of {base}; export it again")
            value = read_back(part, gguf.dequantize(found.data, found.tensor_type), family, described)
            place.copy_(torch.tensor(value, dtype=torch.float32).reshape(place.shape))
    dtype = unpacked_dtype(sum(weight.nbytes for weight in model.parameters()))
    if dtype != torch.float32:
        kind = str(dtype).removeprefix("torch.")
        print(f"{name} is scored in {kind}: unpacked to float32 it does not fit the GPU")
    served: PreTrainedModel = model.to(dtype).to(device()).eval()
    return served
