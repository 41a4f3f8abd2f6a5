"""`response_format` and `grammar` of a request, as a grammar (GBNF) that llama.cpp keeps an answer to."""

from __future__ import annotations

import json
import re
from typing import Any

import llguidance

from app.request import MAX_CHARACTERS, Refused

ANY_OBJECT = {"type": "object"}
LLGUIDANCE = "%llguidance"  # how llama.cpp knows a grammar that is not GBNF


def read_grammar(body: dict[str, Any]) -> str | None:
    """The grammar that a request's fields ask for; None for free text.

    Raises:
        Refused: both are given, or one of them does not follow OpenAI's or llama.cpp's documentation.
    """
    grammar, wanted = body.get("grammar"), body.get("response_format")
    grammar = None if grammar == "" else grammar
    if wanted is None or wanted == {"type": "text"}:
        if grammar is not None and not (isinstance(grammar, str) and len(grammar) <= MAX_CHARACTERS):
            raise Refused(f"grammar must be a text of at most {MAX_CHARACTERS:,} characters")
        if grammar is not None and grammar.startswith(LLGUIDANCE):
            raise Refused("grammar must be GBNF; give a JSON schema as response_format")
        return grammar
    if grammar is not None:
        raise Refused("grammar and response_format cannot be used together")
    return _of_schema(_schema(wanted))


def _schema(wanted: Any) -> dict[str, Any]:
    if wanted == {"type": "json_object"}:
        return ANY_OBJECT
    named = wanted.get("json_schema") if isinstance(wanted, dict) else None
    named = named if isinstance(named, dict) else {}
    schema = named.get("schema")
    if wanted != {"type": "json_schema", "json_schema": named} or not isinstance(schema, dict):
        raise Refused("response_format must be text, json_object, or json_schema with a json_schema.schema")
    if further := named.keys() - {"name", "description", "strict", "schema"}:
        raise Refused(f"response_format: json_schema.{sorted(further)[0]} is not known; leave it out")
    return schema


def _of_schema(schema: dict[str, Any]) -> str:
    try:
        import xllamacpp
    except ImportError:  # the other engine serves, and refuses grammars itself
        raise Refused("response_format is not supported by this engine") from None
    text = json.dumps(schema)
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"the schema is longer than {MAX_CHARACTERS:,} characters")
    try:
        grammar = str(xllamacpp.json_schema_to_grammar(schema))
    except (RuntimeError, ValueError) as error:
        raise Refused(f"response_format: llama.cpp does not take this schema ({error})") from None
    if grammar.startswith(LLGUIDANCE) and (problem := llguidance.LLMatcher.validate_grammar(grammar)):
        raise Refused(f"response_format: llama.cpp cannot keep to this schema: {_reason(problem)}")
    return grammar


class Follower:
    """Reads along with an answer that a schema binds.

    llama.cpp leaves an answer free, without a word, where llguidance in it gives up: at once, if it is an older one than
    ours and does not know a `format`, or later, where a schema allows too much at one place.
    """

    def __init__(self, grammar: str | None) -> None:
        """An answer without a grammar, or with one of GBNF, which llama.cpp reads itself, is taken as it is."""
        self._matcher = (
            llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
            if grammar is not None and grammar.startswith(LLGUIDANCE)
            else None
        )

    def read(self, text: str, ended: bool) -> None:
        """Take what is new in the answer.

        Args:
            ended: by the model itself.

        Raises:
            Refused: the answer has left the schema, or ended before it was whole.
        """
        if self._matcher is None:
            return
        characters = list(text.encode())
        kept = self._matcher.try_consume_tokens(characters) == len(characters)
        if not kept or (ended and not self._matcher.is_accepting()):
            raise Refused(
                "response_format: llama.cpp could not keep to this schema; give one with fewer optional properties, and "
                "without `format` and `pattern`"
            )


def _reason(problem: str) -> str:
    """What llguidance says on one line, without where in its own notation that is."""
    said = re.sub(
        r"^at \d+\(\d+\): |failed to compile JSON schema: |\n +\d+ \|.*", "", problem, flags=re.DOTALL
    )
    return " ".join(said.split())
