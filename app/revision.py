"""The adapters of another Git revision or experiment, without touching the workspace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError
from abctune.core.files import atomic_output
from abctune.core.params import load_params

CACHE = Path("app/local/revisions")
NOT_HERE = (
    "its adapters are in neither DVC's cache nor the remote; where they were made, `dvc push --all-commits` sends them to the "
    "remote (an experiment's: `dvc exp push origin NAME`)"
)
RESULTS = (
    "metrics/summary.json",
    "metrics/study.json",
    *(f"plots/{name}.svg" for name in ("forest", "curves", "test_loss")),
)
FILES = ("params.yaml", "dvc.lock", *RESULTS)


def fetch_revision(rev: str, cache: Path = CACHE) -> Path:
    """A folder with the revision's params.yaml, metrics/summary.json and models/<variant>, made once per commit.

    Raises:
        UserError: there is no such revision, or its adapters are not in DVC's cache.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev
    from dvc_data.index import DataIndexDirError

    try:
        with Repo() as repo:
            commit = resolve_rev(repo.scm, rev)
    except RevError:
        raise UserError(
            f"--rev {rev}: no such Git revision or experiment; `dvc exp list --all-commits` shows them"
        ) from None
    target = cache / commit
    if not target.exists():
        try:
            with atomic_output(target) as folder:
                _copy(DVCFileSystem(rev=commit), folder, rev)
        except (DataIndexDirError, FileNotFoundError):  # a folder's list of files, or a file
            raise UserError(f"--rev {rev}: {NOT_HERE}") from None
        except DvcException as error:
            raise UserError(f"--rev {rev}: {error or type(error).__name__}") from None
    return target


def _copy(files: Any, folder: Path, rev: str) -> None:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if files.exists(name):
            (folder / name).write_bytes(files.read_bytes(name))
    if not (folder / "params.yaml").exists():
        raise UserError(f"--rev {rev}: it has no params.yaml, so it is no revision of this project")
    found = []
    for variant in load_params(folder / "params.yaml").variants:
        if not files.exists(f"models/{variant}"):
            continue
        files.get(f"models/{variant}", str(folder / "models" / variant), recursive=True)
        # DVC answers with an empty folder, and no error, when its cache lacks the data.
        if (folder / "models" / variant / "adapter_config.json").exists():
            found.append(variant)
        else:
            shutil.rmtree(folder / "models" / variant, ignore_errors=True)
    if not found:
        raise UserError(f"--rev {rev}: {NOT_HERE}")
