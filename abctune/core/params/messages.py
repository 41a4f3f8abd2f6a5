"""What is wrong in params.yaml, in the words and keys of the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from abctune.core.params.layers import Layers

# Below these places pydantic's location names the kind of section (hub, json, ...), which no key in the file does.
TAGGED = ("profiles.*.model", "profiles.*.general", "profiles.*.sources.*", "evaluation.checks.*")
# Last in a location where a value may be of several types, the one that was tried.
TRIED_TYPE = re.compile(r"(literal|tuple|constrained-tuple)\[.*\]|str|int|bool", re.DOTALL)


def explain(error: ValidationError, path: Path, layers: Layers = ()) -> str:
    """One line per problem: the key as written in the file, what is wrong, what is allowed."""
    lines = []
    for problem in error.errors():
        location = _written(problem)
        key = ".".join(location)
        if layers and location:
            # The layer that wins is the one to mend; a key that no layer has belongs to the variant.
            holders = [prefix for prefix, layer in layers if location[0] in layer]
            key = f"{holders[-1] if holders else layers[1][0]}.{key}"
        elif layers:
            key = layers[1][0]
        lines.append(f"{path}: {key + ': ' if key else ''}{_reason(problem)}")
    return "\n       ".join(lines)


def _written(problem: Any) -> list[str]:
    """A problem's location in keys as the file has them."""
    parts = [str(part) for part in problem["loc"]]
    for pattern in TAGGED:
        place = pattern.split(".")
        if len(parts) > len(place) and all(a in ("*", b) for a, b in zip(place, parts, strict=False)):
            del parts[len(place)]
    if parts and problem["type"].endswith(("_type", "literal_error")) and TRIED_TYPE.fullmatch(parts[-1]):
        del parts[-1]
    return parts


def _reason(problem: Any) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return "unknown key; check its spelling, or remove it"
    if kind == "missing":
        return "missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind == "string_pattern_mismatch" and "{40}" in str(problem.get("ctx", {}).get("pattern", "")):
        return f"{given!r} is not a full commit hash (40 hex digits); branches and tags move, so they are refused"
    return f"{message[0].lower()}{message[1:]}, got {given!r}"
