"""Text that a model or a person wrote, as HTML that is safe on the page.

A message is kept raw everywhere else; this is the only place where it becomes HTML. Markdown is parsed first and what
comes out is then cut down to an allow-list by nh3 (Rust's ammonia), so that no trick of notation can bring in a tag or
an attribute. Links and images stay the characters that were written: an answer should make nobody's browser call the
host that a model names.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

TAGS = {
    *(
        "p",
        "br",
        "hr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "blockquote",
        "ul",
        "ol",
        "li",
        "em",
        "strong",
        "s",
    ),
    *("pre", "code", "table", "thead", "tbody", "tr", "th", "td", "span"),
}
BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "th", "td"}
ATTRIBUTES = {tag: {"dir"} for tag in BLOCKS} | {"ol": {"dir", "start"}}
MATH = re.compile(r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?=\S)[^$\n]*?\S?\$(?!\d)", re.DOTALL)


def _math(state: StateInline, silent: bool) -> bool:
    """A formula stays as written, marked for the page to typeset: Markdown would take its backslashes and stars away."""
    found = MATH.match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        state.push("math", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.disable(["link", "image", "autolink", "html_inline", "html_block", "reference"])
    parser.inline.ruler.before("escape", "math", _math)
    # markdown-it's text rule jumps to the next special character and does not count `$` as one; ours stops there too.
    parser.inline.ruler.at("text", _text)
    parser.add_render_rule("math", lambda renderer, tokens, place, *_: _formula(tokens[place].content))
    return parser


def _formula(text: str) -> str:
    display = " display" if text.startswith(("$$", "\\[")) else ""
    return f'<span class="math{display}">{escape(text)}</span>'


def _text(state: StateInline, silent: bool) -> bool:
    found = re.compile(r"[^\n$*_~`\\\[\]!&<>{}:=+@%\-^]+").match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        state.pending += found[0]
    state.pos = found.end()
    return True


_MARKDOWN = _parser()


@lru_cache(
    maxsize=512
)  # a conversation is drawn again at every new word, and only its last answer has changed
def answer_html(text: str) -> str:
    """A model's Markdown; each block has the direction of its own script."""
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.tag in BLOCKS and token.nesting == 1:
            token.attrSet("dir", "auto")
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return nh3.clean(html, tags=TAGS, attributes=ATTRIBUTES, allowed_classes={"span": {"math", "display"}})


def plain_html(text: str) -> str:
    """What a person wrote: no Markdown, so `2*3*4` stays that (the page keeps its line breaks)."""
    return f'<p dir="auto" class="plain">{escape(text)}</p>'
