from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.plot import figures
from stages.plot.__main__ import main
from tests.plot.fake_run import write_run


@pytest.fixture
def fake_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a made-up run into an empty folder and work there: fake_run({"C": effect(...)})."""
    monkeypatch.chdir(tmp_path)

    def write(effects=None, **settings) -> Path:
        write_run(tmp_path, effects or {}, **settings)
        return tmp_path

    return write


@pytest.fixture
def plotted(fake_run) -> Callable[..., dict]:
    """Run the whole stage on a made-up run; return metrics/summary.json."""

    def run(effects=None, **settings) -> dict:
        fake_run(effects, **settings)
        main()
        return json.loads(Path("metrics/summary.json").read_text())

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out but not drawn, which is most of the stage's time: for tests of its words and numbers."""
    monkeypatch.setattr(figures, "svg_of", lambda _: '<svg xmlns="http://www.w3.org/2000/svg"></svg>')
