"""The report's figures."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure

from abctune.study.comparison import Comparison
from abctune.study.inputs import Study
from abctune.study.verdicts import Verdict
from stages.plot.figures.bars import lengths, lengths_alt, resources, resources_alt
from stages.plot.figures.curves import curves, curves_alt
from stages.plot.figures.forest import forest, forest_alt, test_loss, test_loss_alt
from stages.plot.figures.style import RC, Chart, styles_of, svg_of

Drawing = tuple[Callable[[], Figure], str, str]  # how to draw it, its title, and in words


def all_charts(study: Study, comparison: Comparison, verdicts: list[Verdict]) -> dict[str, Chart]:
    """Every figure by its file's name."""
    styles = styles_of(study.trained)
    drawings: dict[str, Drawing] = {
        "forest": (lambda: forest(comparison, styles), "Paired differences", forest_alt(verdicts)),
        "test_loss": (lambda: test_loss(comparison, styles), "Test loss", test_loss_alt(comparison)),
        "curves": (lambda: curves(study, styles), "Training curves", curves_alt(study)),
        "resources": (lambda: resources(study, styles), "Time, memory, throughput", resources_alt(study)),
        "lengths": (lambda: lengths(study, styles), "Conversation lengths", lengths_alt(study)),
    }
    with mpl.rc_context(RC):
        return {name: Chart(svg_of(draw()), title, alt) for name, (draw, title, alt) in drawings.items()}
