"""An adapter's matrices as one parameter, so that per-parameter kernels launch once.

Llama-3.2-3B's adapter has 392 matrices. bitsandbytes launches a kernel for each, as does a look for infinite
gradients: a tenth of an H100's training step, in which it has next to nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class FlatParameter(torch.nn.Module):
    """All trained parameters in one, `weight` (numel,); the given ones become views of it."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__()
        self._parts = [parameter for parameter in parameters if parameter.requires_grad]
        self.weight = torch.nn.Parameter(torch.cat([part.detach().reshape(-1) for part in self._parts]))
        self.tie()

    def tie(self) -> None:
        """Make the given parameters views of the one, with its values."""
        for part, view in zip(self._parts, self._views(self.weight.detach()), strict=True):
            part.data = view

    def gather_gradients(self) -> torch.Tensor:
        """The gradients of the backward passes since the last zero_grad, now `weight.grad`; the parts' are its views."""
        self.weight.grad = torch.cat(
            [(torch.zeros_like(part) if part.grad is None else part.grad).reshape(-1) for part in self._parts]
        )
        for part, view in zip(self._parts, self._views(self.weight.grad), strict=True):
            part.grad = view
        return self.weight.grad

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        pieces = flat.split([part.numel() for part in self._parts])
        return [piece.view_as(part) for piece, part in zip(pieces, self._parts, strict=True)]
