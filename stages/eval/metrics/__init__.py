"""What eval measures of every conversation: one file per metric. Loss is the first, and what verdicts go by.

The comparison, the summary, the tables and the figures loop over what is listed here. To add one: CONTRIBUTING.md.
"""

from __future__ import annotations

from stages.eval.metrics import accuracy, loss
from stages.eval.metrics.measured import Measured

METRICS: tuple[Measured, ...] = (loss.MEASURED, accuracy.MEASURED)
