"""Which adapter is published."""

from types import SimpleNamespace

import pytest

from stages.train.callbacks import KeepBest, Kept


class Model:
    """Stands for an adapter whose weights are a number."""

    weights = 0

    def named_parameters(self):
        return ()

    def save_pretrained(self, folder, state_dict):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(self.weights))


def run(by, folder, logs):
    keep, model = KeepBest(by, folder), Model()
    for step, entry in logs:
        model.weights = step
        keep.on_log(
            None, SimpleNamespace(global_step=step, is_world_process_zero=True), None, logs=entry, model=model
        )
    keep.on_train_end(
        None, SimpleNamespace(global_step=logs[-1][0], is_world_process_zero=True), None, model=model
    )
    return keep.kept, (folder / "weights").read_text()


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
        ("train_loss", Kept("train_loss", 20, 2.0)),
        ("eval_loss", Kept("eval_loss", 30, 2.4)),
        ("last", Kept("last", 30, None)),
    ],
)
def test_the_adapter_of_the_best_step_is_kept(by, kept, tmp_path):
    assert run(by, tmp_path / "kept", LOGS) == (kept, str(kept.step))


def test_a_run_shorter_than_its_logging_interval_keeps_its_last_adapter(tmp_path):
    assert run("train_loss", tmp_path / "kept", [(4, {"train_runtime": 1.0})]) == (Kept("last", 4, None), "4")
