"""Write the tables of docs/data.md out of the tests' cases: `python -m tests.make_data_page`.

A test holds that the committed page is what this makes.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.format.fields import HARMLESS
from tests.format.make_cases import read_cases
from tests.pages import with_part

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/data.md"
FILES = ROOT / "tests/fetch/cases/cases.yaml"
LONGEST = 300  # characters of a cell; longer ones are cut
# By how the case's name begins.
HEADINGS = {
    "a": "Instructions",
    "b": "Prompts, completions, preferences",
    "c": "ShareGPT",
    "d": "OpenAI's format and its relatives",
    "e": "Unusual text",
    "h": "Out of Parquet",
    "i": "Unusual values",
    "": "Settings of a source",
}


def tables() -> dict[str, str]:
    """The page's generated parts by name."""
    return {"files": "\n".join(file_table()), "rows": "\n".join(row_tables()), "harmless": harmless()}


def harmless() -> str:
    """The fields that may be left out, by the alphabet."""
    return textwrap.fill(", ".join(f"`{name}`" for name in sorted(HARMLESS)), 120, break_on_hyphens=False)


def file_table() -> Iterator[str]:
    """A line per file."""
    yield "| your file | what is read |\n|---|---|"
    for name, case in YAML(typ="safe", pure=True).load(FILES.read_text(encoding="utf-8")).items():
        read = (
            f"refused: {plain(case['refused'])}"
            if "refused" in case
            else f"{case['rows']:,} row{'s' * (case['rows'] != 1)}"
        )
        if case.get("problems"):
            read += f", {case['problems']:,} of them quarantined"
        read += "".join(f"; a line says that {plain(note)}" for note in case.get("notes", []))
        yield f"| {plain(case['looks'])} (`{name.partition('_')[2] or name}`) | {read} |"


def row_tables() -> Iterator[str]:
    """A table per kind of row."""
    groups: dict[str, list[dict[str, Any]]] = {kind: [] for kind in HEADINGS}
    for case in read_cases():
        kind = case["case"][0] if re.match(r"[a-z]\d\d_", case["case"]) else ""
        groups[kind if kind in HEADINGS else ""].append(case)
    for kind, cases in groups.items():
        yield f"\n### {HEADINGS[kind]}\n\n| your row | what is trained on |\n|---|---|"
        yield from (f"| {given(case)} | {becomes(case)} |" for case in cases)


def given(case: dict[str, Any]) -> str:
    """The record, and the settings that it is read with."""
    record = case["record"]
    text = code(record if isinstance(record, str) else json.dumps(record, ensure_ascii=False))
    if options := case.get("options"):
        text += f" with {code(json.dumps(options))}"
    notes = {"TOOLS_CHATML": "template with tools", "FORGETFUL_CHATML": "template that drops past thoughts"}
    note = notes.get(case.get("template", ""))
    return f"{text} ({note})" if note else text


def becomes(case: dict[str, Any]) -> str:
    """The rendered turns with supervised text between guillemets, or why there are none."""
    if "reason" in case:
        return f"refused: {plain(case['reason'])}"
    shown = "<br>".join(code(turns(text)) for text in case["texts"])
    return f"{shown} ({plain('; '.join(case['repairs']))})" if case.get("repairs") else shown


def turns(text: str) -> str:
    """A ChatML text in one line: role, colon, content."""
    text = re.sub(r"<\|im_start\|>(\w+)\n", r"\1: ", text)
    return re.sub(r"<\|im_end\|>(»?)\n?", r"\1 ", text).strip()


def code(text: str) -> str:
    """A text as code in a table's cell: cut, in one line, and without what ends the code or the cell."""
    text = text[:LONGEST] + ("…" if len(text) > LONGEST else "")
    text = text.replace("\n", "⏎")
    text = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def plain(text: str) -> str:
    """A text in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def filled(page: str) -> str:
    """The page with its generated parts made anew."""
    for name, table in tables().items():
        start, end = f"<!-- {name}: made by tests.make_data_page -->\n", f"<!-- end of {name} -->"
        page = with_part(page, start, end, table)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
