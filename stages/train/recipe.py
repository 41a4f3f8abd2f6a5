"""What one run of the stage trains, resolved once from params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from abctune.core.files import count_rows
from abctune.core.params import LoraParams, Params, TrainParams
from abctune.core.places import SPLIT


@dataclass(frozen=True)
class Replicate:
    """One training of the recipe. The seed decides the adapter's first weights and the order of the rows."""

    number: int  # from 1
    seed: int


@dataclass(frozen=True)
class Run:
    """A variant's recipe as it takes effect under the active profile, and its replicates."""

    variant: str
    recipe: TrainParams
    lora: LoraParams
    max_length: int  # tokens
    eval_batch_tokens: int  # per forward pass of an evaluation, padding included
    replicates: tuple[Replicate, ...]

    def recipe_of(self, replicate: Replicate) -> TrainParams:
        """The recipe as one replicate runs it: the first evaluates on validation rows as it trains, for the curve.

        The others do so only where a replicate or its best step is chosen by that loss: on a CPU it takes half as long
        as the training itself, and an adapter's weights do not depend on it.
        """
        chosen_by_it = self.recipe.publish == "lowest_eval_loss" or self.recipe.keep == "eval_loss"
        if replicate.number == 1 or chosen_by_it:
            return self.recipe
        return self.recipe.model_copy(update={"eval_steps": 0})


def resolve(params: Params, variant: str) -> Run:
    """The run that params.yaml asks for."""
    recipe = params.train_of(variant)
    if recipe.num_train_epochs:  # how many steps that is, the rows decide
        recipe = recipe.with_steps(count_rows(SPLIT / variant / "train.parquet", f"split@{variant}"))
    numbers = range(1, params.replicates_of(variant) + 1)
    return Run(
        variant=variant,
        recipe=recipe,
        lora=params.lora_of(variant),
        max_length=params.active.data.max_length,
        eval_batch_tokens=params.active.eval.batch_tokens,
        replicates=tuple(Replicate(number, params.seed_of(number)) for number in numbers),
    )
