import math

import pyarrow as pa
import pytest

from stages.eval.generation import repetition, summarise
from stages.eval.likelihood import losses

CONVERSATIONS = pa.table(
    {"source": ["chat", "chat", "instruct"], "nll": [10.0, 2.0, 3.0], "n_supervised": [2, 2, 6]}
)


def test_the_loss_is_per_token_not_per_conversation():
    found = losses(CONVERSATIONS)
    assert found["sources"]["chat"]["loss"] == 3.0
    assert found["sources"]["instruct"]["loss"] == 0.5
    assert found["overall"]["loss"] == 1.5  # a mean over conversations would say 2.2, over sources 1.75
    assert found["overall"]["perplexity"] == pytest.approx(math.exp(1.5))
    assert found["overall"]["n_conversations"] == 3


def test_repetition_is_the_share_of_trigrams_seen_before():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3] * 4) == pytest.approx(1 - 3 / 10)
    assert repetition([1, 2]) == 0


def test_the_stop_rate_is_the_share_of_answers_that_end_by_themselves():
    rows = [{"stopped": stopped, "n_tokens": 10, "repetition": 0.5} for stopped in (True, False, False, True)]
    assert summarise(rows) == {"n_prompts": 4, "stop_rate": 0.5, "mean_new_tokens": 10.0, "repetition": 0.5}
