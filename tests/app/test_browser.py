"""The page in a real browser: Debian's Chromium, headless, with no way out to any network."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.engines import Likely, TokenScore
from app.engines.loading import LoadingEngine
from app.page import chat, compare
from app.service import BUSY, FAILED, Service
from tests.app.conftest import serving
from tests.app.test_load import BrokenEngine, Says, SlowEngine
from tests.app.wire import Wire

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright (dev group)")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium on the PATH")
PATIENCE = 60_000  # ms; a busy machine takes seconds for what a quiet one does at once
sync_api.expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A page that may talk to this machine alone; whatever else it asks for fails the test, and so does a script error."""
    outside, errors = [], []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)

    def only_here(route: sync_api.Route) -> None:
        if re.match(r"(https?|wss?)://127\.0\.0\.1[:/]", route.request.url):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", only_here)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert outside == [] and errors == []


@pytest.fixture(scope="module")
def slow(models, tokenizer) -> Iterator[str]:
    with serving(Service(models, SlowEngine(), tokenizer, waiting=0)) as url:
        yield url


def visit(page: sync_api.Page, url: str) -> None:
    """Open the page, and wait until its own first call has been answered: from then on it hears what a person does."""
    with page.expect_response(re.compile("/gradio_api/(queue/join|run/)")):
        page.goto(url)


def send(page: sync_api.Page, text: str) -> None:
    page.locator("#box textarea").fill(text)
    page.locator("#box textarea").press("Enter")


def answers(page: sync_api.Page) -> sync_api.Locator:
    return page.locator("#chatbot [data-testid=bot]")


def stop(page: sync_api.Page) -> sync_api.Locator:
    return page.locator("#box button.stop-button")


def visible(locator: sync_api.Locator) -> None:
    sync_api.expect(locator).to_be_visible(timeout=PATIENCE)


def says(locator: sync_api.Locator, text: str | re.Pattern[str]) -> None:
    sync_api.expect(locator).to_contain_text(text, timeout=PATIENCE)


def test_a_message_is_answered_by_the_model_that_is_chosen(page, address):
    visit(page, address)
    send(page, "hello")  # C, the last one, is chosen at first
    says(answers(page).last, re.compile("c{20}"))
    says(answers(page).last, "tokens/s")
    page.locator("#model input").click()
    page.get_by_role("option", name="A", exact=True).click()
    send(page, "and you?")
    sync_api.expect(answers(page)).to_have_count(2)
    says(answers(page).last, re.compile("a{20}"))
    says(answers(page).last, "A · ")
    assert page.locator("#box textarea").input_value() == ""


def test_text_streams_and_stop_keeps_what_is_there_and_frees_the_box(page, slow):
    visit(page, slow)
    send(page, "hello")
    says(answers(page).last, re.compile("x{3}"))
    first = len(answers(page).last.inner_text())
    page.wait_for_function(
        "n => [...document.querySelectorAll('#chatbot [data-testid=bot]')].at(-1).innerText.length > n + 20",
        arg=first,
    )
    page.locator(".turn.user [data-do=edit]").click()
    page.wait_for_timeout(500)  # the answer grows on, and what is being written stays
    dialog = page.get_by_role("dialog", name="Edit message")
    visible(dialog)
    assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth")  # nothing of it is cut off
    page.keyboard.press("Escape")
    stop(page).click()
    says(answers(page).last, "stopped")
    page.wait_for_timeout(1000)  # what was on its way arrives
    kept = answers(page).last.inner_text()
    page.wait_for_timeout(500)
    assert answers(page).last.inner_text() == kept
    send(page, "again")
    sync_api.expect(answers(page)).to_have_count(2)
    says(answers(page).last, re.compile("x{3}"))
    stop(page).click()
    says(answers(page).last, "stopped")


def test_a_full_line_and_a_failing_model_are_messages_and_the_page_stays_usable(
    page, slow, models, tokenizer, browser
):
    visit(page, slow)
    send(page, "hello")
    says(answers(page).last, re.compile("x{3}"))
    second = browser.new_page()
    visit(second, slow)
    send(second, "me too")
    says(answers(second).last, BUSY)
    stop(page).click()
    says(answers(page).last, "stopped")
    send(second, "now?")
    says(answers(second).last, re.compile("x{3}"))
    stop(second).click()
    says(answers(second).last, "stopped")
    second.close()
    with serving(Service(models, BrokenEngine(), tokenizer)) as url:
        visit(page, url)
        for count in (1, 2):  # the box is free after a failure
            send(page, "hello")
            sync_api.expect(answers(page)).to_have_count(count)
            says(answers(page).last, FAILED)
        assert "shadow" not in page.content()


def test_every_refusal_is_seen_and_locks_nothing(page, address):
    visit(page, address)
    page.get_by_role("textbox", name="Seed").first.fill("-5")
    send(page, "hello")
    says(answers(page).last, "seed")
    page.get_by_role("textbox", name="Seed").first.fill("5")
    send(page, "   ")
    says(page.get_by_test_id("toast-body"), "empty message")
    send(page, "hello")
    says(answers(page).last, re.compile("c{20}"))
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-box textarea").fill("hello")
    page.locator("#ask-all").click()
    visible(page.locator("#prefer"))
    page.locator("#vote").click()
    says(page.get_by_test_id("toast-body").last, "Choose an answer first")


def test_a_message_sent_while_another_is_being_refused_is_answered(page, address, monkeypatch):
    warn = chat.gr.Warning
    monkeypatch.setattr(chat.gr, "Warning", lambda text: (warn(text), time.sleep(0.5)))
    visit(page, address)
    send(page, "   ")
    says(page.get_by_test_id("toast-body"), "empty message")
    send(page, "hello")
    says(answers(page).last, re.compile("c{20}"))


def test_enter_pressed_twice_asks_once(page, address, monkeypatch):
    read = chat.read_text
    monkeypatch.setattr(chat, "read_text", lambda text: (time.sleep(0.5), read(text))[1])
    visit(page, address)
    send(page, "hello")
    page.locator("#box textarea").press("Enter")
    says(answers(page).last, "tokens/s")
    page.wait_for_timeout(1000)  # the second time has been read by now
    assert page.locator(".turn.user").count() == answers(page).count() == 1
    says(answers(page).last, "tokens/s")


def test_a_blind_comparison_shows_names_after_the_vote_and_counts_it(page, address, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "VOTES", tmp_path / "votes.jsonl")
    visit(page, address)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-box textarea").fill("hello")
    page.locator("#ask-all").click()
    visible(page.locator("#prefer"))
    shown = [page.locator(f"#answer-{place}").inner_text() for place in range(1, 5)]
    letters = [re.search(r"(.)\1{20}", text)[1] for text in shown]
    assert sorted(letters) == ["a", "b", "c", "z"]
    assert not any("tokens/s" in text for text in shown)
    assert all(text.startswith(f"Answer {place}") for place, text in enumerate(shown, 1))
    best = letters.index("c") + 1
    page.get_by_label(f"Answer {best}", exact=True).check()
    page.locator("#vote").click()
    says(page.locator(f"#answer-{best}"), re.compile(r"^\s*C\b"))
    says(page.locator("#standings"), "1 of 1")
    assert (tmp_path / "votes.jsonl").read_text().count("\n") == 1


def test_a_phone_shows_everything_without_scrolling_sideways(page, address):
    page.set_viewport_size({"width": 360, "height": 740})
    visit(page, address)
    send(page, "hello " * 12 + "x" * 80)
    says(answers(page).last, re.compile("c{20}"))
    visible(page.locator("#box"))
    for tab in ("Chat", "Compare"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#ask-all").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360


def test_the_dark_theme_is_dark_and_its_text_readable(browser, address):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    visit(page, address)
    send(page, "hello")
    says(answers(page).last, re.compile("c{20}"))
    light = """selector => {
        const element = document.querySelector(selector);
        const channels = color => color.match(/[0-9.]+/g).map(Number);
        const luminance = ([r, g, b]) => (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
        let behind = element, back;
        do { back = channels(getComputedStyle(behind).backgroundColor); behind = behind.parentElement; }
        while (behind && back.length > 3 && back[3] === 0);
        return [luminance(channels(getComputedStyle(element).color)), luminance(back)];
    }"""
    for selector in (
        "#title p",
        "#box textarea",
        "#chatbot [data-testid=bot]",
        "#chatbot [data-testid=user]",
    ):
        text, behind = page.evaluate(light, selector)
        assert text - behind > 0.4, (selector, text, behind)
    context.close()


@pytest.fixture(scope="module")
def saying(models, tokenizer):
    """Serves a model that says what it is told to."""

    def serve(*texts: str):
        engine = Says(texts)
        engine.context = 100_000  # the small model's would hold few of the texts
        return serving(Service(models, engine, tokenizer))

    return serve


def test_copy_and_edit_hand_out_what_was_written_and_the_model_reads_it(page, service, models, tokenizer):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    engine = Says(["is 3 < 5 & `a<b>`?"])
    with serving(Service(models, engine, tokenizer)) as url:
        visit(page, url)
        send(page, "3 < 5 & 2*3*4\n<b>")
        says(answers(page).last, "is 3 < 5 & a<b>?")
        user = page.locator("#chatbot [data-testid=user]")
        assert user.inner_text().startswith("3 < 5 & 2*3*4")
        page.locator(".turn.assistant [data-do=copy]").click()
        says(page.locator(".turn.assistant [data-do=copy]"), "Copied")
        assert page.evaluate("navigator.clipboard.readText()") == "is 3 < 5 & `a<b>`?"
        page.locator(".turn.user [data-do=edit]").click()
        area = page.get_by_role("dialog", name="Edit message").get_by_label("Message")
        assert area.input_value().startswith("3 < 5 & 2*3*4")
        area.fill("4 < 5 & 6 > 5")
        area.press("Enter")
        says(user, "4 < 5 & 6 > 5")
        sync_api.expect(answers(page)).to_have_count(1)
        says(answers(page).last, "is 3 < 5")
        assert "4 < 5 & 6 > 5" in tokenizer.decode(engine.asked[-1][0].prompt)
        page.locator("[data-do=retry]").click()
        sync_api.expect(page.locator("[data-do=retry]")).to_have_count(1)
        page.locator("[data-do=undo]").click()
        sync_api.expect(answers(page)).to_have_count(0)
        assert page.locator("#box textarea").input_value() == "4 < 5 & 6 > 5"


def test_a_question_is_answered_though_the_answer_before_it_is_still_ending(page, models, tokenizer):
    loaded = threading.Event()

    def load() -> Says:
        loaded.wait()
        engine = Says(["fine"])
        engine.tokenizer = tokenizer
        return engine

    engine = LoadingEngine("says", 512, 4, False, load, failed=print)
    engine.begin()
    with serving(Service(models, engine, waiting=9)) as url:
        visit(page, url)
        send(page, "first")
        says(answers(page), "loading")
        sync_api.expect(page.locator("[data-do=retry]")).to_have_count(0)  # there is nothing to repeat yet
        page.get_by_role("button", name="New conversation").click()
        visible(page.locator(".start"))
        send(page, "second")
        says(answers(page), "loading")
        loaded.set()
        says(answers(page), "fine")


def test_retry_asks_with_another_seed_and_a_set_seed_is_kept(page, models, tokenizer):
    engine = Says(["x"])
    with serving(Service(models, engine, tokenizer)) as url:
        visit(page, url)
        send(page, "hello")
        for count in (2, 3):
            page.locator("[data-do=retry]").click()
            page.wait_for_function("() => document.querySelectorAll('[data-do=retry]').length === 1")
            while len(engine.asked) < count:
                page.wait_for_timeout(50)
        assert len({jobs[0].sampling.seed for jobs in engine.asked}) == 3
        page.get_by_role("textbox", name="Seed").first.fill("7")
        sync_api.expect(page.locator("[data-do=retry]")).to_have_count(1)
        page.locator("[data-do=retry]").click()
        while len(engine.asked) < 4:
            page.wait_for_timeout(50)
        assert engine.asked[-1][0].sampling.seed == 7


HREFS = [
    "javascript:alert(1)",
    "//evil.example",
    "http://evil.example/a.png",
    "data:text/html,<script>top.hit=1</script>",
]
CARRIERS = [
    "<a href='{}' style='position:fixed;inset:0'>x</a>", "``x ``` <a href='{}' style='position:fixed;inset:0'>x</a>``",
    "[x]({})", "![x]({})", "[x][1]\n\n[1]: {}", "<{}>", "<img src='{}' onerror='top.hit=1'>", "<svg onload='top.hit=1'><a href='{}'>",
    "<iframe src='{}'></iframe>", "<object data='{}'></object>", "<form action='{}'><button>x", "<link rel=stylesheet href='{}'>",
    "<style>@import '{}';*{{display:none}}</style>", "<meta http-equiv=refresh content='0;url={}'>", "<base href='{}'>",
    "```\n</code></pre><script src='{}'></script>\n```", "`</code><img src={} onerror=top.hit=1>`", "| a |\n|---|\n| <video src='{}' autoplay> |",
    "$<img src='{}' onerror='top.hit=1'>$", "\\(<img src='{}'>\\)", "</div></div><div style='position:fixed;inset:0;z-index:9'>{}</div>",
    "${{top.hit=1}} {{{{value}}}} <%= {} %>", "<math><mtext><table><mglyph><style><img src='{}' onerror=top.hit=1>", "&lt;img src='{}'&gt; &#60;script&#62;top.hit=1",
    "<details open ontoggle='top.hit=1'><summary>{}", "# <h1 id='box' onclick='top.hit=1' style='{}'>", "<input autofocus onfocus='top.hit=1' value='{}'>",
]  # fmt: skip
PAYLOADS = [carrier.format(href) for carrier in CARRIERS for href in HREFS]


def test_no_payload_leaves_its_bubble_loads_or_runs_anything(page, saying):
    """Every payload as a model's answer and as a person's message, in one page each; the fixture fails on any load."""
    assert len(PAYLOADS) >= 100
    check = """() => {
        const talk = document.querySelector("#chatbot"), box = talk.getBoundingClientRect(), bad = [];
        for (const one of talk.querySelectorAll(".body .math, .body .math *")) {  // what KaTeX makes of a formula
            if (!/^(span|math|semantics|annotation|m[a-z]+|svg|path|line)$/i.test(one.tagName)) bad.push(one.outerHTML);
            if ([...one.attributes].some((a) => /^on|href|src|^id$|action|data$/i.test(a.name))) bad.push(one.outerHTML);
            if (getComputedStyle(one).position === "fixed") bad.push(one.outerHTML);
        }
        for (const one of talk.querySelectorAll(".body > .math, .body *:not(.math, .math *)")) {
            if (/^(a|img|script|style|iframe|object|form|svg|link|meta|base|video|math|input|details|h1 id)$/i.test(one.tagName)) bad.push(one.outerHTML);
            if ([...one.attributes].some((a) => !["dir", "class", "start"].includes(a.name))) bad.push(one.outerHTML);
            if (getComputedStyle(one).position === "fixed") bad.push(one.outerHTML);
            const r = one.getBoundingClientRect();
            if (r.left < box.left - 1 || r.right > box.right + 1) if (!one.closest("pre, table")) bad.push(one.outerHTML);
        }
        return [bad, window.hit || null];
    }"""
    for part in range(0, len(PAYLOADS), 18):
        some = PAYLOADS[part : part + 18]
        with saying("\n\n".join(some)) as url:
            visit(page, url)
            send(page, "\n\n".join(some))
            says(answers(page).last, "1 token")
            assert page.evaluate(check) == [[], None], some
            for one in some:  # what a person wrote is there, all of it
                assert one in page.locator("#chatbot [data-testid=user]").text_content()


def test_wide_code_tables_and_formulas_scroll_inside_the_bubble(page, saying):
    wide = (
        "```\n"
        + "x = 1; " * 60
        + "\n```\n\n|"
        + " long column |" * 14
        + "\n|"
        + "---|" * 14
        + "\n|"
        + " cell |" * 14
    )
    with saying(wide + "\n\n$" + "x^2+" * 90 + "1$") as url:
        page.set_viewport_size({"width": 390, "height": 844})
        visit(page, url)
        send(page, "hello")
        says(answers(page).last, "1 token")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.body pre'))")
        assert page.evaluate("(e => e.scrollWidth <= e.clientWidth + 1)(document.querySelector('#chatbot'))")
        talk, box = page.locator("#chatbot").bounding_box(), page.locator("#box").bounding_box()
        for _ in range(4):
            count = answers(page).count()
            send(page, "more")
            sync_api.expect(answers(page)).to_have_count(count + 1)
            says(answers(page).last, "1 token")
        page.wait_for_timeout(300)
        last = page.locator(".turn").last.bounding_box()
        assert last["y"] + last["height"] <= talk["y"] + talk["height"] + 1 <= box["y"] + 2, (
            "nothing covers the composer"
        )


def test_conversations_outlive_a_reload_and_a_lost_connection_and_files_come_back(
    page, slow, address, tmp_path
):
    """The server is asked through a wire that is pulled out for four seconds while an answer grows."""
    chats = page.locator("#chats li")
    wire = Wire(int(slow.rsplit(":", 1)[1]))
    visit(page, wire.address)
    page.locator("#model input").click()
    page.get_by_role("option", name="A", exact=True).click()
    send(page, "the first question")
    says(answers(page).last, re.compile("x{30}"))
    wire.cut()
    page.wait_for_timeout(4000)
    wire.mend()
    says(answers(page).last, "interrupted")  # Gradio loads the page again by itself
    says(answers(page).last, re.compile("x{30}"))
    says(page.locator("#chatbot [data-testid=user]"), "the first question")
    page.get_by_role("button", name="New conversation").click()
    visible(page.locator(".start"))
    send(page, "the second question")
    says(answers(page).last, re.compile("x{3}"))
    stop(page).click()
    says(answers(page).last, "stopped")
    sync_api.expect(chats).to_have_count(2)
    with page.expect_download() as download:
        page.locator("#save").click()
    file = tmp_path / "kept.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["messages"][0]["content"] == "the second question"
    page.reload()
    says(page.locator("#chatbot [data-testid=user]"), "the second question")
    says(answers(page).last, "stopped")
    page.get_by_role("button", name="Rename the first question").click()
    page.get_by_label("Name of the conversation").fill("about x")
    page.get_by_label("Name of the conversation").press("Enter")
    chats.get_by_role("button", name="about x", exact=True).click()
    says(page.locator("#chatbot [data-testid=user]"), "the first question")
    page.locator("#chats input[type=file]").set_input_files(file)
    sync_api.expect(chats).to_have_count(3)
    says(page.locator("#chatbot [data-testid=user]"), "the second question")
    file.write_text('{"messages": [{"role": "nobody", "content": "x"}]}')
    page.locator("#chats input[type=file]").set_input_files(file)
    says(page.get_by_test_id("toast-body"), "no conversation of this demo")
    for _ in range(2):  # once to ask, once to do it
        page.get_by_role("button", name="Delete about x").click()
    sync_api.expect(page.locator("#chats")).not_to_contain_text("about x")


def test_formulas_are_typeset_and_strength_and_probabilities_reach_the_model(page, models, tokenizer):
    class Scores(Says):
        def score(self, job, ids, likeliest):
            self.scored = job
            for token in ids:
                yield TokenScore(token, tokenizer.decode([token]), math.log(0.04), (Likely(1, "y", -0.1),))
            hidden.wait(5)  # all tokens are shown and the scoring has not ended: "Hide" works then too

    hidden = threading.Event()
    engine = Scores(["so $x^2$ and ", "\\[\\frac{1}{2}\\]", " and $\\oops{$"])
    with serving(Service(models, engine, tokenizer)) as url:
        visit(page, url)
        page.get_by_label("number input for Adapter strength").first.fill("0.5")
        page.get_by_label("number input for Adapter strength").first.press("Tab")
        send(page, "hello")
        says(answers(page).last, "strength 0.5")
        sync_api.expect(answers(page).last.locator(".katex")).to_have_count(2)
        says(answers(page).last, "$\\oops{$")  # no formula: as it was written
        assert engine.asked[-1][0].sampling.adapter_strength == 0.5
        page.get_by_role("button", name="Probabilities").click()
        says(answers(page).last, "geometric mean of the probabilities 4%")
        assert "likeliest: 'y' 90" in answers(page).last.locator(".token").first.get_attribute("title")
        assert engine.scored.sampling.adapter_strength == 0.5
        page.get_by_role("button", name="Hide probabilities").click()
        sync_api.expect(answers(page).last.locator(".katex")).to_have_count(2)


def test_two_of_the_models_are_compared_over_turns_and_voted_on_by_keys(page, address, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "VOTES", tmp_path / "votes.jsonl")
    visit(page, address)
    page.get_by_role("tab", name="Compare").click()
    for name in ("base", "C"):
        page.locator("#chosen").get_by_label(name, exact=True).uncheck()
    ask = page.locator("#compare-box textarea")
    for turn in (1, 2):
        ask.fill(f"question {turn}")
        ask.press("Enter")  # Enter sends here too
        sync_api.expect(page.locator("#rounds .asked")).to_have_count(turn)
        visible(page.locator("#prefer"))
    assert (
        page.locator("#rounds .answer").count() == 4
        and "tokens/s" not in page.locator("#rounds").inner_text()
    )
    page.locator("#mark-differences input").check()
    sync_api.expect(page.locator("#rounds mark").first).to_be_visible()
    page.locator("#rounds").focus()
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    says(page.locator("#standings"), "0 of 1")
    [vote] = map(json.loads, (tmp_path / "votes.jsonl").read_text().splitlines())
    assert sorted(vote["models"]) == ["A", "B"] and vote["preferred"] is None
    assert [turn["prompt"] for turn in vote["turns"]] == ["question 1", "question 2"]


def test_the_composer_is_in_view_and_nothing_is_covered_on_a_desk_and_on_a_phone(page, saying):
    with saying("word " * 400) as url:
        for width, height in ((1280, 800), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            visit(page, url)
            send(page, "hello")
            says(answers(page).last, "1 token")
            inside(page, "#box", width, height)
            if width == 1280:
                for name in ("New conversation", "Download JSON"):
                    inside(page, f"button:has-text('{name}')", width, height)
            page.get_by_role("tab", name="Compare").click()
            inside(page, "#compare-box", width, height)
            inside(page, "#ask-all", width, height)


def inside(page: sync_api.Page, selector: str, width: int, height: int) -> None:
    """Its whole box is in the window, and a click in its middle hits it."""
    box = page.locator(selector).first.bounding_box()
    assert box and box["x"] >= 0 and box["y"] >= 0, selector
    assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height, (selector, box)
    hit = "([s, x, y]) => document.querySelector(s)?.contains(document.elementFromPoint(x, y))"
    if not selector.startswith("button"):
        assert page.evaluate(hit, [selector, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]), (
            selector
        )


AXE = os.environ.get("AXE_CORE")


@pytest.mark.skipif(not AXE, reason="AXE_CORE does not name axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(browser, address, scheme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    visit(page, address)
    found = faults(page, "empty chat")
    send(page, "hello")
    says(answers(page).last, re.compile("c{20}"))
    found += faults(page, "chat")
    page.locator(".turn.user [data-do=edit]").click()
    visible(page.get_by_role("dialog", name="Edit message"))
    found += faults(page, "edit")
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-box textarea").fill("hello")
    page.locator("#ask-all").click()
    visible(page.locator("#prefer"))
    found += faults(page, "compare")
    page.get_by_role("tab", name="Results").click()
    visible(page.locator("#results table"))
    found += faults(page, "results")
    context.close()
    assert found == []


def faults(page: sync_api.Page, where: str) -> list[str]:
    """What axe-core calls serious or critical, WCAG 2.2 AA and its 24 px targets included."""
    page.wait_for_timeout(400)
    page.evaluate(Path(AXE).read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    result = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
    return [
        f"{where}: {one['id']}: {one['nodes'][0]['target']}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]
