"""Rows out of JSON: one object a line, a list, pretty-printed or concatenated objects, rows under a key; streamed.

Not by a library: pyarrow's JSON reader wants one object a line and one type a column, and pandas and `json.load` hold the
whole file in memory. What is added to Python's own parser is a window that moves over the file.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError
from abctune.core.files import RECORD_CHARACTERS
from abctune.core.json_text import RepeatedKey, each_key_once
from stages.fetch.text_files import open_text, refuse_tables

BROKEN = object()  # the value of a line that is not JSON; the line is kept for `format` to count and show
UNEVEN = object()  # the same of a table's line with more or fewer cells than there are columns
LINE = RECORD_CHARACTERS + 1  # characters; one endless line must not fill the memory
LINES_SEEN = 50  # by which the layout is known
NAMED = 10  # keys in a line
CHUNK = 1 << 18  # characters read at a time
VALUE = 16 * RECORD_CHARACTERS  # a row that is longer is a missing quote or bracket
# Keys below which published files keep their rows: those whose list is always of rows, and those that may hold turns.
ROW_KEYS = ("data", "rows")
MAYBE_ROW_KEYS = ("conversations", "examples", "train", "instances", "samples", "records", "items", "dataset")
LIST_KEYS = (*ROW_KEYS, *MAYBE_ROW_KEYS)
# Those that a row may have of its own, with other things in them.
OWN_LISTS = ("conversations", "examples", "samples", "records", "items")
SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
# Names of a conversation's parts, by which an item of a list is known as a row.
REPLIES = frozenset(
    ["messages", "conversations", "conversation", "output", "completion", "response", "answer"]
)
PARTS = REPLIES | {"system", "system_prompt", "instruction", "prompt", "question", "query"}
# What published files say next to their rows about the file as a whole: `datasets` and its viewer, pandas, OpenAI's API.
# fmt: off
ABOUT_FILE = frozenset([
    "id", "name", "title", "description", "dataset_description", "readme", "homepage", "url", "urls", "doi", "citation",
    "license", "licenses", "author", "authors", "contributors", "creator", "creators", "publisher", "maintainer",
    "maintainers", "project", "source", "generator", "version", "release", "revision", "seed", "year", "date", "timestamp",
    "created", "updated", "last_updated", "modified", "language", "languages", "lang", "dataset", "dataset_name", "model",
    "model_name", "task", "tasks", "task_type", "tags", "keywords", "categories", "type", "format", "object", "schema",
    "features", "columns", "fields", "label_names", "info", "meta", "metadata", "config", "split", "splits", "stats",
    "statistics", "size", "length", "count", "total", "page", "paging", "pagination", "per_page", "page_size", "limit", "offset",
    "cursor", "next", "next_page_token", "previous", "links", "first_id", "last_id", "status", "success", "error", "message",
    "code",
])
# fmt: on
# The same of names that publishers make up, as num_dialogs.
ABOUT_KIND = re.compile(r"(num|total|date)_.*|.*_(version|at|date)")
TURN_KEYS = {"role", "from", "content", "value", "human", "assistant"}
WHITE = re.compile(r"[ \t\r\n]*")
Row = tuple[Any, str]  # a value, and the line of a text file that it stood in


def read_json(path: Path, name: str) -> Iterator[Row]:
    """Stream the rows of a .json or .jsonl file; which form it has is found by its first lines, not by its name.

    Raises:
        UserError: it is not JSON, or ends early.
    """
    refuse_tables(path, name)
    start = list(itertools.islice(nonblank_lines(path, name), LINES_SEEN))
    if is_one_object_a_line(start):
        yield from read_lines(path, name)
    elif looks_like_csv(start):
        raise UserError(
            f"{name} is a table (CSV), not JSON; name it {'.tsv' if chr(9) in start[0] else '.csv'}"
        )
    else:
        with open_text(path, name) as text:
            stream = JsonStream(text, name)
            yield from ((value, "") for value in stream.rows())
        tell_left_out(list(stream.left_out), name)


def is_one_object_a_line(start: list[str]) -> bool:
    """Whether a file that begins with these lines is JSON lines, of which some may be broken, the first included.

    A first line that is an object makes it so. Where the file begins with a list or with a line that is no JSON, lines
    further down must be objects (below a list also lists) of their own. What is left is read by JsonStream.
    """
    if not start:
        return True
    first = parsed(start[0])
    if len(start) == 1:
        if isinstance(first, dict):  # or rows under a key, all on one line
            return not any(isinstance(first.get(key), list) for key in LIST_KEYS)
        return not start[0].startswith(("{", "["))
    objects = sum(isinstance(parsed(line), dict) for line in start if line.startswith("{"))
    if first is BROKEN and start[0] != "[" and objects >= min(3, len(start) / 2):
        return True
    if start[0].startswith("[") or first is BROKEN:
        whole_list = isinstance(first, list) and (objects or isinstance(parsed(start[1]), list))
        return bool(whole_list) or not (start[0].startswith(("{", "[")) or looks_like_csv(start))
    return True


def parsed(line: str) -> Any:
    """A line's value; BROKEN if it is not JSON, or a key stands twice in one object: `format` says which of the two."""
    try:
        return json.loads(line, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        return BROKEN


def read_lines(path: Path, name: str) -> Iterator[Row]:
    """Each line's value (BROKEN if it is not JSON) and its text."""
    for line in map(str.strip, nonblank_lines(path, name)):
        yield parsed(line), line


def nonblank_lines(path: Path, name: str) -> Iterator[str]:
    """The file's lines without those that hold white space alone and the space at their ends, cut at LINE characters."""
    with open_text(path, name) as text:
        while line := text.readline(LINE):
            whole = line
            while len(line) == LINE and not line.endswith("\n"):
                line = text.readline(LINE)
            if whole := whole.rstrip():
                yield whole


def looks_like_csv(start: list[str]) -> bool:
    """Whether lines could be a CSV file's: as many separators in each, and nothing that only JSON has."""
    first, *others = start[:2]
    if not others or any(mark in line for line in start for mark in "{}[]"):
        return False
    return any(first.count(mark) == others[0].count(mark) > 0 for mark in ",;\t")


def tell_left_out(keys: list[str], name: str) -> None:
    """Print which keys next to a file's rows were not read, of very many some."""
    more = f" and {len(keys) - NAMED:,} more" if len(keys) > NAMED else ""
    if keys:
        print(
            f"{name}: {', '.join(keys[:NAMED])}{more} left out: next to the rows, and no part of a conversation"
        )


class JsonStream:
    """Rows of a JSON list, of objects one after another, or of a list under a key.

    One row is in memory at a time; of a list under a key as much as a row may have.
    """

    def __init__(self, text: io.TextIOBase, name: str) -> None:
        self._text, self._name, self._what = text, name, "JSON"
        self._buffer, self._at, self._line, self._column = "", 0, 1, 1
        self._dropped = 0  # characters before the window
        self.left_out: dict[str, None] = {}  # keys that stood next to the rows read so far, in order
        self._decode = json.JSONDecoder(object_pairs_hook=each_key_once).raw_decode

    def rows(self) -> Iterator[Any]:
        """The rows.

        Raises:
            UserError: what follows is not JSON; the message has the line.
        """
        if self._take("["):
            self._what = "a JSON list"
            yield from self._items()
        else:
            yield from self._object(only=True)
            while self._peek() == "{":
                yield from self._object()
        if self._peek() == ",":
            raise UserError(
                f"{self._name}: line {self._place()[0]} has a comma between two rows; write one JSON object a line without"
                " commas between them, or all of them in one list, [ ... ]"
            )
        if self._peek():
            raise self._error("more text after the end", self._at)

    def _items(self) -> Iterator[Any]:
        """The rest of a list whose opening bracket has been read."""
        if self._take("]"):
            return
        while True:
            yield self._value()
            if self._take("]"):
                return
            if not self._take(","):
                raise self._error("Expecting ',' delimiter", self._at)
            if self._peek() == "]":
                raise self._error("Expecting value, found a comma before the closing bracket", self._at)

    def _object(self, only: bool = False) -> Iterator[Any]:
        """An object: its rows if it keeps some under a key, else itself.

        Args:
            only: the file holds nothing else, unless another object follows.
        """
        fields: dict[str, Any] = {}
        streamed = None  # the key of the rows, where they are too many to look at what follows them first
        if not self._take("{"):
            return
        while not self._take("}"):
            key = self._key(fields)
            if key in LIST_KEYS and not streamed and self._take("["):
                items = self._items()
                fields[key], is_all = self._held(items)
                if not is_all and holds_rows(fields, key):
                    streamed = key
                    yield from map(unwrapped, itertools.chain(fields[key], items))
                else:
                    fields[key] += items
            else:
                fields[key] = self._value()
            if not self._take(",") and self._peek() != "}":
                raise self._error("Expecting ',' delimiter", self._at)
        rows = streamed or next((key for key in fields if holds_rows(fields, key)), None)
        if rows is None:
            if only and self._peek() != "{":
                refuse_unclear(fields, self._name)
            yield fields
            return
        refuse_lost(fields, rows, self._name)
        self.left_out |= dict.fromkeys(key for key in fields if key != rows and not is_nothing(fields[key]))
        if not streamed:
            yield from map(unwrapped, fields[rows])

    def _key(self, fields: dict[str, Any]) -> str:
        """An object's next key, which none of its fields has, and the colon."""
        key = self._value()
        if not isinstance(key, str) or not self._take(":"):
            raise self._error("Expecting property name enclosed in double quotes", self._at)
        if key in fields:
            raise self._error(str(RepeatedKey(key)), self._at)
        return key

    def _held(self, items: Iterator[Any]) -> tuple[list[Any], bool]:
        """The first of a list's items, and whether these are all: not where they are more than a row can be used with.

        So a list that is not whole in memory is of rows, or its row is too long anyway.
        """
        held: list[Any] = []
        end = self._dropped + self._at + RECORD_CHARACTERS
        for item in items:
            held.append(item)
            if self._dropped + self._at > end:
                return held, False
        return held, True

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._at = WHITE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._refill():
                return ""

    def _take(self, mark: str) -> bool:
        if self._peek() != mark:
            return False
        self._at += 1
        return True

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except JSONDecodeError as error:
                if not self._may_go_on(error) or not self._refill():
                    raise self._error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self._error(str(error), self._at) from None
            else:
                # A number may go on after the window, of which "10." and "1.5e+" show two characters at most.
                if end + 2 < len(self._buffer) or not self._refill():
                    self._at = end
                    return value

    def _may_go_on(self, error: JSONDecodeError) -> bool:
        """Whether a value may be whole with more text: the parser stopped at the window's end, or inside a string."""
        if len(self._buffer) - self._at > VALUE:
            return False
        return error.pos + 8 >= len(self._buffer) or error.msg.startswith("Unterminated string")

    def _refill(self) -> bool:
        """Drop what has been read and add as much as is left, so that a long value is not parsed again and again."""
        more = self._text.read(max(CHUNK, len(self._buffer) - self._at))
        if not more:
            return False
        self._line, self._column = self._place()
        self._dropped += self._at
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return True

    def _place(self, position: int | None = None) -> tuple[int, int]:
        """Line and column, from 1, of a position in the window."""
        before = self._buffer[: self._at if position is None else position]
        newlines = before.count("\n")
        column = len(before) - before.rfind("\n") if newlines else self._column + len(before)
        return self._line + newlines, column

    def _error(self, reason: str, position: int) -> UserError:
        line, column = self._place(position)
        hint = ""
        if self._buffer[position - 1 : position + 1] in ("{'", "['") or self._buffer[position:][:1] == "'":
            hint = "; single quotes are Python's notation: write the rows with json.dumps"
        if position >= len(self._buffer.rstrip()) or reason.startswith("Unterminated"):
            hint = "; the file ends early: is it whole?"
        return UserError(
            f"{self._name} cannot be read as {self._what}: {reason}: line {line} column {column}{hint}"
        )


def is_row(item: Any, key: str) -> bool:
    """Whether a list's first item shows that the list under `key` is of rows, not of one conversation's turns."""
    if key in ROW_KEYS:
        return item is not None
    return isinstance(item, dict) and not TURN_KEYS & item.keys()


def holds_rows(fields: dict[str, Any], key: str) -> bool:
    """Whether the list under `key` is of rows, and its object not itself a row that has a list of another kind.

    An object with a reply is a row. Of another, a list that a row may have is of rows if its items name parts
    of a conversation, or if nothing but lists of objects stands next to it.
    """
    if key not in LIST_KEYS or not isinstance(fields[key], list):
        return False
    if not fields[key] or not is_row(fields[key][0], key):
        return False
    others = beside(fields, key)
    if REPLIES & {name.lower() for name in others}:
        return False
    return key not in OWN_LISTS or has_parts(fields[key][0]) or all(map(first_object, others.values()))


def beside(fields: dict[str, Any], key: str) -> dict[str, Any]:
    """What an object says next to its list of rows, without what is about the file as a whole."""
    row = first_object(fields[key])
    return {
        name: value
        for name, value in fields.items()
        if name != key
        and not is_nothing(value)
        and (not is_about_file(name, value) or is_like(value, row, name))
    }


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: null, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def is_about_file(name: str, value: Any) -> bool:
    """Whether a value next to rows says something about the file as a whole, and is no part of a conversation.

    A number, true and false are none. Names are compared without case, and without `_`, `-` and `$`.
    """
    if isinstance(value, int | float):
        return True
    # Other rows, or a turn, whatever their name is.
    item = first_object(value) or value
    if has_parts(first_object(value)) or (isinstance(item, dict) and {"role", "content"} <= item.keys()):
        return False
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", name).lower()
    return bool(ABOUT_KIND.fullmatch(words)) or bare(name) in ABOUT_NAMES


def bare(name: str) -> str:
    """A name as names are compared."""
    return re.sub("[_$-]", "", name).lower()


ABOUT_NAMES = frozenset(map(bare, ABOUT_FILE))


def refuse_unclear(fields: dict[str, Any], name: str) -> None:
    """Refuse a file's only object if it may be a row with a list of its own as well as a list of rows.

    Raises:
        UserError: naming the list.
    """
    for key in OWN_LISTS:
        row = first_object(fields.get(key))
        if row is None or not is_row(row, key):
            continue
        others = beside(fields, key)
        if not has_parts(others):
            raise UserError(
                f"{name} is one object with {next(iter(others))!r} and a list {key!r}, and may be one row or many; if the items of"
                f" {key!r} are the rows, write that list alone, [ ... ]; if the object is one row, put it into a list, [{{ ... }}]"
            )


def refuse_lost(fields: dict[str, Any], key: str, name: str) -> None:
    """Refuse an object that says more than its rows: other rows, or what may belong to each of them.

    Raises:
        UserError: naming it.
    """
    row = first_object(fields[key])
    for other, value in beside(fields, key).items():
        if is_like(value, row, other) or has_parts(first_object(value)):
            raise UserError(
                f"{name} keeps rows under {other!r}, too; write those that belong to this source to a file of their own"
            )
        raise UserError(
            f"{name} has {other!r} next to a list of rows ({key!r}), and it would be lost; write one JSON object a line, with"
            f" all that belongs to it, or take {other!r} out if it is no part of a conversation"
        )


def is_like(value: Any, row: Any, name: str) -> bool:
    """Whether a value is a list of rows as the given one is: by its keys, or by its own name, a split's."""
    first = first_object(value)
    if first is None or not isinstance(row, dict):
        return False
    return first.keys() == row.keys() or name in SPLITS


def has_parts(item: Any) -> bool:
    """Whether an item of a list names a part of a conversation."""
    return isinstance(item, dict) and not PARTS.isdisjoint(map(str.lower, item))


def first_object(value: Any) -> dict[str, Any] | None:
    """The object with which a list begins; None where it begins with none, or is not a list."""
    first = value[0] if isinstance(value, list) and value else None
    return first if isinstance(first, dict) else None


def unwrapped(item: Any) -> Any:
    """A row without what the dataset viewer's API puts around it (`row_idx`, `row`)."""
    return item["row"] if isinstance(item, dict) and {"row_idx", "row"} <= item.keys() else item


def refuse_other_objects(value: Any, name: str) -> None:
    """Refuse a JSON file that holds no rows, recognized by its first object.

    Raises:
        UserError: it is an export of ChatGPT, Claude or LM Studio, or a table keyed by row number.
    """
    if not isinstance(value, dict):
        return
    if "mapping" in value and ("title" in value or "current_node" in value):
        raise UserError(
            f"{name} is a ChatGPT export, which keeps each conversation as a tree of versions; convert it to one"
            ' {"messages": [...]} a line, choosing a branch'
        )
    if "sender" in (first_object(value.get("chat_messages")) or {}):
        raise UserError(
            f"{name} is a Claude export, which keeps attachments and several versions of a turn in addition to its texts; convert it"
            ' to one {"messages": [{"role": "user", "content": ...}, ...]} a line, with the sender as the role'
        )
    if "versions" in (first_object(value.get("messages")) or {}):
        raise UserError(
            f"{name} is an LM Studio conversation, which keeps several versions of each turn; convert it to one"
            ' {"messages": [...]} a line'
        )
    inner = [item for item in value.values() if isinstance(item, dict)]
    if len(inner) == len(value) and value and ("0" in value or all("0" in item for item in inner)):
        raise UserError(
            f"{name} is a table keyed by row number, as pandas writes it; write it with"
            ' to_json(orient="records", lines=True) and name it .jsonl'
        )
