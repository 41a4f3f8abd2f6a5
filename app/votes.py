"""Which answer people preferred: one line of JSON per vote, and a tally that says how sure it is."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from abctune.core.shares import wilson
from abctune.study.votes import CastVote

VOTES = Path("app/local/votes.jsonl")
_writing = threading.Lock()


def record(path: Path, vote: CastVote) -> None:
    """Append a vote, with its time. One write of one line, so that a crash cannot leave half a vote in the middle."""
    line = vote.model_copy(update={"time": datetime.now(UTC).isoformat(timespec="seconds")}).model_dump_json()
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
    chance: float  # the share that random choices would give

    @property
    def share(self) -> float:
        """Wins per comparison shown, 0 to 1."""
        return self.wins / self.shown


def tally(path: Path) -> list[Standing]:
    """Each model's blind votes. Votes given while names were shown do not count: a name can influence the choice."""
    wins: dict[str, int] = {}
    among: dict[str, list[int]] = {}
    for vote in _read(path):
        if not vote.blind:
            continue
        for model in vote.models:
            among.setdefault(model, []).append(len(vote.models))
            wins[model] = wins.get(model, 0) + (vote.preferred == model)
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


def _read(path: Path) -> list[CastVote]:
    votes = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for line in lines:
        with suppress(ValidationError):  # a line that a full disk cut short; the others still count
            votes.append(CastVote.model_validate_json(line))
    return votes
