from typing import get_args

import pytest
import torch
from transformers import Trainer

from abctune.core.errors import UserError
from abctune.core.params import Optimizer, Scheduler, load_params
from stages.train.schedule import describe, learning_rates
from stages.train.trainer import training_arguments

PARAMS = load_params()


def recipe(**changes):
    return PARAMS.train_of("B", "full").model_copy(update=changes)


def test_the_reports_warmup_is_longer_than_its_run_and_says_so_with_the_numbers():
    found = describe(recipe())
    assert found.peak_share == pytest.approx(39 / 50)
    assert found.decays is False
    assert found.warnings == (
        "warmup_steps 50 >= max_steps 40: the learning rate peaks at 1.56e-05 (78% of 2e-05) on the last step and never decays",
    )
    # A straight line from 0 to 39/50 of 2e-5 over 40 steps.
    assert found.sum_learning_rate == pytest.approx(2e-5 * sum(range(40)) / 50)


def test_the_notebooks_schedule_is_as_it_seems():
    found = describe(PARAMS.train_of("A", "full"))
    assert found.warnings == () and found.decays is True
    assert found.peak_learning_rate == 2e-4


def test_a_decay_without_a_step_to_decay_in_is_warned_about():
    assert describe(recipe(warmup_steps=39)).warnings == (
        "warmup_steps 39 of max_steps 40 leave linear no step to decay in",
    )
    assert describe(recipe(warmup_steps=38)).warnings == ()
    assert describe(recipe(warmup_steps=5, lr_scheduler_type="constant_with_warmup")).warnings == ()


def test_the_scale_of_the_profile_scales_every_step():
    plain, scaled = (
        learning_rates(recipe(warmup_steps=5)),
        learning_rates(recipe(warmup_steps=5, learning_rate_scale=10.0)),
    )
    assert scaled == pytest.approx([10 * rate for rate in plain])
    assert max(plain) == 2e-5 and len(plain) == 40


OF_ITS_OWN = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "warmup_stable_decay": {"num_decay_steps": 20}}


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_every_schedule_is_described_as_the_trainer_will_run_it(name):
    changed = recipe(warmup_steps=5, lr_scheduler_type=name, lr_scheduler_kwargs=OF_ITS_OWN.get(name, {}))
    found = describe(changed)
    assert found.peak_learning_rate == pytest.approx(2e-5) and found.warnings == ()
    if name == "cosine_with_min_lr":
        assert learning_rates(changed)[-1] == pytest.approx(0.1 * 2e-5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("linear", {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", {}),
        ("warmup_stable_decay", {}),
        ("constant", {"min_lr_rate": 0.1}),
    ],
)
def test_arguments_that_do_not_suit_the_schedule_are_refused_by_their_key(name, given):
    with pytest.raises(UserError, match=f"train.lr_scheduler_kwargs: .*{name}"):
        describe(recipe(lr_scheduler_type=name, lr_scheduler_kwargs=given))


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_takes_a_step(name, tmp_path):
    arguments = training_arguments(recipe(optim=name, dtype="float32"), 1, str(tmp_path))
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    weight = torch.nn.Parameter(torch.ones(8192))
    weight.grad = torch.ones(8192)
    kind([weight], **settings).step()
    assert bool((weight < 1).all())


def test_an_optimizer_that_takes_no_split_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.optim: lion_8bit"):
        training_arguments(recipe(optim="lion_8bit", dtype="float32"), 1, str(tmp_path), {"fsdp": True})


def test_a_setting_is_named_where_it_is_set(tmp_path):
    params = load_params()
    params.variants["B"].train["lr_scheduler_kwargs"] = {"min_lr_rate": 0.1}
    params.profiles["tiny"].train["optim"] = "lion_8bit"
    with pytest.raises(UserError, match=r"params.yaml: variants\.B\.train\.lr_scheduler_kwargs: "):
        describe(params.train_of("B", "tiny"))
    with pytest.raises(UserError, match=r"params.yaml: profiles\.tiny\.train\.optim: lion_8bit"):
        training_arguments(params.train_of("B", "tiny"), 1, str(tmp_path), {"fsdp": True})
