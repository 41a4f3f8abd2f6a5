"""The choice of tests that `make check` makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.quick import is_left_out, slow_tests

ROOT = Path(__file__).parent.parent
SLOW = frozenset({"tests/plot/test_plot.py::test_slow", "tests/test_top.py::test_slow"})


def test_every_test_that_is_listed_as_slow_exists():
    for test in slow_tests():
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), test


@pytest.mark.parametrize(
    ("test", "project", "changed", "left_out"),
    [
        ("tests/plot/test_plot.py::test_quick", False, [], False),
        ("tests/plot/test_plot.py::test_quick", True, [], True),
        ("tests/plot/test_plot.py::test_slow[a]", False, [], True),
        ("tests/plot/test_plot.py::test_slow[a]", False, ["stages/train/fit.py", "plots/report.html"], True),
        ("tests/plot/test_plot.py::test_slow[a]", False, ["stages/plot/figures/style.py"], False),
        ("tests/plot/test_plot.py::test_slow[a]", True, ["stages/plot/report.py"], True),
        ("tests/plot/test_plot.py::test_slow", False, ["tests/plot/conftest.py"], False),
        ("tests/test_top.py::test_slow", False, ["tests/test_docs.py", "Makefile"], True),
        ("tests/test_top.py::test_slow", False, ["tests/test_top.py"], False),
    ],
)
def test_a_slow_test_is_run_next_to_the_code_that_is_being_changed(test, project, changed, left_out):
    assert is_left_out(test, project, SLOW, changed) is left_out
