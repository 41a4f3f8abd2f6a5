"""Made-up runs, as the tests of `plot` have them."""

from tests.plot.conftest import fake_run, plotted, undrawn

__all__ = ["fake_run", "plotted", "undrawn"]
