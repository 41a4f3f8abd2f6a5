"""A fair order between adapters: requests of one adapter run together, adapters take turns.

llama.cpp computes requests with equal adapters as one batch, and finishes such a batch before it begins another: of
four answers by four adapters asked for at once, the last began when the third had ended. So an answer is generated in
slices of a few tokens, and before each slice it asks here.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Canceled(Exception):
    """The caller has closed the stream."""


@dataclass(eq=False)
class Slice:
    """A few tokens of one answer."""

    shared: bool = False  # whether another one of the same group ran at the same time


class Scheduler:
    """Runs slices of one group at a time, groups in the order in which they began to wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._group: Hashable = None
        self._inside: set[Slice] = set()
        self._waiting: dict[Hashable, int] = {}  # group: slices that wait; in the order of their first one

    @contextmanager
    def take(self, group: Hashable, canceled: threading.Event) -> Iterator[Slice]:
        """Wait for the group's turn; the block is one slice.

        Args:
            canceled: set, with a call of `wake`, when the caller has closed the stream.

        Raises:
            Canceled: it was set while waiting.
        """
        one = Slice()
        with self._changed:
            if (self._inside and self._group != group) or self._others_wait(group):
                self._waiting[group] = self._waiting.get(group, 0) + 1
                self._changed.wait_for(lambda: canceled.is_set() or self._is_next(group))
                self._waiting[group] -= 1
                if not self._waiting[group]:
                    del self._waiting[group]
                    self._changed.notify_all()
                if canceled.is_set():
                    raise Canceled
            self._group = group
            self._inside.add(one)
            if len(self._inside) > 1:
                for other in self._inside:
                    other.shared = True
            self._changed.notify_all()
        try:
            yield one
        finally:
            with self._changed:
                self._inside.discard(one)
                self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait check whether they are canceled."""
        with self._changed:
            self._changed.notify_all()

    def others_wait(self, group: Hashable) -> bool:
        """Whether another group waits for its turn."""
        with self._changed:
            return self._others_wait(group)

    def _others_wait(self, group: Hashable) -> bool:
        return any(other != group for other in self._waiting)

    def _is_next(self, group: Hashable) -> bool:
        """Whether a waiting slice of the group may run: the group is first in the queue, and no other group runs."""
        return next(iter(self._waiting)) == group and (not self._inside or self._group == group)
