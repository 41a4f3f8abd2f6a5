"""An adapter's part of each matrix product added where the base's is computed: for scoring on a GPU.

PEFT multiplies by A, by B and by the scaling, and adds the result to the base's product: six passes over an output of
some hundred megabytes, a fifth of the time. Here the base's product is added to the adapter's as it is computed: two
passes. On an H100 the sums are PEFT's to the bit (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from peft.tuners.lora import Linear

from abctune.llm.kernels import adapted_product


def fuse_adapter(model: PeftModel) -> None:
    """Replace the forward of each plain LoRA layer, for good: no merging or switching adapters afterwards."""
    for layer in model.modules():
        if isinstance(layer, Linear) and _is_plain(layer):
            layer.forward = _fused(layer)


def _is_plain(layer: Linear) -> bool:
    """One active adapter without dropout, biases or variants such as DoRA, on a plain product of the same dtype."""
    (adapter, *others), base = layer.active_adapters, layer.get_base_layer()
    return (
        not others
        and type(base) is torch.nn.Linear
        and base.bias is None
        and layer.lora_A[adapter].weight.dtype == base.weight.dtype
        and not layer.lora_bias[adapter]
        and adapter not in layer.lora_variant
        and not layer.training
        and not layer.merged
    )


def _fused(layer: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Map x (..., in) to x W' + scaling x A' B' (..., out)."""
    (adapter,) = layer.active_adapters
    base, down = layer.get_base_layer().weight.t(), layer.lora_A[adapter].weight.t()
    up = (layer.lora_B[adapter].weight * layer.scaling[adapter]).t()

    return lambda x: adapted_product(x, base, down, up)
