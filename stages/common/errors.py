"""One kind of error for what a person can put right, shown as one line instead of a traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class UserError(Exception):
    """Something in params.yaml, the data or the machine that the user can mend.

    The message names the file, the key where there is one, and the remedy.
    """


def exits_with_one_line(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap a stage's main: a UserError (or a full disk) ends it with one line and exit status 1.

    `ABCTUNE_DEBUG=1` keeps the traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except (UserError, OSError) as error:
            if os.environ.get("ABCTUNE_DEBUG"):
                raise
            print(f"error: {_explain(error)}", file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def disk_full(path: object) -> UserError:
    """What to say when writing `path` (None: not known) filled the disk."""
    where = f" while writing {path}" if path else ""
    return UserError(
        f"no space left on the disk{where}; free some (`dvc gc --workspace` drops unused cache), run again"
    )


def _explain(error: UserError | OSError) -> str:
    return str(disk_full(error.filename) if is_disk_full(error) else error)
