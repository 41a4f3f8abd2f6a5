"""The file of one format, written and then compared with the adapter it is made from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from abctune.core.errors import UserError
from abctune.core.files import atomic_output, write_json
from abctune.core.params import BASE
from abctune.llm.inference import load_for_inference
from abctune.llm.merge import load_merged
from abctune.llm.tokenizer import BASE_MODEL, load_tokenizer
from stages.export import llama_gguf
from stages.export.check import TOLERANCE, Distributions, by_llama_cpp, by_transformers, compare, prefixes

MODELS, EXPORTED = Path("models"), Path("models/exported")


def export(
    variant: str, fmt: str, config: dict[str, Any], rows: pa.Table, template: dict[str, Any]
) -> dict[str, Any]:
    """Write models/exported/<variant>/<fmt> if it says what the adapter says; return how near it comes."""
    if fmt != "merged_16bit":
        llama_gguf.refuse(config)  # before minutes are spent
    places = prefixes(rows)
    # In float32: the adapter as it is meant, which the file then rounds once.
    trained = None if variant == BASE else MODELS / variant
    adapter = by_transformers(load_for_inference(torch.float32, trained))
    expected = [adapter(place.ids) for place in places]
    del adapter  # one model in memory at a time
    dtype = sixteen_bit(BASE_MODEL) if fmt == "merged_16bit" else torch.float32
    if trained:
        merged, _ = load_merged(trained, dtype, load_tokenizer(**template))
    else:
        merged = load_for_inference(dtype)
    with atomic_output(EXPORTED / variant / fmt) as folder:
        folder.mkdir()
        write = write_merged if fmt == "merged_16bit" else write_gguf
        found = write(folder, variant, fmt, merged, config)
        agreement = compare(places, expected, found)
        size = sum(file.stat().st_size for file in folder.iterdir())
        record = {"variant": variant, "format": fmt, **agreement, "tolerance": TOLERANCE[fmt], "bytes": size}
        if not agreement["mean_kl"] <= TOLERANCE[fmt]:  # not `>`: NaN must not pass
            raise UserError(
                f"{variant} as {fmt} is not the adapter: mean KL {agreement['mean_kl']:.3g} nats, more than "
                f"{TOLERANCE[fmt]}; nothing is published. Take a finer format in export.formats"
            )
        write_json(folder / "check.json", record)
    return record


def write_merged(
    folder: Path, variant: str, fmt: str, merged: PreTrainedModel, config: dict[str, Any]
) -> Distributions:
    """A folder for `from_pretrained`; returns its next-token distributions."""
    merged.save_pretrained(folder)
    for file in sorted((MODELS / variant).iterdir()):
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copy(file, folder)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return by_transformers(read)


def sixteen_bit(base: Path) -> torch.dtype:
    """bfloat16 where the base's weights came in it (Llama's did), else float16, which is finer."""
    with safe_open(min(base.glob("*.safetensors")), framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return torch.bfloat16 if "BF16" in kinds else torch.float16


def write_gguf(
    folder: Path, variant: str, fmt: str, merged: PreTrainedModel, config: dict[str, Any]
) -> Distributions:
    """One GGUF file; returns its next-token distributions."""
    file, threads = folder / f"{variant}.{fmt}.gguf", len(os.sched_getaffinity(0))
    name = f"abctune {variant}"
    llama_gguf.write_gguf(file, merged.state_dict(), config, MODELS / variant, fmt, name, threads)
    return by_llama_cpp(file, config["vocab_size"], threads)
