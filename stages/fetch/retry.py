"""Try again where a network may recover."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from abctune.core.errors import UserError

TRIES = 3
FIRST_WAIT = 1.0  # seconds; four times as long before the next try

T = TypeVar("T")


class Transient(Exception):
    """A failure that may pass by itself; its message is what the user reads if it does not."""


def with_retries(attempt: Callable[[], T], doing: str) -> T:
    """Call `attempt` up to TRIES times, waiting longer each time, as long as it raises Transient.

    Raises:
        UserError: the last try failed too.
    """
    for number in range(1, TRIES + 1):
        try:
            return attempt()
        except Transient as error:
            if number == TRIES:
                raise UserError(f"{doing} failed {TRIES} times: {error}") from None
            wait = FIRST_WAIT * 4 ** (number - 1)
            print(f"{doing} failed, trying again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    raise AssertionError("unreachable")
