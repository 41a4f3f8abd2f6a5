"""Turns as data sets write them -> messages: roles, texts in parts, tool calls, thoughts, and marks of what to learn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abctune.llm.conversation import Message, Role, Tools
from stages.format.fields import Fields, is_blank

# The names that roles go by in published data: LLaMA-Factory's, Axolotl's, TRL's, ms-swift's, OpenAI's, OASST's.
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "input": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "output": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
CALL_ROLES = ("function_call", "tool_call")  # their text is a call in JSON
# Marks of what to learn: the value that means "not this turn". `masked` means the contrary of the others.
LEARN_MARKS = ("weight", "loss", "train", "trainable", "training", "loss_mask", "loss_weight")
# A turn that holds a whole exchange, as ms-swift's and Capybara's: (user's key, assistant's key).
PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("query", "response"))


class Rejected(Exception):
    """A row that cannot be used; the argument is the reason that is counted."""


@dataclass(frozen=True)
class Turn:
    """A message, and whether the data say that it is to be learned (None: they say nothing)."""

    message: Message
    learn: bool | None = None
    rejected: bool = False  # it holds an answer that is not to be learned besides the one that is


def read_turns(value: Any, key: str, ignore: Sequence[str] = ()) -> list[Turn]:
    """The turns under `key` of a record.

    Args:
        value: a list of objects, one object of lists (as `datasets` stores a Sequence), or either as a JSON string.
        ignore: keys of turns that may be left out.

    Raises:
        Rejected: with the reason.
    """
    items = _from_json(value)
    if isinstance(items, dict) and items and all(isinstance(column, list) for column in items.values()):
        items = [dict(zip(items, row, strict=True)) for row in _transposed(list(items.values()), key)]
    if isinstance(items, list) and items and all(isinstance(item, list) for item in items):
        raise Rejected(f"turns under '{key}' are lists or a map, which do not say who speaks")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Rejected(f"no list of turns under '{key}'")
    return [turn for item in items for turn in _turns(Fields(item), ignore)]


def _transposed(columns: list[list[Any]], key: str) -> Iterator[tuple[Any, ...]]:
    if len({len(column) for column in columns}) > 1:
        raise Rejected(f"no list of turns under '{key}'")
    return zip(*columns, strict=True)


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _turns(fields: Fields, ignore: Sequence[str]) -> Iterable[Turn]:
    pair = next((pair for pair in PAIRS if all(fields.has(name) for name in pair)), None)
    if pair and not fields.has("role", "from"):
        user, assistant = (text_of(fields.take(name)) for name in pair)
        learn = _learn(fields)
        turns = [
            Turn(Message(role="user", content=user)),
            Turn(Message(role="assistant", content=assistant), learn),
        ]
    else:
        turns = _read(fields)
    for name, _ in fields.unread(ignore):
        raise Rejected(f"unread field: {name[:60]}")
    return turns


def _read(fields: Fields) -> list[Turn]:
    name = fields.take("role", "from")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise Rejected("unknown role")
    learn = _learn(fields)
    value = fields.take("content", "value", "text")
    calls = tool_calls(fields.take("tool_calls"), fields.take("function_call"))
    if name.strip().lower() in CALL_ROLES:
        calls, value = tool_calls(value, None), ""
    results: list[Turn] = []
    thoughts = _optional_text(fields.take("reasoning_content", "reasoning", "thinking", "thought"))
    if isinstance(value, list) and value:
        value, more_calls, more_thoughts, results = _blocks(value)
        calls += more_calls
        thoughts += more_thoughts
    message = Message(role=role, content=_content(value, role, bool(calls or results)))
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = thoughts
    if role == "tool":
        for key in ("tool_call_id", "name"):
            if isinstance(given := fields.take(key), str):
                message[key] = given
    if results and not message["content"].strip():
        return results  # Anthropic writes a tool's results as a user's turn
    refused = fields.has("rejected_response") and bool(fields.take("rejected_response"))
    return [*results, Turn(message, learn, refused)]


def _content(value: Any, role: Role, with_calls: bool) -> str:
    if value is None and (with_calls or role == "system"):
        return ""
    if role == "system" and is_blank(value):
        return ""
    if role == "tool" and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return text_of(value)


def text_of(value: Any) -> str:
    """A text, as it is.

    Raises:
        Rejected: it is no text, or holds half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(_part(part) for part in value)
    if not isinstance(value, str):
        raise Rejected("content is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Rejected("not UTF-8") from None
    return value


def _part(part: dict[str, Any]) -> str:
    text = part.get("text", part.get("value"))
    if part.get("type", "text") != "text" or not isinstance(text, str):
        raise Rejected("content is not text")
    return text


def _optional_text(value: Any) -> str:
    return "" if is_blank(value) else text_of(value)


def _blocks(parts: list[Any]) -> tuple[str, list[dict[str, Any]], str, list[Turn]]:
    """A content in parts (OpenAI's, LLaMA-Factory's, Anthropic's): its text, tool calls, thoughts and tool results."""
    text, calls, thoughts, results = "", [], "", []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "tool_use":
            calls += tool_calls([{"id": part.get("id"), **_call(part.get("name"), part.get("input"))}], None)
        elif kind == "tool_result":
            content = part.get("content")
            result = Message(role="tool", content=_content("" if content is None else content, "tool", False))
            if isinstance(content, list):
                result["content"] = text_of(content)
            if isinstance(part.get("tool_use_id"), str):
                result["tool_call_id"] = part["tool_use_id"]
            results.append(Turn(result))
        elif kind == "thinking":
            thoughts += text_of(part.get("thinking"))
        else:
            text += text_of([part])
    return text, calls, thoughts, results


def _call(name: Any, arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def tool_calls(calls: Any, function_call: Any) -> list[dict[str, Any]]:
    """OpenAI's `tool_calls` or `function_call`, or a call in JSON, as templates take them: arguments as an object.

    Raises:
        Rejected: they are no such calls.
    """
    given = _from_json(calls)
    if is_blank(given):
        given = [] if is_blank(function_call) else _from_json(function_call)
    found = []
    for call in given if isinstance(given, list) else [given]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Rejected("a tool call has no name")
        arguments = function.get("arguments", function.get("parameters"))
        arguments = {} if is_blank(arguments) else _from_json(arguments)
        if not isinstance(arguments, dict):
            raise Rejected("a tool call's arguments are no JSON object")
        one: dict[str, Any] = {"type": "function", "function": _call(text_of(function["name"]), arguments)}
        if isinstance(call.get("id"), str):
            one["id"] = call["id"]
        text_of(json.dumps(one, ensure_ascii=False))
        found.append(one)
    return found


def read_tools(value: Any) -> Tools | None:
    """The tools of a conversation: a list of JSON schemas, bare or in OpenAI's envelope, or that as a JSON string.

    Raises:
        Rejected: it is no such list.
    """
    if is_blank(value) or is_blank(given := _from_json(value)):
        return None
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise Rejected("tools are no list of JSON objects")
    tools = [
        {"type": "function", "function": _from_json(tool["function"])}
        if "function" in tool
        else {"type": "function", "function": _from_anthropic(tool)}
        for tool in given
    ]
    if not all(isinstance(tool["function"], dict) and "name" in tool["function"] for tool in tools):
        raise Rejected("a tool has no name")
    text_of(json.dumps(tools, ensure_ascii=False))
    return tools


def _from_anthropic(tool: dict[str, Any]) -> dict[str, Any]:
    tool = {key: value for key, value in tool.items() if key != "type"}
    return {"parameters" if key == "input_schema" else key: value for key, value in tool.items()}


def _learn(fields: Fields) -> bool | None:
    marks = [fields.take(name) for name in LEARN_MARKS]
    masked = fields.take("masked")
    said = [bool(mark) for mark in marks if isinstance(mark, bool | int | float) and not is_blank(mark)]
    if isinstance(masked, bool | int):
        said.append(not masked)
    return all(said) if said else None
