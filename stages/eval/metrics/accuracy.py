"""Next-token accuracy: the share of tokens that the model holds for the likeliest, given the true text before.

Unlike loss it does not ask how sure the model is: a model that only became more confident changes its loss alone.
"""

import torch

from abctune.core.records import Metric
from stages.eval.metrics.measured import Measured


def hits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1.0 where the likeliest token is the one that came, else 0.0; of equals the first counts."""
    return (logits.argmax(dim=-1) == targets).float()


MEASURED = Measured(
    Metric(
        name="accuracy",
        sum="n_correct",
        weight="n_supervised",
        unit="share of supervised tokens",
        lower_is_better=False,
        is_share=True,
    ),
    hits,
)
