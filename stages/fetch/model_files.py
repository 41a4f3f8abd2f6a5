"""A model repository's files: which are needed, which are refused, how many parameters they hold."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from abctune.core.errors import UserError

# Shards are named `model-00001-of-00002.safetensors`, or by other tools `model.safetensors-00001-of-00002.safetensors`.
WEIGHTS = ("model.safetensors", "model-*.safetensors", "*-[0-9]*-of-[0-9]*.safetensors")
SECOND_COPY = "consolidated"  # Mistral publishes its weights in a format of its own, too
# Data only: never Python, and never a pickle (.bin, .pt, .pth), which runs code when it is loaded.
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
OTHERS = ("*.json", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*")


def needed_files(names: Iterable[str], where: str, key: str) -> list[str]:
    """Those of a repository's files that `from_pretrained` reads and the licence asks to pass on, sorted.

    Args:
        where: the repository or folder, for messages.
        key: where params.yaml names it, for messages.

    Raises:
        UserError: there are no safetensors, no config or no tokenizer.
    """
    top = sorted(name for name in names if "/" not in name and not name.startswith(SECOND_COPY))
    for what, patterns in (
        ("model*.safetensors", WEIGHTS),
        ("config.json", ("config.json",)),
        ("tokenizer files", TOKENIZER),
    ):
        if not _matching(top, patterns):
            pickles = [name for name in top if name.endswith((".bin", ".pt", ".pth"))]
            refused = (
                f" ({pickles[0]} is refused: loading a pickle runs code)"
                if pickles and patterns is WEIGHTS
                else ""
            )
            raise UserError(
                f"params.yaml: {key}: {where} has no {what}{refused};"
                " choose a revision or a conversion of the model that has them"
            )
    return _matching(top, (*WEIGHTS, *TOKENIZER, *OTHERS))


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
