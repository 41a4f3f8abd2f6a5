"""Send a variant to a model hub: `python -m tools.publish VARIANT --repo user/name [--merged]`.

The adapter, or with --merged the whole model in 16 bit, with its model card. HF_TOKEN is read from the environment.
"""

from __future__ import annotations

import re
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import Params, load_params
from abctune.core.places import MODELS
from stages.fetch.hub import token_from_environment
from tools.publish.package import base_of, files_of, pack_adapter, pack_merged, require_name
from tools.publish.upload import upload
from tools.verify.run import verify

REPO = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN_FAULTS = 3


class Dtype(StrEnum):
    """The 16-bit formats that a merged model can be published in."""

    bfloat16 = "bfloat16"
    float16 = "float16"


@exits_with_one_line
def main(
    variant: str,
    repo: Annotated[str, typer.Option(help="where to: user/name")],
    merged: Annotated[bool, typer.Option("--merged", help="send the whole model, not the adapter")] = False,
    dtype: Annotated[Dtype, typer.Option(help="of the merged weights")] = Dtype.bfloat16,
    public: Annotated[
        bool, typer.Option("--public", help="make a new repository public, not private")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="do all but send; list the files")] = False,
) -> None:
    """Send a variant's adapter or merged model to a model hub, if verify finds nothing wrong."""
    params = load_params()
    params.require_variant(variant)
    if not REPO.fullmatch(repo):
        raise UserError(f"--repo {repo}: should be user/name")
    token = token_from_environment()
    if not (token or dry_run):
        raise UserError(
            "HF_TOKEN is not set; set it to a token with write access, or see what would be sent by --dry-run"
        )
    require_name(repo, base_of(variant))
    require_verified(params)
    # Next to the models, since a merged model may not fit into /tmp; Git ignores *.tmp.
    with tempfile.TemporaryDirectory(dir=MODELS, prefix=f".publish-{variant}-", suffix=".tmp") as name:
        folder = Path(name)
        if merged:
            agreement = pack_merged(variant, repo, dtype, params.active.model.template, folder)
            print(
                f"{variant} merged to {dtype}: logits moved by {agreement.difference:.3g}, "
                f"the adapter's effect is {agreement.effect:.3g}"
            )
        else:
            pack_adapter(variant, repo, folder)
        for file, size in files_of(folder).items():
            print(f"  {file}: {size:,} bytes")
        if dry_run or not token:
            print(f"nothing was sent to {repo} (--dry-run)")
            return
        print(f"sent to {upload(folder, repo, token, public, message=f'abctune variant {variant}')}")


def require_verified(params: Params) -> None:
    """Refuse to publish what `python -m tools.verify` objects to."""
    faults = verify(params).faults
    if faults:
        more = f" ... and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        shown = "\n       ".join(faults[:SHOWN_FAULTS])
        raise UserError(f"nothing is published, since `python -m tools.verify` finds:\n       {shown}{more}")


if __name__ == "__main__":
    typer.run(main)
