"""The conversation as HTML. Raw text is the message (`data-raw`: what Copy copies and Edit edits); figures are below it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from app.rendering import answer_html, plain_html

SILENT = "(the model ended its turn without a word)"
# Runs once, on the element that holds the conversation; what is inside is replaced at every new word.
SCRIPT = r"""
const copied = async (text, button) => {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else {  // not on a page that comes without encryption from another machine
        const area = document.createElement("textarea");
        area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = button.dataset.do === "copy" ? "Copy" : "Copy all"; }, 1500);
};
const edit = (turn) => {
    const body = turn.querySelector(".body"), area = document.createElement("textarea");
    area.value = turn.dataset.raw; area.setAttribute("aria-label", "Edit message"); area.rows = 3;
    body.replaceChildren(area); area.focus();
    turn.querySelector(".actions").innerHTML =
        '<button type="button" data-do="save">Send</button> <button type="button" data-do="cancel">Cancel</button>';
    area.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); save(turn); }
        if (event.key === "Escape") cancel();
    });
};
const save = (turn) => trigger("edit", {index: Number(turn.dataset.at), value: turn.querySelector("textarea").value});
const cancel = () => { element.innerHTML = props.value; };
element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const turn = button.closest("[data-at]"), what = button.dataset.do;
    if (what === "copy") copied(turn.dataset.raw, button);
    else if (what === "copy-all")
        copied([...element.querySelectorAll("[data-raw][data-at]")].map((one) => one.dataset.raw).join("\n\n"), button);
    else if (what === "example") trigger("example_select", {value: button.dataset.raw});
    else if (what === "edit") edit(turn);
    else if (what === "save") save(turn);
    else if (what === "cancel") cancel();
    else trigger(what);
});
// The newest words stay in sight, unless the reader has scrolled up.
const scroller = () => element.closest("#chatbot") || element;
let atEnd = true;
scroller().addEventListener("scroll", () => {
    const box = scroller();
    atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
});
watch("value", () => { if (atEnd) { const box = scroller(); box.scrollTop = box.scrollHeight; } });
"""
Rows = Sequence[dict[str, Any]]


def conversation_html(rows: Rows, examples: Sequence[str] = ()) -> str:
    """All turns, or the examples while there is none."""
    if not rows:
        buttons = "".join(
            f'<button type="button" data-do="example" data-raw="{escape(text)}">{escape(text)}</button>'
            for text in examples
        )
        return (
            f'<div class="start"><h2>Ask something, or start with an example</h2><div>{buttons}</div></div>'
        )
    last = len(rows) - 1
    turns = "".join(_turn(place, row, is_last=place == last) for place, row in enumerate(rows))
    return f'<div class="talk" role="log" aria-label="Conversation">{turns}</div>'


def _turn(place: int, row: dict[str, Any], is_last: bool) -> str:
    ours = row["role"] == "user"
    raw = "" if row.get("note") else row["content"]
    actions = ["copy"] if raw else []
    actions += ["edit"] if ours else []
    if is_last and not ours and not row.get("growing"):
        actions += ["retry", "undo", "copy-all"]
    buttons = "".join(
        f'<button type="button" data-do="{what}">{what.capitalize().replace("-", " ")}</button>'
        for what in actions
    )
    figures = f'<div class="figures">{escape(row["figures"])}</div>' if row.get("figures") else ""
    return (
        f'<div class="turn {row["role"]}" data-at="{place}" data-raw="{escape(raw)}">'
        f'<div class="bubble" data-testid="{"user" if ours else "bot"}"><div class="body">{body_html(row)}</div>{figures}</div>'
        f'<div class="actions">{buttons}</div></div>'
    )


def body_html(row: dict[str, Any]) -> str:
    """The words of one message."""
    text = row["content"]
    if row.get("note"):
        return note_html(text)
    if row["role"] == "user":
        return plain_html(text)
    return answer_html(text) or note_html("…" if row.get("growing") else SILENT)


def note_html(text: str) -> str:
    """The demo's own words."""
    return f'<p class="note">{escape(text)}</p>'
