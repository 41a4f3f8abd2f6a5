"""The learning rate of every step, computed before training, to warn where the schedule differs from what its numbers suggest."""

from __future__ import annotations

import torch

from abctune.core.errors import UserError
from abctune.core.params import TrainParams
from abctune.core.records import Schedule


def learning_rates(recipe: TrainParams) -> list[float]:
    """The rate each of the max_steps optimizer steps is taken with, from transformers' own scheduler.

    Raises:
        UserError: the schedule lacks one of its own arguments or does not know one.
    """
    from transformers import get_scheduler  # not earlier: Unsloth patches transformers and comes first

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.peak_learning_rate)
    of_its_own, key = dict(recipe.lr_scheduler_kwargs), recipe.key("lr_scheduler_kwargs")
    if of_its_own and recipe.lr_scheduler_type.startswith("constant"):  # transformers would not look at them
        raise UserError(f"params.yaml: {key}: {recipe.lr_scheduler_type} takes none")
    try:
        scheduler = get_scheduler(
            recipe.lr_scheduler_type, optimizer, recipe.warmup_steps, recipe.steps, of_its_own
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"params.yaml: {key}: {of_its_own} do not suit lr_scheduler_type "
            f"{recipe.lr_scheduler_type} ({error})"
        ) from None
    rates = []
    for _ in range(recipe.steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def describe(recipe: TrainParams) -> Schedule:
    """What the schedule amounts to: its peak, its sum over steps, and warnings where it is not what it seems."""
    rates = learning_rates(recipe)
    peak = max(rates)
    decays = rates[-1] < peak
    return Schedule(
        learning_rate=recipe.peak_learning_rate,
        warmup_steps=recipe.warmup_steps,
        max_steps=recipe.steps,
        peak_learning_rate=peak,
        peak_share=peak / recipe.peak_learning_rate,
        decays=decays,
        sum_learning_rate=sum(rates),
        warnings=tuple(_warnings(recipe, peak, decays)),
    )


def _warnings(recipe: TrainParams, peak: float, decays: bool) -> list[str]:
    if recipe.warmup_steps >= recipe.steps:
        return [
            f"warmup_steps {recipe.warmup_steps} >= max_steps {recipe.steps}: the learning rate peaks at {peak:.3g} "
            f"({peak / recipe.peak_learning_rate:.0%} of {recipe.peak_learning_rate:g}) on the last step and never decays"
        ]
    if not decays and not recipe.lr_scheduler_type.startswith("constant"):
        return [
            f"warmup_steps {recipe.warmup_steps} of max_steps {recipe.steps} leave {recipe.lr_scheduler_type} no step to decay in"
        ]
    return []
