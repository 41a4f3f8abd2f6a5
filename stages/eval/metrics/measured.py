"""A metric: its record for the readers, and how its per-conversation sum is made from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass

from abctune.core.records import Metric
from abctune.llm.likelihood import TokenMeasure


@dataclass(frozen=True)
class Measured:
    """A metric whose weight is the number of supervised tokens and whose sum runs over them."""

    record: Metric
    of_tokens: TokenMeasure  # all metrics are measured in one forward pass
