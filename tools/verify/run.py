"""All checks, for `python -m tools.verify` and for commands that must stop when one fails."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from abctune.core.errors import UserError
from abctune.core.params import Params
from abctune.core.places import MODELS
from abctune.study.leftovers import leftovers
from tools.verify.adapters import adapter_faults, linear_layers
from tools.verify.results import summary_faults
from tools.verify.tracked import VerificationResult, check_tracked

DVC_FILE = Path("dvc.yaml")


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
    found.notes += registry_notes(params)
    if left := leftovers(params):
        found.notes.append(
            f"left over from removed variants or sources: {', '.join(map(str, left))}; `make prune`"
        )
    return found


def registrable() -> set[str]:
    """The names under dvc.yaml's `artifacts`."""
    content = YAML(typ="safe", pure=True).load(DVC_FILE.read_text(encoding="utf-8"))
    return set(content.get("artifacts", {}))


def lacks(variant: str) -> str:
    """What to say of a variant that dvc.yaml's `artifacts` lacks: DVC has no `foreach` there, so nothing can add it."""
    entry = f"{variant}: {{path: models/{variant}, type: model}}"
    return f"{DVC_FILE}: `artifacts` lacks variant {variant}; add `{entry}` there, or it cannot be registered"


def registry_notes(params: Params) -> Iterator[str]:
    """Variants and versions that dvc.yaml's `artifacts` lacks, entries that are no variant.

    `gto register` takes any name; what `artifacts` lacks, nobody can get by it.
    """
    artifacts = registrable()
    for variant in params.variants.keys() - artifacts:
        yield lacks(variant)
    for name in artifacts - params.variants.keys():
        yield f"{DVC_FILE}: `artifacts` names {name}, which is no variant of params.yaml; remove the entry"
    command = ["git", "tag", "--points-at", "HEAD", "--list", "*@v*"]
    for tag in subprocess.run(command, capture_output=True, text=True).stdout.split():
        if tag.partition("@")[0] not in artifacts:
            yield (
                f"the Git tag {tag} registers what `artifacts` of {DVC_FILE} lacks, so that nobody can get it; "
                f"`git tag --delete {tag}` removes it"
            )
