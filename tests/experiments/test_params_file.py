"""`dvc exp run -S` rewrites params.yaml: the committed file is as DVC writes it, so that a change is one line."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from abctune.core.errors import UserError
from tests.workspace import ROOT
from tools.tidy_params import as_dvc_writes

TEXT = (ROOT / "params.yaml").read_text()


def test_the_committed_file_is_as_dvc_writes_it() -> None:
    assert as_dvc_writes(TEXT) == TEXT, "run `make format`"


@pytest.mark.parametrize(
    "setting", ["seed=5", "variants.B.train.learning_rate=1e-4", "profiles.tiny.data.rows_scale=0.5"]
)
def test_an_experiment_changes_one_line(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    apply_overrides(str(path), [setting])
    changed = [
        line for line in difflib.ndiff(TEXT.splitlines(), path.read_text().splitlines()) if line[0] in "+-"
    ]
    assert [line[0] for line in changed] == ["-", "+"], changed


def test_a_comment_that_dvc_would_drop_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"would drop the comment '# lost'.*move it above the list's key"):
        as_dvc_writes("a:\n- 1 # lost\nb: 2 # kept\n")
