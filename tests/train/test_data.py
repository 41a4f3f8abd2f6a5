import pyarrow as pa

from abctune.core.params import load_params
from stages.train.data import exposure

ROWS = pa.table({"source": ["chat", "chat", "instruct"], "n_tokens": [10, 20, 30], "n_supervised": [1, 2, 3]})
RECIPE = (
    load_params()
    .train_of("B")
    .model_copy(update={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1})
)


def test_exposure_counts_the_rows_that_the_steps_will_see():
    found = exposure(ROWS, RECIPE.model_copy(update={"max_steps": 1}))
    assert found.conversations == {"chat": 2}
    assert found.tokens == {"chat": 30} and found.supervised_tokens == {"chat": 3}
    assert found.epochs == 0.6667


def test_an_epochs_last_step_takes_the_rows_that_are_left_and_the_next_starts_again_from_the_first():
    found = exposure(ROWS, RECIPE.model_copy(update={"max_steps": 2}))
    assert found.conversations == {"chat": 2, "instruct": 1} and found.epochs == 1.0
    found = exposure(ROWS, RECIPE.model_copy(update={"max_steps": 3}))
    assert found.conversations == {"chat": 4, "instruct": 1}
    assert found.epochs == 1.6667
