"""Parts of documentation pages that a program writes, between two marks."""

from __future__ import annotations


def with_part(page: str, start: str, end: str, part: str) -> str:
    """The page with `part` in place of what stands between its two marks."""
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{part.strip()}\n\n{end}{rest.partition(end)[2]}"
