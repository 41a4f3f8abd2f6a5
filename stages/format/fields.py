"""A record's fields, read one by one, so that a field that was neither read nor known to be harmless is found at the end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

# Keys of records and of turns that say about a conversation, but are not part of it: where it comes from, how it was
# judged, how long it is. What is not listed here and not read sends its row to quarantine (docs/data.md).
# fmt: off
HARMLESS = frozenset([
    # ids
    "id", "_id", "ids", "idx", "index", "uid", "uuid", "row", "__index_level_0__", "row_id", "record_id", "example_id",
    "sample_id", "item_id", "custom_id", "user_id", "session_id", "thread_id", "conversation_id", "conversation_hash",
    "dialog_id", "dialogue_id", "message_id", "parent_id", "message_tree_id", "turn_id", "turn_identifier", "question_id",
    "prompt_id", "instruction_id", "problem_id", "completion_id", "task_id", "hash", "hash_id", "hashed_ip",
    "tool_call_id", "call_id", "role_id",
    # where it comes from, and who made it
    "name", "source", "sources", "source_id", "src", "dataset", "dataset_name", "data_source", "original_dataset",
    "original_source", "origin", "provenance", "subset", "config", "split", "file", "filename", "file_name", "path", "url",
    "link", "license", "author", "creator", "contributor", "annotator", "annotator_id", "avatar", "avatarurl",
    # what it is about
    "title", "header", "category", "categories", "subcategory", "sub_category", "topic", "topics", "domain", "subject",
    "subjects", "genre", "field", "tags", "keywords", "task", "task_type", "task_name", "type", "kind", "format",
    "language", "lang", "locale", "country", "state", "metadata", "meta", "extra_info",
    # which model wrote or judged it
    "model", "model_name", "model_id", "generator", "generation_model", "engine", "judge", "teacher",
    # how it was judged
    "score", "scores", "rating", "ratings", "rank", "quality", "reward", "confidence", "difficulty", "level", "grade",
    "upvotes", "votes", "views", "likes", "emojis", "review_count", "review_result", "annotations", "status", "toxic",
    "toxicity", "redacted", "moderation", "openai_moderation", "detoxify", "safe", "is_safe", "deleted", "synthetic",
    # how long it is
    "length", "lengths", "num_turns", "n_turns", "turn", "turns_count", "num_tokens", "n_tokens", "token_count",
    "tokens_count", "char_count", "usage",
    # when it was made
    "timestamp", "time", "date", "datetime", "created", "created_at", "create_time", "created_date", "updated",
    "updated_at", "update_time", "modified_at", "finished_at",
    # how a model was asked for it, and how it ended
    "version", "schemaversion", "anthropic_version", "seed", "temperature", "top_p", "top_k", "max_tokens",
    "max_completion_tokens", "max_output_tokens", "frequency_penalty", "presence_penalty", "service_tier", "store", "n",
    "stream", "parallel_tool_calls", "tool_choice", "skip_prompt_formatting", "finish_reason", "stop_reason", "end_turn",
    "recipient",
])
# fmt: on

PANDAS_INDEX = re.compile(r"(Unnamed: \d+)?")  # as it is written, and as it is read again


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: null, NaN (pandas' null), white space, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == [] or value == {}


def is_empty(value: Any) -> bool:
    """Whether a value says nothing, or is a list or an object that holds nothing but nulls at any depth."""
    return is_blank(value) or (
        isinstance(value, dict | list)
        and all(
            inner is None or (isinstance(inner, dict | list) and is_empty(inner))
            for inner in (value.values() if isinstance(value, dict) else value)
        )
    )


def is_row_number(name: str, value: Any) -> bool:
    """Whether a field is the index that pandas writes into a CSV file, as a column without a name."""
    return PANDAS_INDEX.fullmatch(name) is not None and str(value).isdecimal()


class Fields:
    """One JSON object and which of its keys have been read."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def take(self, *names: str) -> Any:
        """The first value under these names that says something, else the first that is there, else None."""
        there = [name for name in names if self._values.get(name) is not None]
        chosen = next((name for name in there if not is_blank(self._values[name])), next(iter(there), None))
        if chosen is None:
            return None
        self._read.add(chosen)
        return self._values[chosen]

    def names(self) -> list[str]:
        """All keys, in their order."""
        return list(self._values)

    def has(self, *names: str) -> bool:
        """Whether a name has a value that says something."""
        return any(not is_blank(self._values.get(name)) for name in names)

    def unread(self, ignore: Iterable[str] = ()) -> Iterator[tuple[str, Any]]:
        """Names and values of what was not read, says something, and is neither harmless nor to be ignored."""
        known = self._read.union(ignore)
        for name, value in self._values.items():
            if name in known or name.lower() in HARMLESS or is_empty(value) or is_row_number(name, value):
                continue
            yield name, value
