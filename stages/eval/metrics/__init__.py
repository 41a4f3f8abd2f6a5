"""What eval measures of every conversation: one file per metric. Loss is the first, and what verdicts go by.

To add one, write a file with a `MEASURED` like accuracy.py's, name it in METRICS, and add a test to
tests/eval/test_metrics.py. The comparison, the summary, the tables and the figures loop over what is listed here.
"""

from __future__ import annotations

from stages.eval.metrics import accuracy, loss
from stages.eval.metrics.measured import Measured

METRICS: tuple[Measured, ...] = (loss.MEASURED, accuracy.MEASURED)
