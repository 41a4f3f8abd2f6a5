"""What every model is scored on and asked, and a study's own checks of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import regex
from pydantic import Field, field_validator

from abctune.core.params.section import BaseFormat, Count, Positive, Section, Whole


class EvalParams(Section):
    """How much each model is asked, and the memory that scoring may use."""

    batch_tokens: Count  # tokens per forward pass, padding included
    max_new_tokens: Count  # of each answer
    task_prompts: Whole  # how many of the project's own tasks are asked; 0: none
    code_rows: Whole  # how many held-out "improve this Python code" rows are asked, where there are any
    general_windows: Whole  # how many pieces of general text are scored; 0: none
    general_tokens: Annotated[int, Field(ge=16, strict=True)]  # tokens of such a piece
    served_formats: tuple[
        BaseFormat, ...
    ]  # of the base model, on which published adapters are scored in addition


class _OwnCheck(Section):
    """What every check on a source's answers has."""

    rows: Count = 100  # test rows that are asked, one of each group; fewer where the source has fewer
    max_new_tokens: Count | None = None  # of each answer; None: the profile's


class TextCheck(_OwnCheck):
    """The answer is the held-out reply: to the character, or apart from case, punctuation and white space."""

    kind: Literal["exact", "normalized"]


class RegexCheck(_OwnCheck):
    """A pattern is found in the answer."""

    kind: Literal["regex"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return pattern


class ChoiceCheck(_OwnCheck):
    """The answer names the label that the held-out reply names, and no other."""

    kind: Literal["choice"]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` of a JSON Schema."""
    if isinstance(schema, dict):
        if isinstance(ref := schema.get("$ref"), str):
            yield ref
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


class JsonCheck(_OwnCheck):
    """The answer is a JSON object with these fields, or valid against a JSON Schema."""

    kind: Literal["json"]
    fields: dict[str, Literal["string", "number", "integer", "boolean", "array", "object", "null"]] = {}
    equal: tuple[str, ...] = ()  # fields whose values must be the held-out reply's
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}  # JSON Schema, draft 2020-12

    @field_validator("schema_")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"{error.json_path} is no JSON Schema ({error.message})") from None
        try:
            for ref in _references(schema):
                Registry().resolver_with_root(DRAFT202012.create_resource(schema)).lookup(ref)
        except Unresolvable as error:
            raise ValueError(f"$ref {error.ref!r} is not in the schema; nothing is downloaded") from None
        return schema


class ToolCallCheck(_OwnCheck):
    """The answer calls the tools of the held-out reply, with its arguments."""

    kind: Literal["tool_call"]


class PythonCheck(_OwnCheck):
    """The answer's code parses as Python; nothing runs."""

    kind: Literal["python"]


class CommandCheck(_OwnCheck):
    """A command accepts the answer's code: it runs in a folder of its own with the code as answer.py."""

    kind: Literal["command"]
    command: Annotated[tuple[str, ...], Field(min_length=1)]  # words, no shell; `python` is this Python
    seconds: Positive = 5.0  # of time, and of processor time
    memory_mib: Count = 512  # of all its processes together
    isolated: bool = True  # no files of the machine, no network; false: with the limits alone


OwnCheck = Annotated[
    TextCheck | RegexCheck | ChoiceCheck | JsonCheck | ToolCallCheck | PythonCheck | CommandCheck,
    Field(discriminator="kind"),
]


class EvaluationParams(Section):
    """Which rows every model is scored on, what difference in loss counts as none, and checks in addition to loss."""

    test_of: str
    margin: Positive  # nats per token: smaller differences in loss count as none
    checks: dict[str, OwnCheck] = {}  # by source: what a right answer to its test rows is
