"""A model repository's files: which are needed, which are refused, how many parameters they hold."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SECOND_COPY = "consolidated"  # Mistral publishes its weights in a format of its own, too
# Data only: never Python, and never a pickle (.bin, .pt, .pth), which runs code when it is loaded.
TOKENIZER = "tokenizer.json"
OTHERS = (
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
TEMPLATES = "additional_chat_templates"  # the folder of a model's named templates, but for the default one
NOT_FAST = " (transformers writes it for most: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
UNPACKED = "mxfp4"  # gpt-oss's experts: transformers unpacks them as it loads the model
# What transformers, or this project, reads as JSON.
READ = (
    "config.json",
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def needed_files(names: Iterable[str], where: str, key: str, index: Path | None = None) -> list[str]:
    """Those of a repository's files that `from_pretrained` reads and the licence asks to pass on, sorted.

    Args:
        where: the repository or folder, for messages.
        key: where params.yaml names it, for messages.
        index: the file INDEX, where there is one. Of the weights it names the shards, whatever they are called.

    Raises:
        UserError: there are no safetensors, no config or no tokenizer, or the index names a file that is not there.
    """
    found = sorted(names)
    top = [name for name in found if "/" not in name and not name.startswith(SECOND_COPY)]
    weights = _shards(index, top, where, key) if index and WHOLE not in top else (WHOLE,)
    for patterns, why in ((weights, _why_no_weights(top)), (("config.json",), ""), ((TOKENIZER,), NOT_FAST)):
        if not _matching(top, patterns):
            raise UserError(
                f"params.yaml: {key}: {where} has no {patterns[0]}{why};"
                " choose a revision or a conversion of the model that has it"
            )
    templates = [name for name in found if fnmatchcase(name, f"{TEMPLATES}/*.jinja") and name.count("/") == 1]
    return sorted([*_matching(top, (*weights, *OTHERS)), *templates])


def _why_no_weights(names: list[str]) -> str:
    """What there is in place of the file WHOLE, for a message."""
    for suffixes, why in (
        ((".safetensors",), f"is no such file, and there is no {INDEX} that names it"),
        ((".bin", ".pt", ".pth"), "is refused: loading a pickle runs code"),
    ):
        if found := [name for name in names if name.endswith(suffixes)]:
            return f" ({found[0]} {why})"
    return ""


def require_usable(folder: Path, where: str, key: str) -> None:
    """Refuse what no later stage could use, by the model's small files.

    Args:
        folder: where they are; the weights need not be there yet.
        where, key: as for `needed_files`.

    Raises:
        UserError: a file is no JSON, or the weights are quantized.
    """
    read = {name: _json(folder / name, where, key) for name in READ if (folder / name).is_file()}
    config = read["config.json"]
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    quantized = [one for part in parts if isinstance(one := part.get("quantization_config"), dict) and one]
    method = quantized[0].get("quant_method", "unknown") if quantized else None
    if method not in (None, UNPACKED):
        raise UserError(
            f"params.yaml: {key}: {where} has quantized weights (config.json: quant_method {method}), on which"
            " nothing is trained here; take the repository that has them in 16 or 32 bits"
            " (train.load_in_4bit: true quantizes those)"
        )


def _json(path: Path, where: str, key: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise UserError(
            f"params.yaml: {key}: {path.name} of {where} cannot be read ({error}); mend the file, or copy it again"
        ) from None
    return found


def _shards(index: Path, names: list[str], where: str, key: str) -> tuple[str, ...]:
    """The files that an index names."""
    try:
        shards = tuple(sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"params.yaml: {key}: {INDEX} of {where} is damaged; choose another revision, or copy the file again"
        ) from None
    if missing := sorted(set(shards) - set(names)):
        raise UserError(
            f"params.yaml: {key}: {where} has no {missing[0]}, which its {INDEX} names; choose another revision, or copy"
            " the file there"
        )
    return tuple(glob.escape(shard) for shard in shards)


def count_parameters(folder: Path) -> int:
    """How many numbers the folder's safetensors hold; their headers are read for it, not their contents.

    Raises:
        UserError: one of them is damaged.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                names = weights.keys()
                total += sum(prod(weights.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise UserError(
                f"{path.name} of the base model is damaged ({error}); see profiles.*.model in params.yaml"
            ) from None
    return total


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
