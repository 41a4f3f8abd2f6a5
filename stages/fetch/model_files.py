"""A model repository's files: which are needed, which are refused, how many parameters they hold."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from abctune.core.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# For messages and for a model without an index, which says how its shards are named.
WEIGHTS = (WHOLE, "model-*.safetensors", "*-[0-9]*-of-[0-9]*.safetensors")
SECOND_COPY = "consolidated"  # Mistral publishes its weights in a format of its own, too
# Data only: never Python, and never a pickle (.bin, .pt, .pth), which runs code when it is loaded.
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
OTHERS = ("*.json", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*")


def needed_files(names: Iterable[str], where: str, key: str, index: Path | None = None) -> list[str]:
    """Those of a repository's files that `from_pretrained` reads and the licence asks to pass on, sorted.

    Args:
        where: the repository or folder, for messages.
        key: where params.yaml names it, for messages.
        index: the file INDEX, where there is one. Of the weights it names the shards, whatever they are called.

    Raises:
        UserError: there are no safetensors, no config or no tokenizer, or the index names a file that is not there.
    """
    top = sorted(name for name in names if "/" not in name and not name.startswith(SECOND_COPY))
    weights = _shards(index, top, where, key) if index and WHOLE not in top else WEIGHTS
    for what, patterns in (
        ("model*.safetensors", weights),
        ("config.json", ("config.json",)),
        ("tokenizer files", TOKENIZER),
    ):
        if not _matching(top, patterns):
            pickles = [name for name in top if name.endswith((".bin", ".pt", ".pth"))]
            refused = (
                f" ({pickles[0]} is refused: loading a pickle runs code)"
                if pickles and patterns is weights
                else ""
            )
            raise UserError(
                f"params.yaml: {key}: {where} has no {what}{refused};"
                " choose a revision or a conversion of the model that has them"
            )
    return _matching(top, (*weights, *TOKENIZER, *OTHERS))


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
