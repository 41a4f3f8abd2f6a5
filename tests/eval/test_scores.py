import math

import pyarrow as pa
import pytest

from abctune.core.records import GENERAL, SampleRecord
from stages.eval.generation import repetition, summarise
from stages.eval.scores import scores

CONVERSATIONS = pa.table(
    {
        "source": ["chat", "chat", "instruct"],
        "replicate": [1, 1, 1],
        "nll": [10.0, 2.0, 3.0],
        "n_supervised": [2, 2, 6],
    }
)


def test_the_loss_is_per_token_not_per_conversation():
    overall, sources = scores(CONVERSATIONS)
    assert sources["chat"].loss == 3.0
    assert sources["instruct"].loss == 0.5
    assert overall.loss == 1.5  # a mean over conversations would say 2.2, over sources 1.75
    assert overall.perplexity == pytest.approx(math.exp(1.5))
    assert overall.n_conversations == 3


def test_general_text_is_a_set_of_its_own_and_no_part_of_overall():
    general = pa.table({"source": [GENERAL], "replicate": [1], "nll": [80.0], "n_supervised": [10]})
    overall, sources = scores(pa.concat_tables([general, CONVERSATIONS]))
    assert overall == scores(CONVERSATIONS)[0]
    assert list(sources) == ["chat", "instruct", GENERAL] and sources[GENERAL].loss == 8.0


def test_the_loss_of_several_replicates_is_over_all_and_its_rows_are_counted_once():
    second = CONVERSATIONS.set_column(1, "replicate", [[2, 2, 2]]).set_column(2, "nll", [[12.0, 4.0, 5.0]])
    overall, sources = scores(pa.concat_tables([CONVERSATIONS, second]))
    assert overall.loss == pytest.approx((15 + 21) / 20)
    assert (overall.n_conversations, overall.n_supervised) == (3, 10)
    assert sources["chat"].n_conversations == 2


def test_repetition_is_the_share_of_trigrams_seen_before():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3] * 4) == pytest.approx(1 - 3 / 10)
    assert repetition([1, 2]) == 0


def test_the_stop_rate_is_the_share_of_answers_that_end_by_themselves():
    rows = [
        SampleRecord(prompt="", answer="", n_tokens=10, stopped=stopped, repetition=0.5)
        for stopped in (True, False, False, True)
    ]
    assert summarise(rows).model_dump() == {
        "n_prompts": 4,
        "stop_rate": 0.5,
        "mean_new_tokens": 10.0,
        "repetition": 0.5,
    }
