"""Which variant, and which format, a stage is to run for: from DVC, or from the command line."""

from __future__ import annotations

import os
from typing import Annotated, Literal, get_args

import typer

from abctune.core.errors import UserError
from abctune.core.params.section import BASE, ExportFormat
from abctune.core.params.study import Params


def item_of(stage: str) -> str:
    """The item of a foreach stage's name: `B` of `train@B`. A name without `@` is returned as it is.

    DVC puts the stage's name into the environment variable DVC_STAGE. The commands in dvc.yaml contain no ${key}:
    DVC would paste it into a shell command, where a key such as `x; touch y` runs before it can be refused here.
    """
    return stage.rpartition("@")[2]


def exported_stage(does: Literal["export", "served"], variant: str, fmt: str) -> str:
    """The stage that writes an exported file, or scores it: `export@B-q8_0`, and of base `export-base@q8_0`."""
    return f"{does}-{BASE}@{fmt}" if variant == BASE else f"{does}@{variant}-{fmt}"


def _exported_by(stage: str) -> tuple[str, str]:
    """The variant (or base) and the format that `exported_stage` made a name of; empty where there is none."""
    name, _, item = stage.rpartition("@")
    if name.endswith(f"-{BASE}"):
        return BASE, item
    variant, _, fmt = item.rpartition("-")
    return variant, fmt


def key_from_dvc() -> str | None:
    """The foreach item that DVC is running, `B` of its stage `train@B`; None outside a foreach stage."""
    stage = os.environ.get("DVC_STAGE", "")
    return item_of(stage) if "@" in stage else None


# DVC sets DVC_STAGE=train@B; typer reads it as the default, and `item_of` takes the variant out of it.
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
VariantArgument = Annotated[str, typer.Argument(help="a name under `variants` in params.yaml, or base")]
FormatArgument = Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(get_args(ExportFormat)))]


def exported_item(params: Params, variant: str, fmt: str) -> tuple[str, str]:
    """The variant (or base) and the format, from the command line or from DVC's name of the stage.

    Base is named on the command line of its stage in dvc.yaml too.

    Raises:
        UserError: params.yaml has no such variant, or there is no such format.
    """
    in_dvc = _exported_by(os.environ.get("DVC_STAGE", ""))
    if not variant:
        variant, fmt = in_dvc
    elif variant == BASE and not fmt:
        fmt = in_dvc[1]
    if variant != BASE:
        params.require_variant(variant)
    if fmt not in get_args(ExportFormat):
        raise UserError(f"no format {fmt!r} to export to; there are {', '.join(get_args(ExportFormat))}")
    return variant, fmt
