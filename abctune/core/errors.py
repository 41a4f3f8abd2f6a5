"""The error for what a user can correct, shown as one line instead of a traceback."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
NO_SPACE = os.strerror(errno.ENOSPC)
DEBUG = "ABCTUNE_DEBUG"  # environment variable: show the traceback of an error


class UserError(Exception):
    """Something in params.yaml, the data or the machine that the user can correct.

    The message names the file, the key where there is one, and the remedy.
    """


def exits_with_one_line(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command's main: a `UserError` or a full disk ends it with one line on stderr and exit status 1.

    `ABCTUNE_DEBUG=1` in the environment keeps the traceback, in the stages that DVC starts as well. Errors that no
    user can mend (bugs) always keep theirs.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        """What `main` returns, its output flushed; a user's error ends the process here."""
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # a closed pipe (`... | head`) is met here, not when the interpreter exits
            return result
        except BrokenPipeError:
            raise  # typer ends the command quietly
        except Exception as error:
            note = _left_in_params()
            if os.environ.get(DEBUG) or not _is_users(error):
                if note:
                    error.add_note(note)
                raise
            print(f"error: {_explain(error)}\n{note}".rstrip(), file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped


def _left_in_params() -> str:
    """What to know after a failed `dvc exp run -S`: DVC wrote the values into params.yaml and does not take them back.

    Queued and temporary runs have a params.yaml of their own, which is thrown away (DVC_ROOT is elsewhere).
    """
    if "DVC_EXP_NAME" not in os.environ or Path(os.environ.get("DVC_ROOT", "")).resolve() != Path.cwd():
        return ""
    try:
        command = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
        changed = subprocess.run(command, capture_output=True, timeout=20).returncode == 1
    except (OSError, subprocess.SubprocessError):
        return ""
    if not changed:
        return ""
    return "note: params.yaml keeps what this experiment set; `git checkout params.yaml` restores it"


def _is_users(error: Exception) -> bool:
    return isinstance(error, UserError | OSError) or is_disk_full(error) or _is_out_of_gpu_memory(error)


def _is_out_of_gpu_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, which most stages do not import


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; safetensors and pyarrow have messages of their own for that."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or NO_SPACE in str(error)


def disk_full(path: object) -> UserError:
    """What to say when writing `path` (None: not known) filled the disk."""
    where = f" while writing {path}" if path else ""
    return UserError(
        f"no space left on the disk{where}; free some, run again; "
        "`dvc gc --workspace --all-branches --all-tags --all-experiments` drops cache that none of these use"
    )


def _explain(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        return str(disk_full(getattr(error, "filename", None)))
    if _is_out_of_gpu_memory(error):
        return (
            "out of GPU memory: end what else is on the GPU (`nvidia-smi` shows it), or set a smaller"
            " profiles.<profile>.eval.batch_tokens or profiles.<profile>.data.max_length in params.yaml"
        )
    return str(error)
