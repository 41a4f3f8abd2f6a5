import pytest

from abctune.core.params import load_params
from stages.train.schedule import describe, learning_rates

PARAMS = load_params()


def recipe(**changes):
    return PARAMS.train_of("B", "full").model_copy(update=changes)


def test_the_reports_warmup_is_longer_than_its_run_and_says_so_with_the_numbers():
    found = describe(recipe())
    assert found["peak_share"] == pytest.approx(39 / 50)
    assert found["decays"] is False
    assert found["warnings"] == [
        "warmup_steps 50 >= max_steps 40: the learning rate peaks at 1.56e-05 (78% of 2e-05) on the last step and never decays"
    ]
    # A straight line from 0 to 39/50 of 2e-5 over 40 steps.
    assert found["sum_learning_rate"] == pytest.approx(2e-5 * sum(range(40)) / 50)


def test_the_notebooks_schedule_is_as_it_seems():
    found = describe(PARAMS.train_of("A", "full"))
    assert found["warnings"] == [] and found["decays"] is True
    assert found["peak_learning_rate"] == 2e-4


def test_a_decay_without_a_step_to_decay_in_is_warned_about():
    assert describe(recipe(warmup_steps=39))["warnings"] == [
        "warmup_steps 39 of max_steps 40 leave linear no step to decay in"
    ]
    assert describe(recipe(warmup_steps=38))["warnings"] == []
    assert describe(recipe(warmup_steps=5, lr_scheduler_type="constant_with_warmup"))["warnings"] == []


def test_the_scale_of_the_profile_scales_every_step():
    plain, scaled = (
        learning_rates(recipe(warmup_steps=5)),
        learning_rates(recipe(warmup_steps=5, learning_rate_scale=10.0)),
    )
    assert scaled == pytest.approx([10 * rate for rate in plain])
    assert max(plain) == 2e-5 and len(plain) == 40
