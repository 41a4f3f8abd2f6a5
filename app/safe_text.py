"""Text that a model or a person wrote, made fit for a page that renders Markdown.

A picture in an answer would make the reader's browser call whatever host the model names. The page's
Content-Security-Policy (app.server) forbids that too; this keeps the text readable instead of broken.
"""

from __future__ import annotations

import re

CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


def for_markdown(text: str) -> str:
    """The text with HTML, images and titled links shown as what was written; code is left alone."""
    parts = CODE.split(text)
    return "".join(part if CODE.fullmatch(part) else _inert(part) for part in parts)


def _inert(text: str) -> str:
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace("![", "!\\[")
        .replace("](", "]\\(")
        .replace("][", "]\\[")
    )
