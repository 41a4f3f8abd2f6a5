"""`python -m tools.accept`: an edit of code that changes no result costs no run, and one that does is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from abctune.core.errors import UserError
from tests.workspace import Workspace
from tools import accept
from tools.accept import Stale, difference, meaning, rerun

DEPS = ("stages/mix", "abctune/core", "data/raw")
OUTS = ("data/mixed/B.parquet", "data/mixed/B.json")
MIX = Stale("mix@B", "python -m stages.mix", tuple(map(Path, DEPS)), tuple(map(Path, OUTS)), {})


def is_up_to_date(project: Workspace) -> bool:
    return "Data and pipelines are up to date." in project.run("dvc", "status").stdout


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_a_comment_in_shared_code_is_accepted_without_a_run(study: Workspace) -> None:
    append(study.root / "abctune/core/errors.py", "\n# a comment\n")
    assert "train@B" in study.run("dvc", "status").stdout
    assert "same syntax tree as before: abctune/core" in study.tool("accept", "--check").stdout
    assert not is_up_to_date(study)
    accepted = study.tool("accept").stdout
    assert "train@B" in accepted and "plot" in accepted and is_up_to_date(study)
    assert study.tool("accept").stdout == "no stage is out of date\n"


def test_changed_params_are_not_accepted(study: Workspace) -> None:
    study.set(variants__B__train__max_steps=6)
    refused = study.tool("accept", check=False)
    assert refused.returncode == 1
    assert "train@B is out of date because of more than code (params.yaml); `dvc repro`" in refused.stderr


def test_what_goes_out_of_date_during_the_check_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    later = iter([[MIX], [MIX, replace(MIX, name="mix@C")]])
    monkeypatch.setattr(accept, "stale_stages", lambda: next(later))
    monkeypatch.setattr(accept.subprocess, "run", lambda *_, **__: pytest.fail("DVC was told"))
    with pytest.raises(SystemExit):
        accept.main()
    assert "files changed while this ran" in capsys.readouterr().err


def test_code_is_equal_up_to_comments_docstrings_and_layout() -> None:
    code = b'def f(x):\n    "Doc."\n    return x + 1\n'
    assert meaning("a.py", code) == meaning("a.py", b'def f(x):\n    "Other."\n    return (x +\n 1)  # why\n')
    assert meaning("a.py", code) != meaning("a.py", b'def f(x):\n    "Doc."\n    return x + 2\n')
    assert meaning("a.jinja", b"a") != meaning("a.jinja", b"a ")


@pytest.fixture
def mixed(tmp_path: Path, split_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = shutil.copytree(split_once, tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def test_the_version_that_wrote_a_document_is_no_result(mixed: Path) -> None:
    (mixed / "abctune/__init__.py").write_text('__version__ = "9.9.9"\n')
    rerun(MIX)


def test_a_sample_with_the_same_outputs_passes(mixed: Path) -> None:
    append(mixed / "stages/mix/draw.py", "\nUNUSED = 1\n")
    before = {out: out.read_bytes() for out in MIX.outs}
    rerun(MIX)
    assert {out: out.read_bytes() for out in MIX.outs} == before


def test_a_sample_with_other_outputs_is_refused_by_file(mixed: Path) -> None:
    path = mixed / "stages/mix/__main__.py"
    path.write_text(path.read_text().replace("params.seed", "params.seed + 1"))
    with pytest.raises(UserError, match=r"mix@B: the new code makes another data/mixed/B\.(parquet|json)"):
        rerun(MIX)


def test_a_sample_that_fails_is_refused(mixed: Path) -> None:
    append(mixed / "stages/mix/draw.py", "\nraise SystemExit('broken')\n")
    with pytest.raises(UserError, match="mix@B fails with the new code: broken"):
        rerun(MIX)


def test_a_replicates_time_and_memory_are_of_the_run_and_its_loss_is_not(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "training.json"

    def compared(loss: float, seconds: float) -> str | None:
        replicate = {
            "final": {"train_loss": loss},
            "resources": {"seconds": seconds, "peak_rss_gib": seconds},
        }
        new.write_text(json.dumps({"variant": "B", "replicates": [{"replicate": 1}, replicate]}))
        return difference(old, new)

    compared(3.5, 10)
    new.rename(old)
    assert compared(3.5, 20) is None
    assert compared(3.6, 10) == "replicates.1.final.train_loss"


def test_a_key_that_is_gone_is_not_the_same_as_null(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text('{"a": 1, "b": null}')
    new.write_text('{"a": 1}')
    assert difference(old, new) == difference(new, old) == "b"
