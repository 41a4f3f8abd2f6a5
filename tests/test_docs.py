"""What the pages name exists: commands, `make` targets, files that they link to."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests import make_data_page, make_models_page

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    for module in re.findall(r"python -m ((?:stages|tools|app|benchmarks)(?:\.\w+)*)", page.read_text()):
        assert importlib.util.find_spec(module), f"{page}: python -m {module}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|\$ |^)make ([a-z-]+)\b", page.read_text(), re.M))
    assert named <= TARGETS, f"{page}: {named - TARGETS}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=ids)
def test_every_file_and_heading_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page}: {target}"
        if heading:
            assert heading in headings(file), f"{page}: {target}"


def headings(file: Path) -> set[str]:
    """The anchors that forges give to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_tables_of_the_data_page_are_those_of_the_tests_cases() -> None:
    page = make_data_page.PAGE.read_text(encoding="utf-8")
    assert make_data_page.filled(page) == page, "run `python -m tests.make_data_page`"


def test_the_table_of_models_is_what_is_declared_and_measured() -> None:
    page = make_models_page.PAGE.read_text(encoding="utf-8")
    assert make_models_page.filled(page) == page, "run `python -m tests.make_models_page`"
