"""`response_format` and `grammar` of a request, as a grammar (GBNF) that llama.cpp keeps an answer to."""

from __future__ import annotations

import json
from typing import Any

from app.request import MAX_CHARACTERS, Refused

ANY_OBJECT = {"type": "object"}


def read_grammar(body: dict[str, Any]) -> str | None:
    """The grammar that a request's fields ask for; None for free text.

    Raises:
        Refused: both are given, or one of them does not follow OpenAI's or llama.cpp's documentation.
    """
    grammar, wanted = body.get("grammar") or None, body.get("response_format")
    if wanted is None or wanted == {"type": "text"}:
        if grammar is not None and not (isinstance(grammar, str) and len(grammar) <= MAX_CHARACTERS):
            raise Refused(f"grammar must be a text of at most {MAX_CHARACTERS:,} characters")
        return grammar
    if grammar is not None:
        raise Refused("grammar and response_format cannot be used together")
    return _of_schema(_schema(wanted))


def _schema(wanted: Any) -> dict[str, Any]:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return ANY_OBJECT
    named = wanted.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise Refused("response_format must be text, json_object, or json_schema with a json_schema.schema")
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
        return str(xllamacpp.json_schema_to_grammar(schema))
    except (RuntimeError, ValueError) as error:
        raise Refused(f"response_format: llama.cpp does not take this schema ({error})") from None
