"""The stage's templates, each compiled once per process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Template

from abctune.study.rendering import environment

HERE = Path(__file__).parent


@cache
def template(name: str) -> Template:
    """The template in the file `name` of this folder; what it inserts into HTML is escaped."""
    text = (HERE / name).read_text(encoding="utf-8")
    return environment(escape=name.endswith(".html.jinja")).from_string(text)
