"""Write params.yaml as DVC writes it: `python -m tools.tidy_params`, or `make format`.

`dvc exp run -S key=value` rewrites the whole file with DVC's own indentation, and drops comments inside lists. In a
file that is already written so, an experiment changes one line.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import write_text
from abctune.core.params import PARAMS_FILE

COMMENT = re.compile(r"(?:^|\s)#.*")


@exits_with_one_line
def main() -> None:
    """Rewrite params.yaml if DVC would write it differently."""
    text = PARAMS_FILE.read_text(encoding="utf-8")
    tidy = as_dvc_writes(text)
    if tidy != text:
        write_text(PARAMS_FILE, tidy)
        print(f"{PARAMS_FILE}: rewritten as DVC writes it")


def as_dvc_writes(text: str) -> str:
    """The text of params.yaml after `dvc exp run -S` with a value that changes nothing.

    Raises:
        UserError: DVC would drop a comment.
    """
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8")
        apply_overrides(str(path), [])
        tidy = path.read_text(encoding="utf-8")
    kept = set(comments_of(tidy))
    if lost := [comment for comment in comments_of(text) if comment not in kept]:
        raise UserError(
            f"{PARAMS_FILE}: the next `dvc exp run -S` would drop the comment {lost[0]!r}: DVC keeps none inside or"
            " behind a list; move it above the list's key"
        )
    return tidy


def comments_of(text: str) -> list[str]:
    """The comments of a YAML file, from `#` to the end of the line."""
    return [found[0].strip() for line in text.splitlines() if (found := COMMENT.search(line))]


if __name__ == "__main__":
    typer.run(main)
