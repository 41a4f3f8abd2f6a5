"""What Google's and Amazon's fine-tuning rows write in their own way -> the form in which stages.format.turns reads it.

Gemini   {"systemInstruction": {"parts": [...]}, "contents": [{"role": "model", "parts": [{"text": ...}, {"functionCall": ...}]}]}
Bedrock  {"system": [{"text": ...}], "messages": [{"role": "user", "content": [{"text": ...}, {"toolUse": ...}]}], "toolConfig": ...}

Keys are renamed and none is dropped, so that one that nobody reads is still found (stages.format.fields).
"""

from __future__ import annotations

import json
from typing import Any

CALLS = ("functionCall", "function_call", "toolUse")
RESULTS = ("functionResponse", "function_response", "toolResult")
THOUGHTS = "reasoningContent"
DECLARATIONS = ("functionDeclarations", "function_declarations")
RENAMED = {"args": "input", "response": "content", "toolUseId": "id"}


def known_parts(value: Any) -> Any:
    """A content whose parts are all in the forms of OpenAI or Anthropic; anything else unchanged."""
    return [_known_part(part) for part in value] if isinstance(value, list) else value


def gemini_parts(value: Any) -> Any:
    """Gemini's `parts` as a list: one part may stand alone, and a text may stand for a part of text."""
    parts = value if isinstance(value, list) else [value]
    return [{"text": part} if isinstance(part, str) else part for part in parts]


def _known_part(part: Any) -> Any:
    """A part of a content; Gemini's and Bedrock's calls, results and thoughts as Anthropic's."""
    if not isinstance(part, dict) or "type" in part:
        return part
    rest = dict(part)
    if isinstance(part.get("thought"), bool):
        is_thought, text = rest.pop("thought"), rest.pop("text", None)
        return {**rest, "type": "thinking", "thinking": text} if is_thought else {**rest, "text": text}
    key = next((name for name in (*CALLS, *RESULTS, THOUGHTS) if isinstance(part.get(name), dict)), None)
    if key is None:
        return part
    inner = {RENAMED.get(name, name): value for name, value in rest.pop(key).items()}
    if rest.keys() & inner.keys():  # one of two values would be lost
        return part
    if key in CALLS:
        return {**rest, **inner, "type": "tool_use"}
    if key in RESULTS:
        call, content = inner.pop("id", None), _texts(inner.get("content"))
        return {**rest, **inner, "type": "tool_result", "tool_use_id": call, "content": content}
    thoughts = inner.pop("reasoningText", None)
    said = thoughts if isinstance(thoughts, dict) else {}
    said = {"thinking" if name == "text" else name: value for name, value in said.items()}
    return {**rest, **inner, **said, "type": "thinking"}


def _texts(content: Any) -> Any:
    """A result's parts, those in JSON as text."""
    if not isinstance(content, list):
        return content
    return [
        {"text": json.dumps(part["json"], ensure_ascii=False)}
        if isinstance(part, dict) and part.keys() == {"json"}
        else part
        for part in content
    ]


def known_tools(value: Any) -> Any:
    """A list of tools in OpenAI's or Anthropic's form; what is in no known form, as it is."""
    if isinstance(value, dict) and "tools" in value and value.keys() <= {"tools", "toolChoice"}:
        value = value["tools"]  # Bedrock's toolConfig
    if not isinstance(value, list):
        return value
    return [inner for tool in value for inner in _known_tool(tool)]


def _known_tool(tool: Any) -> list[Any]:
    if not isinstance(tool, dict) or len(tool) != 1:
        return [tool]
    [(key, inner)] = tool.items()
    if key in DECLARATIONS and isinstance(inner, list):
        return inner
    if key == "toolSpec" and isinstance(inner, dict):
        schema = inner.get("inputSchema")
        if isinstance(schema, dict) and schema.keys() == {"json"}:
            inner = {**inner, "inputSchema": schema["json"]}
        return [{"parameters" if name == "inputSchema" else name: one for name, one in inner.items()}]
    return [tool]
