"""Loss: -log p of the tokens that came, in nats. What training minimises; exp(loss) is perplexity."""

from abctune.core.records import LOSS
from abctune.llm.likelihood import token_nll
from stages.eval.metrics.measured import Measured

MEASURED = Measured(LOSS, token_nll)
