"""Leftovers of removed variants: they change no result, and are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from abctune.core.params import load_params
from abctune.study.leftovers import leftovers
from tests.plot.fake_run import RECIPES, collect, write_params, write_run


@pytest.fixture
def without_a(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of A, B and C whose params then lost A."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, {})
    (tmp_path / "plots/cards").mkdir(parents=True)
    for card in "AB":
        (tmp_path / f"plots/cards/{card}.md").write_text("card")
    for path in ("models/A", "models/base", "models/own", "models/replicates/A"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "weights").write_text("w" * 2000)
    write_params(tmp_path, {name: RECIPES[name] for name in "BC"}, "tiny")
    return tmp_path


def test_what_belongs_to_no_variant_is_found_and_nothing_else(without_a: Path) -> None:
    assert {str(path) for path in leftovers(load_params())} == {
        "data/mixed/A.json",
        "data/formatted/A",
        "data/split/A",
        "data/split/A.json",
        "models/A",
        "models/replicates/A",
        "metrics/train/A",
        "metrics/eval/A",
        "metrics/collected/A",
        "plots/cards/A.md",
    }


def test_the_outputs_of_a_stage_that_was_added_are_known_by_dvc_yaml(without_a: Path) -> None:
    count = "  count:\n    foreach: ${variants}\n    do: {cmd: count, outs: [{'data/counted/${key}.json': {cache: false}}]}\n"
    pipeline = without_a / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("stages:\n", "stages:\n" + count, 1))
    (without_a / "data/counted").mkdir()
    for variant in "AB":
        (without_a / f"data/counted/{variant}.json").write_text("1")
    (without_a / "data/counted/.gitignore").write_text("/*")
    assert [path for path in leftovers(load_params()) if "counted" in str(path)] == [
        Path("data/counted/A.json")
    ]


def test_a_removed_variant_leaves_plots_dependency_as_if_it_had_never_been(
    without_a: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages.plot.__main__ import main as plot

    collect()
    plot()
    assert sorted(path.name for path in Path("metrics/collected").iterdir()) == ["B", "C"]
    assert Path("models/A").exists()  # not plot's to remove; it says which command does
    said = capsys.readouterr().out
    assert "models/A" in said and "python -m tools.prune" in said
    assert '"A"' not in Path("metrics/summary.json").read_text()
