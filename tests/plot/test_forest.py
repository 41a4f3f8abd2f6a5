"""The forest plot: equivalence can be read from it, and it says what of the study it shows."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

from abctune.core.params import load_params
from abctune.study.comparison import compare
from abctune.study.inputs import read_study
from abctune.study.verdicts import verdicts_of
from stages.plot.figures.forest import forest, forest_alt
from stages.plot.figures.forest import test_loss as loss_of_models
from stages.plot.figures.style import RC, styles_of
from tests.plot.fake_run import add_accuracy, effect

MARGIN = 0.02


@pytest.fixture
def study(fake_run):
    """C gains half a nat on instruct; between the others there is nothing to find."""
    fake_run({"C": effect(instruct=-0.5)})
    add_accuracy()
    return read_study(load_params())


def panels_of(study, draw=forest):
    """The figure's panels, in rows of two or one."""
    with mpl.rc_context(RC):
        return draw(compare(study, 199), styles_of(study.trained)).axes


def words_of(axis):
    return [text.get_text() for text in axis.texts]


def test_a_second_panel_shows_what_is_near_0_at_a_scale_of_the_margin(study):
    whole, near = panels_of(study)[-2:]
    assert whole.get_title(loc="left").startswith("instruct")
    assert near.get_xlim() == pytest.approx((-3 * MARGIN, 3 * MARGIN))
    (band,) = near.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-MARGIN, 2 * MARGIN))
    found = compare(study, 199).difference("C", "base", "instruct")
    assert found.high < -3 * MARGIN  # so of this row the panel has an arrow, and the value in words
    assert f"−{abs(found.value):.2f}" in words_of(near)
    assert all(np.abs(line.get_xdata()).max() <= 3 * MARGIN + 1e-9 for line in near.lines)


def test_each_row_ends_with_its_verdict_and_one_run_is_marked(study, fake_run):
    rows = compare(study, 199)
    near = panels_of(study)[-1]
    outcomes = [rows.difference(*pair, "instruct").outcome for pair in rows.pairs]
    assert [word for word in words_of(near) if word[0].isalpha()] == outcomes and "better" in outcomes
    fake_run({"C": effect(instruct=-0.5)}, replicates=1)
    near = panels_of(read_study(load_params()))[-1]
    assert "better *" in words_of(near)
    assert "* one run: nothing is said about the recipes" in near.figure.get_supxlabel()


def test_intervals_are_solid_lines_for_every_variant(study):
    """A gap of a dashed line looks like the interval's end."""
    for draw in (forest, loss_of_models):
        for axis in panels_of(study, draw):
            assert {line.get_linestyle() for line in axis.lines} <= {"-", "None"}


def test_the_alt_text_counts_what_is_drawn(study):
    """18 differences of the loss are drawn; the 18 of the accuracy are not."""
    verdicts = verdicts_of(compare(study, 199))
    assert len(verdicts) == 36
    text = forest_alt(verdicts)
    assert text.startswith("Forest plot of all 18 paired differences in loss")
    assert text.count("C compared with base") == 1
