"""Which adapter is published, and when it is written."""

from types import SimpleNamespace

import pytest
import torch

from abctune.core.records import Kept
from stages.train.callbacks import KeepBest


class Model:
    """Stands for an adapter whose weight is a number."""

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def named_parameters(self):
        return (("weight", self.weight),)

    def save_pretrained(self, folder, state_dict):
        folder.mkdir(parents=True)
        (folder / "weight").write_text(str(int(state_dict["weight"])))


class Training:
    """Steps of a training, after each of which the adapter's weight is the step's number."""

    def __init__(self, by, folder):
        self.keep, self.model, self.file = KeepBest(by, folder), Model(), folder / "weight"
        self.state = SimpleNamespace(global_step=0, is_world_process_zero=True)

    def log(self, step, entry):
        self.state.global_step = step
        with torch.no_grad():
            self.model.weight.fill_(step)
        self.keep.on_log(None, self.state, None, logs=entry, model=self.model)

    def end(self):
        self.keep.on_train_end(None, self.state, None, model=self.model)
        return self.keep.kept, self.file.read_text()


def run(by, folder, logs):
    training = Training(by, folder)
    for step, entry in logs:
        training.log(step, entry)
    return training.end()


LOGS = [
    (10, {"loss": 3.0}),
    (10, {"eval_loss": 2.9}),
    (20, {"loss": 2.0}),
    (20, {"eval_loss": 2.5}),
    (30, {"loss": 2.4}),
    (30, {"eval_loss": 2.4}),
]


@pytest.mark.parametrize(
    ("by", "kept"),
    [
        ("train_loss", Kept(by="train_loss", step=20, value=2.0)),
        ("eval_loss", Kept(by="eval_loss", step=30, value=2.4)),
        ("last", Kept(by="last", step=30, value=None)),
    ],
)
def test_the_adapter_of_the_best_step_is_kept(by, kept, tmp_path):
    assert run(by, tmp_path / "kept", LOGS) == (kept, str(kept.step))


def test_a_run_shorter_than_its_logging_interval_keeps_its_last_adapter(tmp_path):
    assert run("train_loss", tmp_path / "kept", [(4, {"train_runtime": 1.0})]) == (
        Kept(by="last", step=4, value=None),
        "4",
    )


def test_the_best_adapter_is_written_with_a_checkpoint_and_not_at_every_step(tmp_path):
    training = Training("train_loss", tmp_path / "kept")
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
        training.log(step, {"loss": loss})
        assert not training.file.exists()
    training.keep.on_save(None, training.state, None, model=training.model)
    assert training.file.read_text() == "2"
    written = training.file.stat().st_mtime_ns
    training.log(4, {"loss": 2.1})
    training.keep.on_save(None, training.state, None, model=training.model)
    assert (
        training.end() == (Kept(by="train_loss", step=2, value=2.0), "2")
        and training.file.stat().st_mtime_ns == written
    )


def test_a_loss_that_is_no_number_is_never_the_lowest(tmp_path):
    logs = [(10, {"eval_loss": float("nan")}), (20, {"eval_loss": 2.4})]
    assert run("eval_loss", tmp_path / "kept", logs) == (Kept(by="eval_loss", step=20, value=2.4), "20")
