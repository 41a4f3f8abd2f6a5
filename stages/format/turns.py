"""Turns as data sets write them -> messages: roles, texts in parts, tool calls, thoughts, and marks of what to learn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from abctune.core.json_text import RepeatedKey, each_key_once
from abctune.llm.conversation import Message, Role, Tools
from stages.format.fields import Fields, is_blank
from stages.format.providers import gemini_parts, known_parts, known_tools

# The names that roles go by in published data: LLaMA-Factory's, Axolotl's, TRL's, ms-swift's, OpenAI's, OASST's, Cohere's.
CALL_ROLES = ("function_call", "tool_call")  # an assistant's turn whose text is a call in JSON
ASSISTANT = ("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt", "bing", "bard", "output")
NAMES: dict[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "input", "prompter"),
    "assistant": (*ASSISTANT, *CALL_ROLES),
    "tool": ("tool", "function", "observation", "tool_response", "tool_result", "ipython"),
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
# Marks of what to learn; `masked` means the contrary of the others. 1, 1.0, 0 and 0.0 equal True and False here.
LEARN_MARKS = ("weight", "loss", "train", "trainable", "training", "loss_mask", "loss_weight", "masked")
MARK_VALUES = {True: True, False: False, "true": True, "false": False}
# Fields of content parts, tool calls and tools that a model neither reads nor writes.
NOT_TEXT = (
    *("type", "id", "index", "cache_control", "is_error", "strict"),
    *("signature", "thoughtSignature", "thought_signature"),
)
# The keys of who says something, and of what is said.
SAID = {"role": ("content", "parts", "tool_calls", "function_call"), "from": ("value",)}
# Where the parts of a turn stand once it is a message: a template prints thoughts, text and calls in this order.
PLACES = {"thinking": 0, "tool_result": 0, "tool_use": 2}
REJECTED_NOTE, ORDER_NOTE = "rejected answer left out", "parts of a turn put in the template's order"
# A turn that holds a whole exchange, as ms-swift's and Capybara's: (user's key, assistant's key).
PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("query", "response"))


# Of a name that a reason shows. A spreadsheet's column may be a whole question, and a remedy has to name all of it.
NAME_CHARACTERS = 200
NO_TEXT = "content is not text"
NUMBER = f"{NO_TEXT}, but a number or true or false"
PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'")  # as str() writes a list of objects, and pandas a CSV's cell


class Rejected(Exception):
    """A row that cannot be used; the argument is the reason that is counted."""


@dataclass(frozen=True)
class Turn:
    """A message, and whether the data say that it is to be learned (None: they say nothing)."""

    message: Message
    learn: bool | None = None
    notes: tuple[str, ...] = ()  # what has been mended in it, or left out of it


def read_turns(value: Any, key: str, ignore: Sequence[str] = ()) -> list[Turn]:
    """The turns under `key` of a record.

    Args:
        value: a list of objects, one object of lists (as `datasets` stores a Sequence), or either as a JSON string.
        ignore: keys of turns that may be left out.

    Raises:
        Rejected: with the reason.
    """
    items = from_json(value)
    if isinstance(items, dict) and items and all(isinstance(column, list) for column in items.values()):
        items = [dict(zip(items, row, strict=True)) for row in _transposed(list(items.values()), key)]
    if isinstance(items, list) and items and all(isinstance(item, list) for item in items):
        raise Rejected(f"turns under '{key}' are lists or a map, which do not say who speaks")
    if isinstance(items, str) and PYTHON_LIST.match(items):
        raise Rejected(f"Python's notation under '{key}', no JSON")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Rejected(f"no list of turns under '{key}'")
    return [turn for item in items for turn in _plain(item) or _turns(Fields(item), ignore)]


def _transposed(columns: list[list[Any]], key: str) -> Iterator[tuple[Any, ...]]:
    if len({len(column) for column in columns}) > 1:
        raise Rejected(f"no list of turns under '{key}'")
    return zip(*columns, strict=True)


def from_json(value: Any) -> Any:
    """What a text in JSON says, as tables keep it; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value)
    except (ValueError, RecursionError):
        return value


def parsed(text: str) -> Any:
    """A JSON text's value.

    Raises:
        Rejected: a key stands twice in one object.
        ValueError, RecursionError: as json.loads raises them.
    """
    try:
        return json.loads(text, object_pairs_hook=each_key_once)
    except RepeatedKey as error:
        raise Rejected(f"the same key twice: {error.key[:60]}") from None


def told_turns(value: Any) -> Any:
    """The turns that a text in JSON holds, a list of them or one, as tables keep them; any other value as it is.

    A text in JSON of another kind stays one: a reply may be meant to be JSON.

    Raises:
        Rejected: a key stands twice in a turn.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = [found] if isinstance(found, dict) else found
    if not turns or not all(map(_is_turn, turns)):
        return value
    from_json(value)  # for its refusal
    return turns


def _is_turn(value: Any) -> bool:
    """Whether a value is an object with a known role and what is said in it."""
    return isinstance(value, dict) and any(
        isinstance(name := value.get(who), str)
        and name.strip().lower() in ROLES
        and not value.keys().isdisjoint(said)
        for who, said in SAID.items()
    )


def _plain(item: dict[str, Any]) -> list[Turn] | None:
    """A question or a reply of a role and a text alone, as most turns are, without a look for what others hold."""
    if len(item) != 2:
        return None
    name, text = item.get("role", item.get("from")), item.get("content", item.get("value"))
    role = ROLES.get(name) if isinstance(name, str) and name not in CALL_ROLES else None
    if role not in ("user", "assistant") or not isinstance(text, str):
        return None
    return [Turn(Message(role=role, content=text_of(text)))]


def _turns(fields: Fields, ignore: Sequence[str]) -> Iterable[Turn]:
    pair = next((pair for pair in PAIRS if all(fields.has(name) for name in pair)), None)
    if pair and not fields.has("role", "from"):
        user, assistant = (text_of(fields.take(name), ignore) for name in pair)
        learn = _learn(fields, ignore)
        turns = [
            Turn(Message(role="user", content=user)),
            Turn(Message(role="assistant", content=assistant), learn),
        ]
    else:
        turns = _read(fields, ignore)
    _check_all_read(fields, ignore)
    return turns


def _check_all_read(fields: Fields, ignore: Sequence[str]) -> None:
    for name, _ in fields.unread(ignore):
        raise Rejected(f"unread field: {name[:NAME_CHARACTERS]}")


def _read(fields: Fields, ignore: Sequence[str]) -> list[Turn]:
    name = fields.take("role", "from")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise Rejected(f"unknown role: {'none given' if is_blank(name) else _spelled(name)}")
    learn = _learn(fields, ignore)
    value = fields.take("content", "value", "text", "message")
    if value is None and fields.has("parts"):
        value = gemini_parts(fields.take("parts"))
    value = known_parts(value)
    calls = tool_calls(fields.take("tool_calls", "function_call"), ignore)
    if name.strip().lower() in CALL_ROLES:
        calls, value = tool_calls(value, ignore), ""
    results: list[Turn] = []
    disordered = False
    thoughts = _optional_text(fields.take("reasoning_content", "reasoning", "thinking", "thought"))
    if isinstance(value, list) and value and (role != "tool" or all(map(_is_part, value))):
        disordered = _is_disordered(value)
        value, more_calls, more_thoughts, results = _blocks(value, ignore)
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
    if isinstance(fields.take("prefix"), str):  # true: a mark of Mistral's and Qwen's; a text would be lost
        raise Rejected("unread field: prefix")
    refused = fields.has("rejected_response") and bool(fields.take("rejected_response"))
    notes = (*((ORDER_NOTE,) if disordered else ()), *((REJECTED_NOTE,) if refused else ()))
    return [*results, Turn(message, learn, notes)]


def _spelled(value: Any) -> str:
    """A value as a reason shows it: short, on one line, and text that UTF-8 can write."""
    text = json.dumps(value.strip() if isinstance(value, str) else value, ensure_ascii=False)
    shown = (text[1:-1] if isinstance(value, str) else text)[:40]
    return shown.encode(errors="backslashreplace").decode()


def _content(value: Any, role: Role, with_calls: bool) -> str:
    if value is None and (with_calls or role == "system"):
        return ""
    if role == "system" and is_blank(value):
        return ""
    if role == "tool" and not isinstance(value, str):
        value = "" if value is None else json.dumps(value, ensure_ascii=False)
    return text_of(value)


def text_of(value: Any, ignore: Sequence[str] = ()) -> str:
    """A text, as it is; one in parts as one.

    Args:
        ignore: keys of parts that may be left out.

    Raises:
        Rejected: it is not text, or holds half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(_part(Fields(part), ignore) for part in value)
    if isinstance(value, int | float) and not is_blank(value):
        raise Rejected(NUMBER)
    if not isinstance(value, str):
        raise Rejected(NO_TEXT)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Rejected("not UTF-8") from None
    return value


def _is_part(value: Any) -> bool:
    """Whether an item of a list is a part of a content; a tool's result may be a list of anything."""
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _part(part: Fields, ignore: Sequence[str]) -> str:
    kind, text = part.take("type"), part.take("text", "value")
    if kind not in (None, "text", "input_text", "output_text") or not isinstance(text, str):
        named = kind if isinstance(kind, str) else next(iter(part.names()), "")
        raise Rejected(f"content is not text: {_spelled(named)}" if named else NO_TEXT)
    _check_all_read(part, (*NOT_TEXT, *ignore))
    return text


def _optional_text(value: Any) -> str:
    return "" if is_blank(value) else text_of(value)


def _is_disordered(parts: list[Any]) -> bool:
    """Whether a message cannot keep the order of these parts: a text after a call, a thought after a text."""
    places = [PLACES.get(part.get("type") or "", 1) for part in parts if isinstance(part, dict)]
    return places != sorted(places)


def _blocks(parts: list[Any], ignore: Sequence[str]) -> tuple[str, list[dict[str, Any]], str, list[Turn]]:
    """A content in parts (OpenAI's, LLaMA-Factory's, Anthropic's): its text, tool calls, thoughts and tool results."""
    text, calls, thoughts, results = "", [], "", []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "tool_use":
            renamed = {"arguments" if key == "input" else key: value for key, value in part.items()}
            calls += tool_calls([renamed], ignore)
        elif kind == "tool_result":
            results.append(Turn(_result(Fields(part), ignore)))
        elif kind == "thinking":
            fields = Fields(part)
            thoughts += text_of(fields.take("thinking"), ignore)
            _check_all_read(fields, (*NOT_TEXT, *ignore))
        else:
            text += text_of([part], ignore)
    return text, calls, thoughts, results


def _result(part: Fields, ignore: Sequence[str]) -> Message:
    content, call, name = part.take("content"), part.take("tool_use_id"), part.take("name")
    text = text_of(content, ignore) if isinstance(content, list) else _content(content, "tool", False)
    _check_all_read(part, (*NOT_TEXT, *ignore))
    result = Message(role="tool", content=text)
    if isinstance(call, str):
        result["tool_call_id"] = call
    if isinstance(name, str):
        result["name"] = name
    return result


def tool_calls(given: Any, ignore: Sequence[str] = ()) -> list[dict[str, Any]]:
    """OpenAI's `tool_calls` or `function_call`, or a call in JSON, as templates take them: arguments as an object.

    Args:
        ignore: keys of calls that may be left out.

    Raises:
        Rejected: they are no such calls.
    """
    calls = from_json(given)
    if is_blank(calls):
        return []
    return [_call(call, (*NOT_TEXT, *ignore)) for call in (calls if isinstance(calls, list) else [calls])]


def _call(given: Any, ignore: Sequence[str]) -> dict[str, Any]:
    function = given.get("function", given) if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Rejected("a tool call has no name")
    fields = Fields(function)
    arguments = from_json(fields.take("arguments", "parameters"))
    if not isinstance(arguments := {} if is_blank(arguments) else arguments, dict):
        raise Rejected("a tool call's arguments are no JSON object")
    _check_all_read(fields, ignore)
    if function is not given:
        _check_all_read(Fields(given), ("function", *ignore))
    call: dict[str, Any] = {
        "type": "function",
        "function": {"name": text_of(function["name"]), "arguments": arguments},
    }
    if isinstance(given.get("id"), str):
        call["id"] = given["id"]
    text_of(json.dumps(call, ensure_ascii=False))
    return call


def read_tools(value: Any, ignore: Sequence[str] = ()) -> Tools | None:
    """The tools of a conversation: a list of JSON schemas, bare or in OpenAI's envelope, or that as a JSON string.

    Args:
        ignore: keys of the envelope that may be left out.

    Raises:
        Rejected: it is no such list.
    """
    given = from_json(value)
    if isinstance(given, list):
        given = [from_json(tool) for tool in given]  # ms-swift writes each as a JSON string
    if is_blank(given := known_tools(given)):
        return None
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise Rejected("tools are no list of JSON objects")
    for tool in given:
        if "function" in tool:
            _check_all_read(Fields(tool), ("function", *NOT_TEXT, *ignore))
    tools = [
        {"type": "function", "function": from_json(tool["function"])}
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


def _learn(fields: Fields, ignore: Sequence[str]) -> bool | None:
    """Whether a turn is marked to be learned; None: it has no marks.

    A mark of another value (a weight of 0.5, a mask per token) refuses the row, since a conversation's loss can have no such weight here.
    """
    said = []
    for name in LEARN_MARKS:
        if is_blank(value := fields.take(name)):
            continue
        if (mark := learn_mark(value)) is not None:
            said.append(mark != (name == "masked"))
        elif name not in ignore:
            raise Rejected(f"unread field: {name}")
    return all(said) if said else None


def learn_mark(value: Any) -> bool | None:
    """What a mark says, true or false; None: neither."""
    if isinstance(value, str):  # out of a CSV file
        try:
            value = float(value)
        except ValueError:
            value = value.strip().lower()
    return None if isinstance(value, list | dict) else MARK_VALUES.get(value)
