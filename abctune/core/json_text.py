"""JSON in which no key stands twice in one object: Python's parser would keep the last of two values in silence."""

from __future__ import annotations

from typing import Any


class RepeatedKey(ValueError):
    """A key that stands twice in one JSON object."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} stands twice in one object")
        self.key = key


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's fields; the `object_pairs_hook` of Python's parser.

    Raises:
        RepeatedKey: a key stands twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKey(next(name for name in names if names.count(name) > 1))
    return fields
