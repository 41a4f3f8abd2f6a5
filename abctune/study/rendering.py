"""Templates' filters: numbers, settings and texts as reports, cards and tables print them."""

from __future__ import annotations

import base64
import re
from typing import Any

from jinja2 import Environment, StrictUndefined, Undefined

from abctune.study.wording import listed, number


def environment(escape: bool) -> Environment:
    """Jinja with the filters below; a name that is not given is an error, and so is a function that is not called."""
    env = Environment(
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_refuse_functions,
    )
    filters = (fixed, signed, count, rate, cell, setting, data_uri, listed)
    env.filters |= {one.__name__: one for one in filters}
    return env


def _refuse_functions(value: Any) -> Any:
    """What a template prints; a method that it forgot to call would be printed as its address."""
    if callable(value) and not isinstance(value, Undefined):
        raise TypeError(f"a template prints {value!r} instead of calling it")
    return value


def fixed(x: float | str | None, digits: int = 3) -> str:
    """Fixed decimals; a dash for what was not measured; words as they are."""
    if isinstance(x, str):
        return x
    return "–" if x is None else number(x, digits)


def signed(x: float | None, digits: int = 3) -> str:
    """Fixed decimals with a sign, also a plus."""
    return "–" if x is None else ("+" if round(x, digits) > 0 else "") + number(x, digits)


def count(n: float | None) -> str:
    """A whole number with separators."""
    return "–" if n is None else f"{n:,.0f}"


def rate(x: float | None) -> str:
    """A learning rate: 2e-05 -> 2e-5."""
    if x is None:
        return "–"
    text = f"{x:.3g}" if x == 0 or abs(x) >= 1e-2 else f"{x:.2e}"
    return re.sub(r"(\.0+|(\.\d*?)0+)?e-0*", r"\2e-", text)


def setting(value: Any) -> str:
    """A param's value as params.yaml would write it; a dash where there is none."""
    if isinstance(value, float):
        return f"{value:g}" if abs(value) >= 1e-2 else rate(value)
    return "–" if value is None else yaml_value(value)


def yaml_value(value: Any) -> str:
    """A scalar as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cell(text: object) -> str:
    """A Markdown table's cell: one line, no bar that would end it, no HTML."""
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())


def data_uri(svg: str) -> str:
    """The figure inside the page. As an image of its own, so that its ids and styles touch nothing else there."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def readable(text: str) -> str:
    """A model's text without control characters that no browser shows (new lines and tabs stay)."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)
