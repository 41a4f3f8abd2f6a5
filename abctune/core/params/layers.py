"""The places of params.yaml that together make a recipe, such as `train` and `variants.B.train`."""

from __future__ import annotations

from typing import Any

# Each layer: its place in params.yaml and its values.
Layers = tuple[tuple[str, dict[str, Any]], ...]
LENGTHS = ("max_steps", "num_train_epochs")  # a layer that sets one of them overrides both


def merged(layers: Layers) -> dict[str, Any]:
    """The values of all layers; a later layer overrides an earlier one."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        if any(layer.get(name) is not None for name in LENGTHS):
            values = {key: value for key, value in values.items() if key not in LENGTHS}
        values |= layer
    return values
