"""Nested mappings, as params.yaml and summary.json are, by dotted keys."""

from __future__ import annotations

from typing import Any


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v
        for key, inner in value.items()
        for k, v in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }
