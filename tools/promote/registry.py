"""GTO's registry: which version of which variant a stage has, and new tags for it."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.places import EVAL
from abctune.study.inputs import Evaluated, read_evaluated
from tools.verify.run import lacks, registrable


@dataclass(frozen=True)
class Registered:
    """The version that a stage has now."""

    variant: str
    version: str
    commit: str

    @property
    def title(self) -> str:
        """As sentences name it."""
        return f"{self.variant} {self.version}"


def registered(stage: str) -> Registered | None:
    """What was assigned to the stage last, of all variants; None where nothing was.

    Raises:
        UserError: this is no Git repository.
    """
    from gto.constants import VersionSort
    from gto.exceptions import GTOException
    from gto.registry import GitRegistry

    try:
        with GitRegistry.from_url(".") as registry:
            now = [
                (name, assignments[0])
                for name, artifact in registry.get_artifacts().items()
                if (assignments := artifact.get_vstages(sort=VersionSort.Timestamp).get(stage))
            ]
    except GTOException as error:
        raise UserError(f"the registry cannot be read: {error}") from None
    if not now:
        return None
    name, latest = max(now, key=lambda one: one[1].created_at)
    return Registered(name, latest.version, latest.commit_hexsha)


def scores_of(model: Registered) -> Evaluated:
    """The registered version's scores, out of Git and the DVC cache (or its remote).

    Raises:
        UserError: they are not there, or an older version of abctune wrote them.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    path = (EVAL / model.variant).as_posix()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / model.variant
        try:
            DVCFileSystem(rev=model.commit).get(path, str(target), recursive=True)
        except (DvcException, OSError) as error:
            cause = (str(error).splitlines() or ["unknown"])[0]
            raise UserError(
                f"the scores of {model.title} are in neither the cache nor the remote ({cause}); where they were "
                "made, `dvc push --all-tags` sends them to the remote"
            ) from None
        return read_evaluated(model.variant, target)


def tag(variant: str, stage: str, message: str) -> list[str]:
    """Register this commit's variant and assign it to the stage; return the new tags.

    Raises:
        UserError: files differ from the commit, so a tag would name something else; or dvc.yaml lacks the variant; or
            GTO refuses.
    """
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    if changed.stdout.strip():
        raise UserError("files differ from the last commit, which the tag would name; commit them first")
    if variant not in registrable():  # GTO would tag it, and `dvc artifacts get` would not find it
        raise UserError(lacks(variant))
    before = tags()
    from gto import api
    from gto.exceptions import GTOException

    try:
        api.assign(".", variant, stage, ref="HEAD", message=message)
    except GTOException as error:
        raise UserError(f"the registry refuses: {error}") from None
    return sorted(tags() - before)


def reasons_at_head(variant: str) -> str:
    """The message of this commit's latest promotion of the variant; empty where there is none, or no Git."""
    form = "%(contents)"
    pattern = f"refs/tags/{variant}#*"
    command = [
        "git",
        "for-each-ref",
        "--points-at",
        "HEAD",
        "--sort=-creatordate",
        "--count=1",
        f"--format={form}",
        pattern,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def tags() -> set[str]:
    """All tags of the repository."""
    return set(subprocess.run(["git", "tag"], capture_output=True, text=True, check=True).stdout.split())
