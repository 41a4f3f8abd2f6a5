"""Remove outputs of variants and sources that params.yaml no longer has: `python -m tools.prune`, or `make prune`.

DVC leaves such files in the workspace (of a removed variant, or after `git checkout` without `dvc checkout`). Git
and every stage ignore them. What DVC has recorded once stays in its cache until `dvc gc`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import remove
from abctune.core.params import Params, load_params
from abctune.study.leftovers import leftovers
from tools.command import run_command

CHECKPOINTS = Path("checkpoints")


@exits_with_one_line
def main(yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False) -> None:
    """List what is left over, and remove it after asking."""
    params = load_params()
    found = [*leftovers(params), *old_checkpoints(params)]
    if not found:
        print("nothing is left over")
        return
    for path in found:
        print(path)
    if not yes and not sys.stdin.isatty():
        raise UserError("nothing was removed; `python -m tools.prune --yes` removes without asking")
    if yes or typer.confirm(f"Remove these {len(found)}?"):
        for path in found:
            remove(path)


def old_checkpoints(params: Params) -> list[Path]:
    """The training checkpoints of variants that params.yaml no longer has."""
    folders = sorted(CHECKPOINTS.iterdir()) if CHECKPOINTS.is_dir() else []
    return [folder for folder in folders if folder.name not in params.variants]


if __name__ == "__main__":
    run_command(main)
