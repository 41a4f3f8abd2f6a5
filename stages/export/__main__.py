"""An adapter becomes a model file for other programs: `python -m stages.export VARIANT FORMAT`.

`base` for VARIANT writes the base model itself as GGUF, for the chat demo to apply adapters to.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, get_args

import pyarrow as pa
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, read_json, read_table, write_json
from abctune.core.params import BASE, ExportFormat, Params, key_from_dvc, load_params
from abctune.llm.chat import BASE_MODEL, load_tokenizer

MODELS, EXPORTED, SPLIT = Path("models"), Path("models/exported"), Path("data/split")
VariantArgument = Annotated[str, typer.Argument(help="a name under `variants` in params.yaml, or base")]
FormatArgument = Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(get_args(ExportFormat)))]


@exits_with_one_line
def main(variant: VariantArgument = "", fmt: FormatArgument = "") -> None:
    started = time.perf_counter()
    params = load_params()
    variant, fmt = lane(params, variant, fmt)
    config = read_json(BASE_MODEL / "config.json", made_by="fetch-model")
    rows_of = params.evaluation.test_of if variant == BASE else variant
    rows = read_table(SPLIT / rows_of / "val.parquet", made_by=f"split@{rows_of}")
    record = export(variant, fmt, config, rows, params.active.model.template)
    print(
        f"{variant} {fmt}: {record['bytes'] / 1e6:,.0f} MB, loss {record['file_loss']:.4f} (the adapter's "
        f"{record['adapter_loss']:.4f}), mean KL {record['mean_kl']:.2g} nats, {time.perf_counter() - started:.1f} s"
    )


def lane(params: Params, variant: str, fmt: str) -> tuple[str, str]:
    """The variant and the format, from the command line or from DVC's name of the lane, `export@B-q8_0`."""
    if not variant:
        variant, _, fmt = (key_from_dvc() or "").rpartition("-")
    if variant != BASE:
        params.require_variant(variant)
    if (variant, fmt) == (BASE, "merged_16bit"):
        raise UserError(
            "base has no adapter to merge: models/base is what merged_16bit would be; name a GGUF format"
        )
    if fmt not in get_args(ExportFormat):
        raise UserError(f"no format {fmt!r} to export to; there are {', '.join(get_args(ExportFormat))}")
    return variant, fmt


def export(
    variant: str, fmt: str, config: dict[str, Any], rows: pa.Table, template: dict[str, Any]
) -> dict[str, Any]:
    """Write models/exported/<variant>/<fmt> if it says what the adapter says; return how near it comes."""
    import torch

    from abctune.llm.inference import load_for_inference
    from abctune.llm.merge import load_merged
    from stages.export.check import TOLERANCE, by_transformers, compare, prefixes
    from stages.export.llama_gguf import refuse

    if fmt != "merged_16bit":
        refuse(config)  # before minutes are spent
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
        record = {"variant": variant, "format": fmt, **compare(places, expected, found)}
        record |= {
            "tolerance": TOLERANCE[fmt],
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        }
        if not record["mean_kl"] <= TOLERANCE[fmt]:  # not `>`: NaN must not pass
            raise UserError(
                f"{variant} as {fmt} is not the adapter: mean KL {record['mean_kl']:.3g} nats, more than "
                f"{TOLERANCE[fmt]}; nothing is published. Take a finer format in export.formats"
            )
        write_json(folder / "check.json", record)
    return record


def write_merged(folder: Path, variant: str, fmt: str, merged: Any, config: dict[str, Any]) -> Any:
    """A folder for `from_pretrained`; returns its next-token distributions."""
    import torch
    from transformers import AutoModelForCausalLM

    from stages.export.check import by_transformers

    merged.save_pretrained(folder)
    for file in sorted((MODELS / variant).iterdir()):
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copy(file, folder)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return by_transformers(read)


def sixteen_bit(base: Path) -> Any:
    """bfloat16 where the base's weights came in it (Llama's did), else float16, which is finer."""
    import torch
    from safetensors import safe_open

    with safe_open(min(base.glob("*.safetensors")), framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return torch.bfloat16 if "BF16" in kinds else torch.float16


def write_gguf(folder: Path, variant: str, fmt: str, merged: Any, config: dict[str, Any]) -> Any:
    """One GGUF file; returns its next-token distributions."""
    from stages.export import llama_gguf
    from stages.export.check import by_llama_cpp

    file, threads = folder / f"{variant}.{fmt}.gguf", len(os.sched_getaffinity(0))
    name = f"abctune {variant}"
    llama_gguf.write_gguf(file, merged.state_dict(), config, MODELS / variant, fmt, name, threads)
    return by_llama_cpp(file, config["vocab_size"], threads)


if __name__ == "__main__":
    typer.run(main)
