"""Numbers as sentences and tables print them."""

from __future__ import annotations

import math

from abctune.core.params import BASE
from abctune.core.records import GENERAL, LOSS, OVERALL, Metric


def on_set(on: str) -> str:
    """A set of test rows as it stands in a sentence: `overall`, `on general text`, `on chat`."""
    return {OVERALL: "overall", GENERAL: "on general text"}.get(on, f"on {on}")


def adapter_of(model: str) -> str:
    """A model in a sentence about what one adapter did: its replicates did not take part."""
    return model if model == BASE else f"this adapter of {model}"


def sorted_by_size(value: float, low: float, high: float) -> tuple[float, float, float]:
    """value, low, high as positive amounts."""
    smaller, larger = sorted((abs(low), abs(high)))
    return abs(value), smaller, larger


def interval(value: float, low: float, high: float, margin: float = 0.0) -> str:
    """`0.12 [0.09, 0.15]`; with a margin, enough decimals to tell a bound from it."""
    digits = digits_for(value, low, high)
    if margin:
        nearest = min(abs(abs(bound) - margin) for bound in (low, high))
        digits = max(digits, min(4, digits_for(nearest, nearest, nearest)))
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def with_unit(amount: str, metric: Metric = LOSS) -> str:
    """`0.12 nats [0.09, 0.15]`: the first word of the metric's unit after the value."""
    return amount.replace(" [", f" {metric.unit.split()[0]} [", 1)


def digits_for(value: float, low: float, high: float) -> int:
    """Decimals that the interval's width justifies, and enough that a bound next to 0 is not printed as 0."""
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
    whole = math.ceil(n)
    step = int(10 ** max(0, len(str(whole)) - 2))
    return math.ceil(whole / step) * step


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def listed(words: list[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)
