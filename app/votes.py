"""Which answer people preferred: one line of JSON per vote, and a tally that says how sure it is."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abctune.core.shares import wilson

VOTES = Path("app/local/votes.jsonl")
_writing = threading.Lock()


def record(path: Path, vote: dict[str, Any]) -> None:
    """Append a vote. One write of one line, so that a crash cannot leave half a vote in the middle."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **vote}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writing, path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def tally(path: Path) -> list[tuple[str, int, int, float, float]]:
    """(model, wins, times shown, low, high) of blind votes; `low` and `high` bound the share of wins at 95 %.

    Votes with names in sight do not count: a name is enough to sway people.
    """
    wins: dict[str, int] = {}
    shown: dict[str, int] = {}
    for vote in _read(path):
        if not vote.get("blind"):
            continue
        for model in vote["models"]:
            shown[model] = shown.get(model, 0) + 1
            wins[model] = wins.get(model, 0) + (vote["preferred"] == model)
    return [
        (model, wins[model], count, *wilson(wins[model], count)) for model, count in sorted(shown.items())
    ]


def _read(path: Path) -> list[dict[str, Any]]:
    votes = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            vote = json.loads(line)
        except ValueError:
            continue  # a line cut short by a full disk; the others still count
        if isinstance(vote, dict) and isinstance(vote.get("models"), list):
            votes.append(vote)
    return votes
