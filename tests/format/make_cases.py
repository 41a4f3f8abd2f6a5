"""Write what format makes of the records in cases.jsonl into that file: `python -m tests.format.make_cases`.

Look at the difference before you commit it: the file says what is right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abctune.core.params import SourceParams
from stages.format.formatter import Formatter
from tests import small

CASES = Path(__file__).parent / "cases.jsonl"
GIVEN = ("case", "record", "options", "template")


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """The case's texts with supervised spans, repairs and reasons, as the stage has them."""
    tokenizer = small.chatml_tokenizer()
    tokenizer.chat_template = getattr(small, case.get("template", "CHATML"))
    options = SourceParams(**case.get("options", {}))
    formatter = Formatter({"own": options}, tokenizer, 100_000, preview_rows=100)
    record = case["record"] if isinstance(case["record"], str) else json.dumps(case["record"])
    _, rejected = formatter.batch([{"source": "own", "row": 0, "record": record, "group": None}])
    texts = [text for _, text in formatter.preview.shown]
    repairs = list(formatter.record().sources["own"].repairs)
    if rejected:
        return {"reason": rejected[0]["reason"]}
    return {"texts": texts, **({"repairs": repairs} if repairs else {})}


def read_cases() -> list[dict[str, Any]]:
    """All cases; JSON lines end at a line feed alone."""
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").split("\n") if line]


def main() -> None:
    """Rewrite the outcomes."""
    lines = []
    for case in read_cases():
        given = {key: case[key] for key in GIVEN if key in case}
        lines.append(json.dumps(given | outcome(case), ensure_ascii=False))
    CASES.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
