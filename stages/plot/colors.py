"""The colors of figures, report and charts, on light paper and on dark.

Those of models are Okabe & Ito's (2008), which color-blind readers can tell apart; base is black.
"""

from __future__ import annotations

INK, MUTED, FAINT, BAND = "#1a1a1a", "#6b6b6b", "#dddddd", "#ececec"
PAPER, BLACK = "#ffffff", "#000000"
# Okabe-Ito, the darkest first: three variants get the three that read best on white. Yellow is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# What each color is where the browser is set to dark. Text has a contrast of 5 and more on the dark paper.
DARK = {
    PAPER: "#14171b",
    BLACK: "#ffffff",
    INK: "#e8eaed",
    MUTED: "#a9b2bd",
    FAINT: "#353b43",
    BAND: "#2a3038",
    **dict(zip(COLORS, ("#4aa3e0", "#e8732e", "#1fb58a", "#cc79a7", "#e69f00", "#9fd8ff"), strict=True)),
}
