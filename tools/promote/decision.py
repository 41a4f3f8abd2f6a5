"""Whether a variant should replace the one that is in use: better on the target, and not worse by the margin elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from abctune.core.records import LOSS
from abctune.study import recipes
from abctune.study.inputs import Evaluated, Study, test_fault
from abctune.study.recipes import RecipeComparison, RecipeDifference
from abctune.study.statistics import ALPHA
from abctune.study.wording import interval, on_set, with_unit

Answer = Literal["promote", "do not promote", "undecided"]
IN_USE = "the registered one"  # its name among the models, next to variants of the same name


@dataclass(frozen=True)
class Criterion:
    """One condition for a promotion."""

    text: str  # what was found, as a sentence
    met: bool | None  # None: undecided


@dataclass(frozen=True)
class Decision:
    """The answer and all that led to it."""

    variant: str
    criteria: Sequence[Criterion]

    @property
    def answer(self) -> Answer:
        """Promote if every condition is met; do not if one is missed, even where another is undecided."""
        if any(criterion.met is False for criterion in self.criteria):
            return "do not promote"
        return "promote" if all(criterion.met for criterion in self.criteria) else "undecided"


def compare_with(study: Study, in_use: Evaluated) -> RecipeComparison:
    """Every variant compared with the model in use, by loss.

    Args:
        in_use: base, or the registered variant as it was scored at its own commit.
    """
    variants = {name: study.models[name].sums(LOSS) for name in study.trained}
    untrained = in_use is study.models["base"]
    return recipes.compare_recipes(
        recipes.TestRows.of(study.test_rows, LOSS.weight),
        variants | {IN_USE: in_use.sums(LOSS)},
        [(name, IN_USE) for name in variants],
        study.sets,
        margin=study.params.evaluation.margin,
        seed=study.params.seed,
        fixed=[IN_USE] if untrained else [],
    )


def fault_of(study: Study, in_use: Evaluated) -> str | None:
    """Why the model in use cannot be compared with this study's variants, in words, or None."""
    return test_fault(study.models["base"], in_use)


def best_variant(study: Study, found: RecipeComparison, on: str) -> str:
    """The variant with the lowest loss on the target."""
    return min(study.trained, key=lambda name: found.value(name, on).value)


def decide(
    variant: str,
    in_use: str,
    found: RecipeComparison,
    sets: Iterable[str],
    target: str,
    faults: Sequence[str],
) -> Decision:
    """Judge a variant by all conditions.

    Args:
        variant: the candidate.
        in_use: what people call the model it would replace.
        found: all variants compared with it.
        sets: every set of test rows.
        target: the set on which the candidate must be better.
        faults: what `python -m tools.verify` found wrong.
    """
    assert found.margin is not None  # compare_with sets it
    rest = [on for on in sets if on != target]
    criteria = [
        about_recipes(found.difference(variant, IN_USE, target)),
        better(variant, in_use, found.difference(variant, IN_USE, target)),
        *(not_worse(variant, in_use, found.difference(variant, IN_USE, on), found.margin) for on in rest),
        verified(faults),
    ]
    return Decision(variant, criteria)


def about_recipes(d: RecipeDifference) -> Criterion:
    """Each variant was trained more than once: one run says nothing about a recipe."""
    if d.about == "recipes":
        return Criterion(f"{d.k} replicates were compared", True)
    return Criterion("one replicate was compared, which says nothing about a recipe", None)


def better(variant: str, in_use: str, d: RecipeDifference) -> Criterion:
    """Better on the target."""
    met = {"better": True, "worse": False, "equivalent": False, "not worse": None, "undecided": None}[
        d.outcome
    ]
    words = {
        True: "is better than",
        False: f"is {d.outcome} compared with",
        None: "is not shown to be better than",
    }
    return Criterion(f"{variant} {words[met]} {in_use} {on_set(d.on)}: {amount(d)}", met)


def not_worse(variant: str, in_use: str, d: RecipeDifference, margin: float) -> Criterion:
    """Not worse by the margin or more on another set."""
    if d.p_not_worse is not None and d.p_not_worse < ALPHA:
        words, met = "is not worse than", True
    elif d.outcome == "worse":
        words, met = "is worse than", False
    else:
        words, met = "may be worse than", None
    return Criterion(f"{variant} {words} {in_use} {on_set(d.on)} by {margin:g} or more: {amount(d)}", met)


def verified(faults: Sequence[str]) -> Criterion:
    """The results are what the lock file says, and follow from one another."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return Criterion(f"`python -m tools.verify` finds fault: {faults[0]}{more}", False)
    return Criterion("`python -m tools.verify` finds all results in order", True)


def amount(d: RecipeDifference) -> str:
    """The difference with its interval."""
    if d.low is None or d.high is None:
        return d.why_no_interval
    return with_unit(interval(d.value, d.low, d.high))
