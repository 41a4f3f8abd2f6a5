"""A difference in words. Never a winner without an interval, and none that Holm's correction takes away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from abctune.study.comparison import ALPHA, Comparison, Difference
from abctune.study.inputs import OVERALL

Outcome = Literal["better", "worse", "not shown"]
TOO_MANY = 1_000_000  # more conversations than any test set will have


@dataclass(frozen=True)
class Verdict:
    difference: Difference
    outcome: Outcome  # of difference.model beside difference.reference
    short: str  # for `dvc exp show`: "better by 0.12 [0.09, 0.15]"
    text: str  # a sentence for the report


def verdicts_of(comparison: Comparison) -> list[Verdict]:
    return [verdict_of(difference, comparison.tested) for difference in comparison.differences]


def verdict_of(d: Difference, comparisons: int) -> Verdict:
    """Put one difference in words; `comparisons` is how many p_holm is corrected for."""
    where = "overall" if d.on.name == OVERALL else f"on {d.on.name}"
    size = f"n = {d.on.n:,}" + (f" in {d.on.n_groups:,} groups" if d.on.n_groups < d.on.n else "")
    if d.low is None or d.high is None or d.p_holm is None:
        reason = f"too few independent conversations for an interval ({size})"
        return Verdict(
            d,
            "not shown",
            "not shown: no interval",
            f"{d.model} against {d.reference} {where}: not shown, {reason}.",
        )
    if d.low == d.high == 0:
        text = f"{d.model} and {d.reference} are the same {where}: equal loss in every conversation, {size}."
        return Verdict(d, "not shown", "the same", text)
    if d.low <= 0 <= d.high or d.p_holm >= ALPHA:
        return not_shown(d, where, size, comparisons)
    outcome: Outcome = "better" if d.value < 0 else "worse"
    amount = interval(*sorted_by_size(d))
    text = f"{d.model} is {outcome} than {d.reference} {where} by {with_unit(amount)}, {size}."
    return Verdict(d, outcome, f"{outcome} by {amount}", text)


def not_shown(d: Difference, where: str, size: str, comparisons: int) -> Verdict:
    amount, difference = interval(d.value, d.low, d.high), f"{d.model} − {d.reference}"
    if d.low <= 0 <= d.high:
        reason = f"the interval contains 0 ({difference} = {with_unit(amount)}"
    else:
        reason = f"p = {d.p_holm:.2g} after correction for {comparisons} comparisons ({difference} = {with_unit(amount)} alone leaves out 0"
    text = f"{d.model} against {d.reference} {where}: not shown: {reason}, {size})."
    return Verdict(d, "not shown", f"not shown {amount}", f"{text} {what_it_takes(d)}".rstrip())


def what_it_takes(d: Difference) -> str:
    """What this set could have shown, and how large one would show a difference of the size found."""
    sentences = []
    if d.detectable:
        sentences.append(f"This set shows differences from about {d.detectable:.2g} nats (80 % power);")
    if d.n_needed and d.n_needed < TOO_MANY:
        sentences.append(
            f"about n = {at_two_digits(d.n_needed):,} would be needed to show one as small as this."
        )
    else:
        sentences.append("one as small as this, no test set of sensible size would show.")
    return " ".join(sentences)


def sorted_by_size(d: Difference) -> tuple[float, float, float]:
    """value, low, high as positive amounts."""
    low, high = sorted((abs(d.low), abs(d.high)))
    return abs(d.value), low, high


def interval(value: float, low: float, high: float) -> str:
    """`0.12 [0.09, 0.15]`."""
    digits = digits_for(value, low, high)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def with_unit(amount: str) -> str:
    return amount.replace(" [", " nats [", 1)


def digits_for(value: float, low: float, high: float) -> int:
    """Decimals that the interval's width justifies, and enough that a bound beside 0 is not printed as 0."""
    sizes = [size for size in ((high - low) / 2, abs(low), abs(high)) if size > 0]
    return max(2, min(6, -math.floor(math.log10(min(sizes))))) if sizes else 2


def number(x: float, digits: int) -> str:
    """Fixed decimals with a true minus sign, and no negative zero."""
    text = f"{x:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def at_two_digits(n: float) -> int:
    """Rounded up to two significant digits: the third would be false precision."""
    n = math.ceil(n)
    step = 10 ** max(0, len(str(n)) - 2)
    return math.ceil(n / step) * step
