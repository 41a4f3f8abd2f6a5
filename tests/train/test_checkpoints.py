"""Which checkpoints are used, and what is said of those that are not."""

import json
from pathlib import Path

import pytest

from abctune.core.errors import UserError
from stages.train.checkpoints import NEWEST, CheckpointStore, clear, find_flaw, only_run, seal

MADE_OF = {"params": {"max_steps": 40, "seed": 1}, "code": {"train/trainer.py": "aa"}}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checkpoint(store, step):
    folder = store.path(step)
    (folder / "run").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(100)) + bytes([step]))
    (folder / "run/state.json").write_text(json.dumps({"step": step}))
    seal(folder)
    return folder


def flips(data):
    return [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(len(data))]


def test_a_flip_anywhere_in_any_file_is_found_and_named(tmp_path):
    folder = checkpoint(CheckpointStore("B", MADE_OF), 1)
    assert find_flaw(folder) is None
    for file in ("adapter_model.safetensors", "run/state.json", "manifest.json"):
        sound = (folder / file).read_bytes()
        for broken in flips(sound):
            (folder / file).write_bytes(broken)
            flaw = find_flaw(folder)
            # A flip in the manifest can also make it name another file, or other bytes for one.
            assert flaw and (file in flaw or file == "manifest.json"), (file, flaw)
        (folder / file).write_bytes(sound)
    assert find_flaw(folder) is None


def test_a_file_cut_short_missing_or_from_elsewhere_is_found_and_named():
    folder = checkpoint(CheckpointStore("B", MADE_OF), 1)
    for file in ("adapter_model.safetensors", "run/state.json", "manifest.json"):
        sound = (folder / file).read_bytes()
        (folder / file).write_bytes(sound[:-1])
        assert find_flaw(folder).startswith(file)
        (folder / file).unlink()
        assert find_flaw(folder) == f"{file} is missing"
        (folder / file).write_bytes(sound)
    (folder / "pytorch_model.bin").touch()
    assert find_flaw(folder) == "pytorch_model.bin does not belong to it"


def test_the_newest_valid_one_is_used_and_the_damaged_one_named(capsys):
    store = CheckpointStore("B", MADE_OF)
    good, bad = checkpoint(store, 9), checkpoint(store, 10)
    (bad / "adapter_model.safetensors").write_bytes(b"")
    assert store.open() == good
    warned = capsys.readouterr().err
    assert (
        f"checkpoint {bad} is damaged (adapter_model.safetensors has other bytes than were written)" in warned
    )
    assert store.steps() == [good]  # so that the next save at step 10 finds its place free


def test_with_all_damaged_training_starts_afresh(capsys):
    store = CheckpointStore("B", MADE_OF)
    for step in (1, 2):
        (checkpoint(store, step) / "manifest.json").unlink()
    assert store.open() is None
    assert capsys.readouterr().err.count("is damaged (manifest.json is missing)") == 2


def test_steps_are_counted_not_spelt():
    store = CheckpointStore("B", MADE_OF)
    checkpoint(store, 9)
    assert store.open() == store.path(9)
    assert checkpoint(store, 10) == store.open()


def test_what_a_killed_run_left_half_written_is_cleared_away():
    store = CheckpointStore("B", MADE_OF)
    start = checkpoint(store, 3)
    for half in (store.writing / "checkpoint-6", store.kept, store.folder / ".step-6.1.tmp"):
        half.mkdir(parents=True)
    assert store.open() == start
    assert {path.name for path in store.folder.iterdir()} == {"step-3", "key.json"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"params": {"max_steps": 60, "seed": 1}}, "params (max_steps)"),
        ({"code": {"train/trainer.py": "bb"}}, "code (train/trainer.py)"),
        ({"data": {"train.parquet": "cc"}}, "data (train.parquet)"),
    ],
)
def test_a_checkpoint_made_with_other_params_data_or_code_is_refused_and_said_why(change, why, capsys):
    before = CheckpointStore("B", MADE_OF)
    before.open()
    checkpoint(before, 3)
    store = CheckpointStore("B", MADE_OF | change)
    assert store.open() is None
    assert (
        f"checkpoints in {before.folder} are not used, training starts from its first step: other {why}"
        in capsys.readouterr().err
    )
    assert find_flaw(before.path(3)) is None  # not ours to remove before this run is through
    clear("B")
    assert {path.name for path in before.folder.parent.parent.iterdir()} <= {"lock"}


def test_only_the_newest_stay():
    store = CheckpointStore("B", MADE_OF)
    for step in range(1, 5):
        checkpoint(store, step)
        store.prune()
    assert [path.name for path in store.steps()] == ["step-4", "step-3"] and NEWEST == 2


def test_a_second_run_of_the_variant_is_refused_and_told_who_trains():
    with only_run("B"):
        with pytest.raises(
            UserError, match=r"B is being trained here by process \d+, which holds checkpoints/B/lock"
        ):
            only_run("B").__enter__()
        with only_run("A"):
            pass
    with only_run("B"):
        pass


def test_the_lock_of_a_dead_run_is_no_obstacle():
    path = Path("checkpoints/B/lock")
    path.parent.mkdir(parents=True)
    path.write_text("12345\n")
    with only_run("B"):
        pass
