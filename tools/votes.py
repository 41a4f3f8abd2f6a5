"""Add the votes of the chat's Compare tab to the report: `python -m tools.votes`, then `dvc repro plot`.

Takes blind votes on the adapters that are at models/<variant> now, and writes data/votes/votes.jsonl, which the stage
plot reads. What was asked and answered stays in the chat's own file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output
from abctune.core.params import BASE, load_params
from abctune.core.places import MODELS
from abctune.core.provenance import sha256_of
from abctune.core.records import TrainingRecord, read_record
from abctune.study.votes import VOTES, CastVote, VoteRecord, read_votes, training_id

CAST = Path("app/local/votes.jsonl")  # where the chat writes them


@exits_with_one_line
def main(
    files: Annotated[list[Path] | None, typer.Argument(help=f"Files of the chat; {CAST} if none.")] = None,
) -> None:
    """Add votes that are not there yet; say how many, and why others are left out."""
    known = {vote.id: vote for vote in read_votes()}
    before, left_out = len(known), Counter[str]()
    current = {name: _adapter(MODELS / name) for name in load_params().variants if (MODELS / name).exists()}
    for path in files or [CAST]:
        for found in votes_of(path, current):
            if isinstance(found, VoteRecord):
                known[found.id] = found
            else:
                left_out[found] += 1
    VOTES.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(VOTES) as temporary:
        temporary.write_text("".join(vote.model_dump_json() + "\n" for vote in known.values()), "utf-8")
    print(f"{VOTES}: {len(known) - before:,} votes added, {len(known):,} in all")
    for reason, count in left_out.items():
        print(f"left out, {reason}: {count:,}")
    print("`dvc repro plot` puts them into the report")


def _adapter(folder: Path) -> tuple[str, str]:
    """The hash of a variant's weights, and which training they are from."""
    record = read_record(folder / "training.json", TrainingRecord, f"train@{folder.name}")
    return sha256_of(folder / "adapter_model.safetensors"), training_id(record)


def votes_of(path: Path, current: dict[str, tuple[str, str]]) -> Iterator[VoteRecord | str]:
    """Each line of the chat's file as a vote, or as the reason why it counts for nothing."""
    if not path.exists():
        raise UserError(
            f"{path} not found; the chat's Compare tab (`make app`) writes it with the first vote"
        )
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        try:
            vote = CastVote.model_validate_json(line)
        except ValidationError:
            yield "damaged lines"
        else:
            yield _read(vote, hashlib.sha256(line.encode()).hexdigest()[:16], current)


def _read(vote: CastVote, key: str, current: dict[str, tuple[str, str]]) -> VoteRecord | str:
    if not vote.blind:
        return "votes with the names in sight"
    variants = [name for name in vote.models if name != BASE]
    if any(name not in current or vote.adapters.get(name) != current[name][0] for name in variants):
        return "votes on other adapters than those at models/"
    if vote.sampling.get("adapter_strength", 1.0) != 1.0:
        return "votes on adapters at another strength"
    trained = {name: current[name][1] for name in variants}
    return VoteRecord(id=key, shown=vote.models, preferred=vote.preferred, trained=trained)


if __name__ == "__main__":
    typer.run(main)
