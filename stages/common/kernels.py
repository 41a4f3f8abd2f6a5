"""A faster product than Unsloth has of its own, which stages/common/model.py lends it for training on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def adapter_first(matmul_lora: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Unsloth's product of an adapted layer, x W' + s x A' B', for 16-bit weights: the base's product is added last.

    Unsloth adds the adapter's, which reads and writes all of the base's once more: 2 % of an H100's training step.
    The sum is as exact: one rounding between the two products either way.
    """

    def multiply(
        x: Any, w: Any, quant: Any, a: Any, b: Any, s: Any, out: Any = None, **options: Any
    ) -> torch.Tensor:
        if a is None or quant is not None or out is not None or torch.compiler.is_compiling():
            return matmul_lora(x, w, quant, a, b, s, out, **options)
        rows = x.reshape(-1, x.shape[-1])
        product = (rows @ a.to(x.dtype).t()).mul_(s) @ b.to(x.dtype).t()
        return product.addmm_(rows, w.t()).view(*x.shape[:-1], -1)

    return multiply
