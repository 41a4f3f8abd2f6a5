"""Tool calls in an answer, as chat templates have models write them: JSON, XML-like tags, or Python.

    {"name": "weather", "arguments": {"city": "Oslo"}}                               Hermes, Qwen2.5, Mistral, Llama 3
    <function=weather>{"city": "Oslo"}</function>                                     Llama 3.1
    <function=weather><parameter=city>Oslo</parameter></function>                     Qwen3-Coder
    <tool_call>weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>  GLM-4.5
    <invoke name="weather"><parameter name="city">Oslo</parameter></invoke>           Claude, MiniMax, DeepSeek-V3.2
    [TOOL_CALLS]weather[ARGS]{"city": "Oslo"}                                         Mistral, newer
    [weather(city="Oslo")]                                                            Llama 3.2 and 4

Answers are hostile until shown otherwise: the number of places at which a call may begin is bounded, and nothing runs.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from stages.eval.checks import fenced, parsed

MAX_STARTS = 64  # places in an answer at which a tool call may begin
PARAMETER = re.compile(r"<parameter(?:=| name=)[\"']?([\w.-]+)[\"']?[^<>]*>(.*?)</parameter>", re.DOTALL)
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
TAGS = (
    (re.compile(r"<function=[\"']?([\w.-]+)[\"']?>(.*?)(?:</function>|\Z)", re.DOTALL), PARAMETER),
    (re.compile(r"<invoke name=[\"']([\w.-]+)[\"']>(.*?)(?:</invoke>|\Z)", re.DOTALL), PARAMETER),
    (re.compile(r"<tool_call>\s*([\w.-]+)\s*(<arg_key>.*?)?(?:</tool_call>|\Z)", re.DOTALL), ARGUMENT),
    (re.compile(r"\[TOOL_CALLS\]\s*([\w.-]+)\s*\[ARGS\]\s*(\{.*?\})(?=\s*(?:\[TOOL_CALLS\]|\Z))", re.DOTALL), None),
)  # fmt: skip

Call = dict[str, Any]  # {"name": ..., "arguments": {...}}


class Written(str):
    """A value between tags, which do not say whether it is text, a number or another JSON value."""


def calls_in(answer: str) -> list[Call]:
    """The calls in a text, read in the first of the formats above that it contains."""
    return json_calls(answer) or tagged_calls(answer) or python_calls(answer)


def json_calls(answer: str) -> list[Call]:
    """The JSON objects with a `name` and `arguments` (or `parameters`)."""
    decoder, found = json.JSONDecoder(parse_constant=no_json), []
    at = answer.find("{")
    for _ in range(MAX_STARTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(answer, at)
            found += [value] if (value := call_of(value)) else []
        except (ValueError, RecursionError):
            end = at + 1
        at = answer.find("{", end)
    return found


def tagged_calls(answer: str) -> list[Call]:
    """Calls between tags: arguments as one JSON object, or as a tag each."""
    for pattern, argument in TAGS:
        found = []
        for name, body in pattern.findall(answer)[:MAX_STARTS]:
            arguments = json_object(body)
            if arguments is None and argument is not None:
                arguments = {key.strip(): Written(value) for key, value in argument.findall(body)}
            found += [] if arguments is None else [{"name": name, "arguments": arguments}]
        if found:
            return found
    return []


def python_calls(answer: str) -> list[Call]:
    """A Python list of calls, or one call, with literal keyword arguments."""
    blocks = fenced(answer)
    tree = parsed((blocks[0][1] if len(blocks) == 1 else answer).strip())
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return []
    value = tree.body[0].value
    found = [call_in_python(node) for node in (value.elts if isinstance(value, ast.List) else [value])]
    return [call for call in found if call] if all(found) else []


def call_in_python(node: ast.expr) -> Call | None:
    """`weather(city="Oslo")` as a call; None where it is something else, or has arguments without a name."""
    if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
        return None
    try:
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        return {"name": ast.unparse(node.func), "arguments": arguments}
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None


def call_of(value: Any) -> Call | None:
    """A JSON value as a call, with its arguments as an object; None if it is not a call."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json_object(arguments)
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def json_object(text: str) -> dict[str, Any] | None:
    """The object that a text is or holds as its only fenced block."""
    blocks = fenced(text)
    try:
        value = json.loads(blocks[0][1] if len(blocks) == 1 else text, parse_constant=no_json)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def no_json(name: str) -> None:
    """Refuse NaN and Infinity, which Python's parser takes for JSON."""
    raise ValueError(f"{name} is no JSON")


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values, in which 1 and true differ, and 1 and 1.0 do not."""
    if isinstance(a, Written):
        return same_as_written(a, b)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def same_as_written(text: Written, value: Any) -> bool:
    """Whether a value between tags is this one: a text as it stands, all else as JSON or as Python writes it."""
    if isinstance(value, str):
        return text.strip() == value.strip()
    for read in (json.loads, ast.literal_eval):
        try:
            return same(read(text.strip()), value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return False
