"""The conversation as HTML. Raw text is the message (`data-raw`: what Copy copies and Edit edits); figures are below it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.engines import TokenScore
from app.page.conversation import Drawing
from app.page.style import ASSETS
from app.rendering import answer_html, plain_html

SILENT = "(the model ended its turn without a word)"
SCRIPT = (ASSETS / "conversation.js").read_text(encoding="utf-8")


def conversation_html(
    drawing: Drawing, examples: Sequence[str] = (), colors: Mapping[str, str] | None = None
) -> str:
    """All turns, or the examples while there is none.

    Args:
        drawing: the browser keeps the conversation under its key; it keeps none without one.
        colors: of the models, by name.
    """
    rows, chat = drawing.rows, f' data-number="{drawing.number}"'
    chat += f' data-chat="{escape(drawing.key)}"' if drawing.key else ""
    if not rows:
        buttons = "".join(
            f'<button type="button" data-do="example" data-raw="{escape(text)}">{escape(text)}</button>'
            for text in examples
        )
        return f'<div class="start"{chat}><h2>Ask something, or start with an example</h2><div>{buttons}</div></div>'
    last = len(rows) - 1
    turns = "".join(_turn(place, row, place == last, colors or {}) for place, row in enumerate(rows))
    return f'<div class="talk" role="log" aria-label="Conversation"{chat}>{turns}</div>'


def _turn(place: int, row: dict[str, Any], is_last: bool, colors: Mapping[str, str]) -> str:
    ours = row["role"] == "user"
    raw = "" if row.get("note") else row["content"]
    how = f' data-how="{escape(json.dumps(row["how"]))}"' if row.get("how") else ""
    actions = ["copy"] if raw else []
    actions += ["edit"] if ours else []
    if is_last and not ours and not row.get("streaming"):
        actions += ["retry", "undo", "copy-all"]
    buttons = "".join(
        f'<button type="button" data-do="{what}">{what.capitalize().replace("-", " ")}</button>'
        for what in actions
    )
    if row.get("how") and raw:
        shown = "Hide probabilities" if row.get("scores") is not None else "Probabilities"
        buttons += f'<button type="button" data-do="tokens">{shown}</button>'
    dot = dot_html(colors.get(row.get("model", "")))
    figures = f'<div class="figures">{dot}{escape(row["figures"])}</div>' if row.get("figures") else ""
    return (
        f'<div class="turn {row["role"]}" data-at="{place}" data-raw="{escape(raw)}"{how}>'
        f'<div class="bubble" data-testid="{"user" if ours else "bot"}"><div class="body">{body_html(row)}</div>{figures}</div>'
        f'<div class="actions">{buttons}</div></div>'
    )


def body_html(row: dict[str, Any]) -> str:
    """The content of one message."""
    text = row["content"]
    if row.get("note"):
        return note_html(text)
    if row.get("scores") is not None:
        return scores_html(row["scores"])
    if row["role"] == "user":
        return plain_html(text)
    return answer_html(text) or note_html("…" if row.get("streaming") else SILENT)


def note_html(text: str) -> str:
    """A message of the demo, not of a model."""
    return f'<p class="note">{escape(text)}</p>'


def dot_html(color: str | None) -> str:
    """A model's colored dot; the name is next to it, so that color alone never tells models apart."""
    return (
        f'<span class="dot" style="background: {escape(color)}" aria-hidden="true"></span>' if color else ""
    )


def scores_html(scores: Sequence[TokenScore]) -> str:
    """An answer token by token, the unlikely ones underlined; pointing at one shows what was likelier."""
    if not scores:
        return note_html("scoring …")
    tokens = "".join(
        f'<span class="token t{_rarity(score.logprob)}" title="{escape(_alternatives(score))}">{escape(score.text)}</span>'
        for score in scores
    )
    mean = math.exp(sum(score.logprob for score in scores) / len(scores))
    small = f"{len(scores)} tokens, geometric mean of the probabilities {mean:.0%}; underlined: below 50, 20 and 5 %; by the plain scores, before temperature and penalties"
    return f'<p class="plain">{tokens}</p><p class="note">{small}</p>'


def _rarity(logprob: float) -> int:
    return sum(logprob < math.log(bound) for bound in (0.5, 0.2, 0.05))


def _alternatives(score: TokenScore) -> str:
    others = ", ".join(f"{one.text!r} {math.exp(one.logprob):.1%}" for one in score.likeliest)
    return f"{math.exp(score.logprob):.1%}; likeliest: {others}"
