"""The order of a rotary embedding's rows: transformers and llama.cpp store the same projection differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection (or of its LoRA B) as llama.cpp wants them: each head's two halves alternate.

    Args:
        weight: (heads x head_dim, ...), in transformers' order.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`: rows in transformers' order."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
