"""All checks, for `python -m tools.verify` and for whoever must not go on when one fails."""

from __future__ import annotations

from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.params import Params
from tools.verify.adapters import adapter_faults, linear_layers
from tools.verify.results import summary_faults
from tools.verify.tracked import VerificationResult, check_tracked

MODELS = Path("models")


def verify(params: Params) -> VerificationResult:
    """What is wrong, a line each: tracked files by hash, adapters by shape, summary.json by computing it again.

    Raises:
        UserError: this is no DVC repository, or another dvc is at work in it.
    """
    found = check_tracked()
    try:
        base = linear_layers()
    except UserError as error:
        found.faults.append(str(error))
    else:
        for variant in params.variants:
            found.faults += adapter_faults(MODELS / variant, base)
    found.faults += summary_faults(params)
    return found
