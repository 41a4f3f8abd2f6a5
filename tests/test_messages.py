"""What a person meets when something is wrong: one line that says what, where and what to do. No traceback."""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from abctune.core.errors import UserError, exits_with_one_line
from tests import small
from tests.fetch.conftest import Project
from tests.fetch.test_hub import model_files
from tests.finished import write_adapter
from tests.hub_server import Hub
from tests.workspace import Workspace, make_workspace

COMMANDS = ("fetch", "mix", "format", "split", "train", "eval", "plot")


@pytest.fixture
def project(tmp_path: Path, small_model: Path) -> Workspace:
    return make_workspace(tmp_path / "project", small_model)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def line_of(project: Workspace, *command: str) -> str:
    """Run a stage that must fail; the one line that it says."""
    done = project.stage(*command, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.rstrip().endswith(line)
    return line


def raised(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the machine ---------------------------------------------------------------------------------------------

NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"


@pytest.mark.parametrize("reason", [NO_DRIVER, OLD_DRIVER])
def test_4_bit_without_a_usable_gpu(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """No GPU, and a driver that this torch does not support."""
    import torch

    from stages.train import plain
    from stages.train.model import load_base

    def init() -> None:
        raise RuntimeError(f"{reason} from http://www.nvidia.com/")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    recipe = SimpleNamespace(load_in_4bit=True)
    said = raised(lambda: load_base(plain, Path("models/base"), recipe, 8))
    assert "load_in_4bit: true needs a CUDA GPU" in said
    assert f"({reason.split('. ')[0]})" in said
    assert "set profiles.<profile>.train.load_in_4bit to false in params.yaml" in said


def test_out_of_gpu_memory(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    @exits_with_one_line
    def main() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said.startswith("error: out of GPU memory: ") and "batch_tokens" in said and "params.yaml" in said


def test_out_of_gpu_memory_at_micro_batch_1() -> None:
    from stages.train.micro_batching import MicroBatching

    row = {"input_ids": np.ones(90, int), "labels": np.ones(90, int)}
    said = raised(lambda: MicroBatching(tokens=90, packed=False).smaller([row]))
    assert "out of GPU memory at micro-batch 1 (90 tokens)" in said
    assert "train.load_in_4bit: true" in said and "params.yaml" in said


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "data/x"), RuntimeError("x: No space left on device (os error 28)")],
    ids=["python's", "safetensors'"],
)  # fmt: skip
def test_a_full_disk(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    @exits_with_one_line
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no space left on the disk")
    assert (
        "free some, run again; `dvc gc --workspace --all-branches --all-tags --all-experiments` drops cache that none of these use"
        in said
    )
    assert ("while writing data/x" in said) == isinstance(error, OSError)


# --- the model hub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "hint"), [("", "HF_TOKEN is not set"), ("hf_other", "the token in HF_TOKEN is not enough")]
)
def test_a_gated_model(hub: Hub, tmp_path: Path, token: str, hint: str) -> None:
    """A missing token, and one without access."""
    project = Project(tmp_path)
    project.hub_model(hub.add("model", "someone/gated", model_files(), accepted_token="hf_right"))
    line = project.refused("--model", HF_ENDPOINT=hub.url, HF_TOKEN=token)
    assert line.startswith("error: params.yaml: profiles.tiny.model.repo: no access to someone/gated")
    assert hint in line
    assert "Accept its licence at" in line and "then set HF_TOKEN to a token of that account" in line


# --- params and data -----------------------------------------------------------------------------------------


def test_a_wrong_param(project: Workspace) -> None:
    project.set(variants__B__train__max_steps=-3)
    assert line_of(project, "mix", "B") == (
        "error: params.yaml: variants.B.train.max_steps: input should be greater than or equal to 1, got -3"
    )


def test_more_quarantined_rows_than_allowed(project: Workspace) -> None:
    (project.root / "data/own/chat.jsonl").write_text('{"text": "Hi"}\n' * 3)
    project.set(sources__chat__schema="auto")
    for stage in (("fetch", "--model"), ("fetch", "chat"), ("mix", "A")):
        project.stage(*stage)
    assert line_of(project, "format", "A") == (
        "error: data/mixed/A.parquet: 3 of 3 rows of chat (100.0%) cannot be used (schema not recognised: 3); the limit"
        " is format.max_quarantined = 0.01 in params.yaml. The rows are in data/quarantine/A.parquet. To use them, say under"
        " sources.chat.columns which column is the user's and which the assistant's; to do without them, set"
        " sources.chat.max_quarantined"
    )


# --- an adapter of another base ------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/A on models/base, in the working directory."""
    import shutil

    shutil.copytree(small_model, tmp_path / "models/base")
    (tmp_path / "models/base/source.json").write_text('{"repo": "someone/small"}')
    (tmp_path / "metrics/train/A").mkdir(parents=True)
    (tmp_path / "metrics/train/A/training.json").write_text('{"base_model": {"repo": "someone/small"}}')
    write_adapter(tmp_path, "A", seed=0)
    monkeypatch.chdir(tmp_path)
    load(Path("models/A"))
    return Path("models/A")


def load(adapter: Path) -> object:
    import torch

    from abctune.llm.inference import load_for_inference

    return load_for_inference(torch.float32, adapter)


def test_an_adapter_of_another_model_of_the_same_shape(adapter: Path) -> None:
    (adapter / "training.json").write_text('{"base_model": {"repo": "someone/else"}}')
    assert raised(lambda: load(adapter)) == (
        "models/A was trained on another base model than models/base holds; `dvc repro train@A` makes it, or"
        " `dvc pull` brings it"
    )


def test_an_adapter_of_another_shape(adapter: Path) -> None:
    small.write_model(Path("models/base"), shape=small.SHAPE | {"hidden_size": 64})
    said = raised(lambda: load(adapter))
    assert said.startswith("models/A does not load on models/base (") and said.endswith(
        "`dvc pull` brings it"
    )


def test_a_damaged_adapter(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    assert re.match(
        r"models/A does not load on models/base \(.+\); `dvc repro train@A`", raised(lambda: load(adapter))
    )


def test_a_missing_adapter(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert raised(lambda: load(adapter)).startswith(
        "models/A/adapter_model.safetensors not found; `dvc repro train@A`"
    )


# --- the traceback, for who wants it -------------------------------------------------------------------------


def test_the_traceback_is_shown_on_request(project: Workspace) -> None:
    done = project.stage("mix", "Z", check=False, ABCTUNE_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UserError: params.yaml: no variant 'Z'" in done.stderr


@pytest.mark.parametrize("stage", COMMANDS)
def test_every_stage_ends_with_one_line(stage: str) -> None:
    main = importlib.import_module(f"stages.{stage}.__main__").main
    wrapper = exits_with_one_line(lambda: None)
    assert main.__wrapped__ and main.__code__ is wrapper.__code__


@pytest.mark.parametrize("stage", ["mix", "train"])
def test_a_stage_takes_its_variant_from_dvcs_stage_name(project: Workspace, stage: str) -> None:
    said = project.stage(stage, check=False, DVC_STAGE=f"{stage}@Z").stderr
    assert "params.yaml: no variant 'Z'; variants has A, B, C" in said
    assert "Missing argument 'VARIANT'" in project.stage(stage, check=False).stderr


def test_a_reader_that_stops_early_is_no_error(project: Workspace) -> None:
    done = project.run(
        "bash", "-c", "python -m tools.seeds --help | head -1; exit ${PIPESTATUS[0]}", check=False
    )
    assert "Traceback" not in done.stderr and "error" not in done.stderr


def test_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_with_one_line
    def main() -> None:
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        main()
