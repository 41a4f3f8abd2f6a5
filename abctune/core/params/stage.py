"""Which variant a stage is to run for: from DVC, or from the command line."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def item_of(stage: str) -> str:
    """The item of a foreach stage's name: `B` of `train@B`. A name without `@` is returned as it is.

    DVC puts the stage's name into the environment variable DVC_STAGE. The commands in dvc.yaml contain no ${key}:
    DVC would paste it into a shell command, where a key such as `x; touch y` runs before it can be refused here.
    """
    return stage.rpartition("@")[2]


def key_from_dvc() -> str | None:
    """The foreach item that DVC is running, `B` of its stage `train@B`; None outside a foreach stage."""
    stage = os.environ.get("DVC_STAGE", "")
    return item_of(stage) if "@" in stage else None


ItemArgument = Annotated[
    str,
    typer.Argument(
        envvar="DVC_STAGE",
        parser=item_of,
        metavar="VARIANT",
        show_default=False,
        help="a name under `variants` in params.yaml; DVC sets it",
    ),
]
