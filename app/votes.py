"""Which answer people preferred: one line of JSON per vote, and a tally that says how sure it is."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from abctune.core.shares import wilson

VOTES = Path("app/local/votes.jsonl")
_writing = threading.Lock()


def record(path: Path, vote: dict[str, Any]) -> None:
    """Append a vote. One write of one line, so that a crash cannot leave half a vote in the middle."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **vote}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writing, path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


class Standing(NamedTuple):
    """One model's blind votes; `low` and `high` bound the share of wins at 95 %."""

    model: str
    wins: int
    shown: int
    low: float
    high: float
    chance: float  # the share that choosing without looking would give

    @property
    def share(self) -> float:
        """Wins per comparison shown, 0 to 1."""
        return self.wins / self.shown


def tally(path: Path) -> list[Standing]:
    """Each model's blind votes. Those with names in sight do not count: a name is enough to sway people."""
    wins: dict[str, int] = {}
    among: dict[str, list[int]] = {}
    for vote in _read(path):
        if not vote.get("blind"):
            continue
        for model in vote["models"]:
            among.setdefault(model, []).append(len(vote["models"]))
            wins[model] = wins.get(model, 0) + (vote["preferred"] == model)
    return [
        Standing(
            model,
            wins[model],
            len(sizes),
            *wilson(wins[model], len(sizes)),
            sum(1 / n for n in sizes) / len(sizes),
        )
        for model, sizes in sorted(among.items())
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
