"""An adapter's weights in and out, whole, also where every process holds a part of each (FSDP2)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from abctune.core.adapters import WEIGHTS

if TYPE_CHECKING:
    from peft import PeftModel

# Activation checkpointing puts a module of this name around each layer.
WRAPPED = "_checkpoint_wrapped_module."


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by the names that they have without wrappers."""
    return {
        name.replace(WRAPPED, ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2 has divided the adapter's weights among processes."""
    return any(isinstance(parameter, DTensor) for parameter in trained(model).values())


def sort_targets(model: PeftModel) -> None:
    """Put what the adapter targets in order: PEFT holds sets, which every process would write in another order."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)
        if config.target_parameters:
            config.target_parameters = sorted(config.target_parameters)


def save_adapter(
    model: Any, folder: Path, writes: bool, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter to `folder`, in place of what is there.

    Every process of a sharded training must call it, since each sends its part.

    Args:
        writes: whether this process is the one that writes.
        weights: by the names of `trained`, those to write; by default the present ones.
    """
    if weights is None and is_sharded(model):
        weights = trained(model)
    whole = None if weights is None else {name: gathered(weight) for name, weight in weights.items()}
    if writes:
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, state_dict=whole)


def load_adapter(model: Any, folder: Path) -> None:
    """Give a sharded model the weights that `save_adapter` wrote; every process reads them."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / WEIGHTS)
    parameters = trained(model)
    names = get_peft_model_state_dict(
        model, state_dict={name: torch.tensor(place) for place, name in enumerate(parameters)}
    )
    in_order = list(parameters.values())
    with torch.no_grad():
        for name, place in names.items():
            parameter = in_order[int(place)]
            parameter.copy_(scattered(saved[name], parameter))


def gathered(value: Any) -> Any:
    """A tensor whole and on the CPU, from all processes' parts if it is split."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def scattered(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor split as `like` is."""
    whole = whole.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict with whole tensors."""
    return _mapped(optimizer.state_dict(), lambda value, _: gathered(value))


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """What `optimizer_state` returned, split as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def part(value: Any, number: int) -> Any:
        """This process's part of a value that has the shape of its parameter; others as they are."""
        same = isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
        return scattered(value, parameters[number]) if same else value

    optimizer.load_state_dict(_mapped(saved, part))


def _mapped(state: dict[str, Any], change: Callable[[Any, int], Any]) -> dict[str, Any]:
    """The state with `change(value, number of the parameter)` in place of each value."""
    states = {
        number: {name: change(value, number) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": states}
