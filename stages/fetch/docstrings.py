"""Recipe `docstrings`: the prose in a Python package's own documentation, as running text."""

from __future__ import annotations

import ast
import inspect
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stages.fetch.records import Record, serialise

MIN_PARAGRAPH, MIN_DOCUMENT = 15, 60  # words: shorter paragraphs are captions, shorter documents hardly prose
SECTION = re.compile(r"^(?P<title>[A-Z][\w ]*)\n(?P<rule>-{3,}|={3,})$", re.MULTILINE)
PROSE_SECTIONS = ("", "Notes")  # of numpydoc's: the others are lists of parameters, examples and references
ROLE = re.compile(r":[\w:]+:`([^`]*)`")  # :math:`n` -> n
CITATION = re.compile(r"\s*\[\w+\]_")
NOT_PROSE = re.compile(r"^(?:\s|>>>|\.\. |[-*|+=~#]|\d+[.)] |:\w)", re.MULTILINE)


def docstrings(wheel: Path) -> Iterator[Record]:
    """One document per docstring that is long enough, `{"text": ...}`; those of a module are a group."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and "/tests/" not in name:
                tree = ast.parse(archive.read(name))
                for text in dict.fromkeys(map(prose, _docstrings_of(tree))):
                    if len(text.split()) >= MIN_DOCUMENT:
                        yield Record(serialise({"text": text}), name)


def _docstrings_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def prose(docstring: str) -> str:
    """The paragraphs of running text, each on one line, without markup."""
    pieces = SECTION.split(inspect.cleandoc(docstring))  # text, title, rule, text, title, rule, text, ...
    titles = ["", *pieces[1::3]]
    texts = [text for title, text in zip(titles, pieces[::3], strict=True) if title in PROSE_SECTIONS]
    paragraphs = (plain for text in texts for one in text.split("\n\n") if (plain := _plain(one)))
    return "\n\n".join(paragraphs)


def _plain(paragraph: str) -> str | None:
    """The paragraph as plain text; None if it is a list, code, a formula or a caption."""
    text = paragraph.strip("\n")
    if NOT_PROSE.search(text) or not text.endswith((".", ":")) or text.endswith("::"):
        return None
    words = CITATION.sub("", ROLE.sub(r"\1", text)).replace("`", "").split()
    return " ".join(words) if len(words) >= MIN_PARAGRAPH else None
