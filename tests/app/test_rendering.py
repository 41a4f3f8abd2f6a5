"""How answers look: what is written and the HTML that it becomes."""

from __future__ import annotations

import pytest

from app.rendering import answer_html, plain_html

P = '<p dir="auto">{}</p>\n'.format


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("a *b* **c** `d`", P("a <em>b</em> <strong>c</strong> <code>d</code>")),
        ("one\ntwo", P("one<br>\ntwo")),
        ("3 < 5 & 6 > 5", P("3 &lt; 5 &amp; 6 &gt; 5")),
        ("```python\nif a < b:", "<pre><code>if a &lt; b:</code></pre>\n"),
        ("```\n<b>x</b>", "<pre><code>&lt;b&gt;x&lt;/b&gt;</code></pre>\n"),
        ("$x_1*y*z$ and $2", P('<span class="math">$x_1*y*z$</span> and $2')),
        ("it is $5 or *$6* today", P("it is $5 or <em>$6</em> today")),
        (
            r"\(x_1^2\) and \[y\]",
            P(r'<span class="math">\(x_1^2\)</span> and <span class="math display">\[y\]</span>'),
        ),
        ("$$a*b*c$$", P('<span class="math display">$$a*b*c$$</span>')),
        (r"\*not italic\*", P("*not italic*")),
        ("<https://x>", P("&lt;https://x&gt;")),
        ("[a](http://evil.example)", P("[a](http://evil.example)")),
        ("![a](http://evil.example/a.png)", P("![a](http://evil.example/a.png)")),
        ("مرحبا", P("مرحبا")),
        ("3. c\n4. d", '<ol start="3" dir="auto">\n<li dir="auto">c</li>\n<li dir="auto">d</li>\n</ol>\n'),
        ("", ""),
    ],
)
def test_an_answer_is_shown_as(written, shown):
    assert answer_html(written) == shown


def test_what_a_person_wrote_is_shown_as_written():
    assert plain_html("2*3*4 <b> # x") == '<p dir="auto" class="plain">2*3*4 &lt;b&gt; # x</p>'


def test_every_beginning_of_an_answer_is_shown_without_markup_of_its_own():
    """As it streams: a fence that is not closed yet, half a tag, half a formula."""
    answer = "Say `a<b>`:\n\n```html\n<a href=x>y</a>\n```\n\n| a | b |\n|---|---|\n| $x$ | <i> |\n"
    for end in range(len(answer) + 1):
        html = answer_html(answer[:end])
        assert "&amp;lt;" not in html and "<a" not in html and "<i>" not in html
