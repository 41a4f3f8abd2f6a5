"""The file of one format, written and then compared with the adapter it is made from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abctune.core.errors import UserError
from abctune.core.files import atomic_output
from abctune.core.licenses import pass_on
from abctune.core.params import BASE
from abctune.core.places import BASE_MODEL, EXPORTED, MODELS
from abctune.core.records import ExportRecord, write_record
from abctune.llm.auto_class import auto_class
from abctune.llm.gguf_families import text_config
from abctune.llm.inference import load_for_inference
from abctune.llm.merge import load_merged
from abctune.llm.tokenizer import load_tokenizer
from stages.export import gguf_file
from stages.export.check import (
    TOLERANCE,
    Distributions,
    LlamaCppFile,
    by_transformers,
    compare,
    prefixes,
    require_same_tokens,
)


def export(variant: str, fmt: str, rows: pa.Table, template: dict[str, Any], license_: str) -> ExportRecord:
    """Write models/exported/<variant>/<fmt> if it answers as the adapter does; return how far they differ.

    Args:
        license_: the base model's; the folder gets its files, and what it asks for.
    """
    config = text_config(BASE_MODEL)
    if fmt != "merged_16bit":
        gguf_file.family_of(config)  # refuses before minutes are spent
    places = prefixes(rows)
    # In float32, the exact adapter, which the file then rounds once.
    trained = None if variant == BASE else MODELS / variant
    adapter = by_transformers(load_for_inference(torch.float32, trained))
    expected = [adapter(place.ids) for place in places]
    del adapter  # one model in memory at a time
    dtype = sixteen_bit(BASE_MODEL) if fmt == "merged_16bit" else torch.float32
    tokenizer = load_tokenizer(**template)
    if trained:
        merged, _ = load_merged(trained, dtype, tokenizer)
    else:
        merged = load_for_inference(dtype)
    with atomic_output(EXPORTED / variant / fmt) as folder:
        folder.mkdir()
        if fmt == "merged_16bit":
            found = write_merged(folder, merged, tokenizer)
        else:
            found = write_gguf(folder / f"{variant}.{fmt}.gguf", fmt, merged, config, tokenizer)
        agreement = compare(places, expected, found)
        pass_on(license_, BASE_MODEL, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if not agreement.mean_kl <= TOLERANCE[fmt]:  # not `>`: NaN must not pass
            raise UserError(
                f"{variant} as {fmt} is not the adapter: mean KL {agreement.mean_kl:.3g} nats, more than "
                f"{TOLERANCE[fmt]}; nothing is published. Take a finer format in export.formats"
            )
        record = ExportRecord(
            variant=variant, format=fmt, tolerance=TOLERANCE[fmt], bytes=size, **agreement._asdict()
        )
        write_record(folder / "check.json", record)
    return record


def write_merged(folder: Path, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Distributions:
    """A folder for `from_pretrained`; returns its next-token distributions."""
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    read = auto_class(folder).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return by_transformers(read)


def sixteen_bit(base: Path) -> torch.dtype:
    """bfloat16 where the base's weights came in it (Llama's did), else float16, which is finer."""
    with safe_open(min(base.glob("*.safetensors")), framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return torch.bfloat16 if "BF16" in kinds else torch.float16


def write_gguf(
    file: Path,
    fmt: str,
    merged: PreTrainedModel,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> Distributions:
    """One GGUF file, whose tokenizer is compared too; returns its next-token distributions."""
    threads, name = len(os.sched_getaffinity(0)), f"abctune {file.name.partition('.')[0]}"
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        gguf_file.write_gguf(file, merged.state_dict(), config, Path(scratch), fmt, name, threads)
    server = LlamaCppFile(file, threads)
    require_same_tokens(server, tokenizer, file.name)
    return server.distributions(config["vocab_size"])
