"""Train and validation losses of variants with different data are never put side by side without a word."""

from __future__ import annotations

from html import unescape
from pathlib import Path

from abctune.core.params import load_params
from abctune.study.inputs import read_study
from abctune.study.own_loss import own_rows_note
from stages.plot.figures.curves import curves
from stages.plot.figures.style import styles_of
from tests.plot.fake_run import RECIPES


def titles() -> list[str]:
    study = read_study(load_params())
    return [
        axis.get_title(loc="left") + axis.get_title() for axis in curves(study, styles_of(study.trained)).axes
    ]


def test_losses_on_different_rows_are_said_not_to_be_comparable(plotted, undrawn):
    plotted()
    note = own_rows_note(read_study(load_params()))
    # A does not validate while it trains.
    assert "(validation: B 15 chat; C 15 chat and 15 instruct): do not compare them" in note
    for page in ("report.html", "report.md"):
        assert note in unescape(Path("plots", page).read_text())
    assert titles()[:2] == [
        "train loss, each variant on its own rows",
        "validation loss, each variant on its own rows",
    ]


def test_variants_of_the_same_mix_need_no_such_word(plotted, undrawn):
    plotted(recipes={"B": RECIPES["B"], "D": {**RECIPES["B"], "warmup_steps": 5}})
    assert own_rows_note(read_study(load_params())) == ""
    assert "do not compare them" not in Path("plots/report.md").read_text()
    assert titles()[:2] == ["train loss", "validation loss during training"]
