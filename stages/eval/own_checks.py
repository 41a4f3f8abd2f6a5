"""Checks of an answer to a source's own test row: one pure function per kind of evaluation.checks in params.yaml.

Each takes the check's params, the row's held-out reply and the answer, and says what held. Answers are hostile until
shown otherwise: longer ones than MAX_ANSWER fail, JSON of any depth is an error of the parser and not of the stage, and
a pattern has a second.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import regex
from jsonschema import Draft202012Validator
from referencing import Registry

from abctune.core.params import (
    ChoiceCheck,
    CommandCheck,
    JsonCheck,
    OwnCheck,
    PythonCheck,
    RegexCheck,
    TextCheck,
    ToolCallCheck,
)
from stages.eval.calls import Call, calls_in, json_object, same
from stages.eval.checks import parsed
from stages.eval.lint import code_of
from stages.eval.sandbox import run

MAX_ANSWER = 20_000  # characters
PATTERN_SECONDS = 1.0
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}

Held = dict[str, bool]


@dataclass(frozen=True)
class Reference:
    """A row's held-out reply, and what was asked."""

    text: str
    calls: tuple[Call, ...] = ()  # [{"name", "arguments"}]
    prompt: str = ""


def check_answer(check: OwnCheck, reference: Reference, answer: str) -> Held:
    """Which parts of the check held; an answer passes when all did."""
    if len(answer) > MAX_ANSWER:
        return {"short_enough": False}
    function: Callable[[Any, Reference, str], Held] = KINDS[type(check)]
    return function(check, reference, answer)


def same_text(check: TextCheck, reference: Reference, answer: str) -> Held:
    """Equal but for white space at the ends; `normalized` sets case, punctuation and runs of white space aside."""
    if check.kind == "exact":
        return {"exact": answer.strip() == reference.text.strip()}
    return {"normalized": normalized(answer) == normalized(reference.text)}


def normalized(text: str) -> str:
    """NFKC, lower case, words with one space between; a text of punctuation alone stays as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold().strip()
    words = " ".join(regex.findall(r"[\w\p{M}\p{S}]+", folded))
    return words or folded


def matches(check: RegexCheck, reference: Reference, answer: str) -> Held:
    """The pattern is found; one that takes longer than PATTERN_SECONDS is not."""
    try:
        return {"regex": regex.search(check.pattern, answer, timeout=PATTERN_SECONDS) is not None}
    except TimeoutError:
        return {"regex": False}


def chosen(check: ChoiceCheck, reference: Reference, answer: str) -> Held:
    """The answer names the held-out reply's label and no other."""
    label = label_of(answer, check.labels)
    return {"label": label is not None and label == label_of(reference.text, check.labels)}


def label_of(text: str, labels: tuple[str, ...]) -> str | None:
    """The one label that a text names, as words of any case, the longest where one holds another; None for 0 or several."""
    by_text = {label.casefold().strip(): label for label in labels}
    ordered = sorted(by_text, key=len, reverse=True)
    pattern = r"(?<!\w)(?:" + "|".join(map(regex.escape, ordered)) + r")(?!\w)"
    named = set(regex.findall(pattern, text[:MAX_ANSWER].casefold()))
    return by_text[named.pop()] if len(named) == 1 else None


def json_fields(check: JsonCheck, reference: Reference, answer: str) -> Held:
    """One JSON object, alone or in one fenced block; its schema, its fields' types, and values that equal the reply's."""
    value, wanted = json_object(answer), json_object(reference.text) or {}
    if value is None:
        return {"json_object": False}
    held = {"json_object": True}
    if check.schema_:
        # An empty registry: a `$ref` to another place is an unresolved reference, not a download.
        held["schema"] = Draft202012Validator(check.schema_, registry=Registry()).is_valid(value)
    for name, kind in check.fields.items():
        held[f"field {name}"] = name in value and is_of(value[name], kind)
    for name in check.equal:
        held[f"value of {name}"] = name in value and name in wanted and same(value[name], wanted[name])
    return held


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is of the JSON type; true is not a number, as it is in Python."""
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def tool_calls(check: ToolCallCheck, reference: Reference, answer: str) -> Held:
    """The same tools in the same order, and the same arguments."""
    found = calls_in(answer)
    names = [call["name"] for call in found] == [call["name"] for call in reference.calls]
    arguments = names and same(
        [call["arguments"] for call in found], [call["arguments"] for call in reference.calls]
    )
    return {"calls": bool(found), "name": names, "arguments": arguments}


def python_parses(check: PythonCheck, reference: Reference, answer: str) -> Held:
    """The first code block, or all of the answer, parses and holds something."""
    tree = parsed(code_of(answer))
    return {"parses": tree is not None and bool(tree.body)}


def command_accepts(check: CommandCheck, reference: Reference, answer: str) -> Held:
    """The command ends with 0, within its limits, in a folder with the code (answer.py), the prompt and the held-out reply."""
    files = {"answer.py": code_of(answer), "prompt.txt": reference.prompt, "reference.txt": reference.text}
    return run(check.command, files, check.seconds, check.memory_mib, check.isolated)


KINDS: dict[type, Callable[[Any, Reference, str], Held]] = {
    TextCheck: same_text,
    RegexCheck: matches,
    ChoiceCheck: chosen,
    JsonCheck: json_fields,
    ToolCallCheck: tool_calls,
    PythonCheck: python_parses,
    CommandCheck: command_accepts,
}
