"""docs/models.md's table of published templates, made anew where llama.cpp's folder of them is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.make_templates_table import PAGE, filled

FOLDER = os.environ.get("ABCTUNE_TEMPLATES")


@pytest.mark.faults
@pytest.mark.skipif(
    not FOLDER, reason="ABCTUNE_TEMPLATES names no folder of templates (tests/make_templates_table.py)"
)
def test_the_page_says_what_becomes_of_each_published_template() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, Path(FOLDER or "")) == page
