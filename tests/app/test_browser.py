"""The page in a real browser: Debian's Chromium, headless, with no way out to any network."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.engines import Likely, Piece, TokenScore
from app.engines.loading import LoadingEngine
from app.page import chat, compare
from app.request import Refused, Sampling, read_request
from app.service import BUSY, FAILED, Service
from tests.app.conftest import serving
from tests.app.test_load import BrokenEngine, Says, SlowEngine
from tests.app.wire import Wire

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright (dev group)")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium on the PATH")
PATIENCE = 60_000  # ms; a busy machine takes seconds for what a quiet one does at once
sync_api.expect.set_options(timeout=PATIENCE)
# Seconds between the views of an answer that never ends. The server shows up to 20 a second; on a busy machine the browser
# draws fewer, falls behind further and further, and hears no click.
PAUSE = 0.25


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )


def patient(browser: sync_api.Browser, **options: object) -> sync_api.BrowserContext:
    """A new context that waits for as long as a busy machine may take."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    return context


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A page that may talk to this machine alone; whatever else it asks for fails the test, and so does a script error."""
    outside, errors = [], []
    context = patient(browser, viewport={"width": 1280, "height": 900})

    # The browser's own rule lets nothing out. `context.route` would, too, but it asks Python about each of the hundreds of
    # files of the page, and switches the browser's cache off.
    def note(request: sync_api.Request) -> None:
        if re.match(r"(?!\w+://127\.0\.0\.1[:/])(https?|wss?)://", request.url):
            outside.append(request.url)

    context.on("request", note)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert outside == [] and errors == []


@pytest.fixture(scope="module")
def slow(models, tokenizer) -> Iterator[SimpleNamespace]:
    """A demo that answers one person at a time, and has no line."""
    service = Service(models, SlowEngine("xxxxx", PAUSE), tokenizer, waiting=0)
    with serving(service) as url:
        yield SimpleNamespace(url=url, service=service)


def until(page: sync_api.Page, condition: Callable[[], bool]) -> None:
    """Wait for something that is not on the page; the page goes on meanwhile."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        page.wait_for_timeout(20)


def until_free(page: sync_api.Page, service: Service) -> None:
    """Wait until a new question would be answered: the page shows a stop before the model has ended."""

    def is_free() -> bool:
        answer = service.answer([read_request(["A"], "A", [{"role": "user", "content": "hi"}], Sampling())])
        try:
            next(answer)
        except Refused:
            return False
        answer.close()
        return True

    until(page, is_free)


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
    visit(page, slow.url)
    send(page, "hello")
    says(answers(page).last, re.compile("x{3}"))
    longer_by_20(page)
    page.locator(".turn.user [data-do=edit]").click()
    longer_by_20(page)  # the answer grows on, and what is being written stays
    dialog = page.get_by_role("dialog", name="Edit message")
    visible(dialog)
    assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth")  # nothing of it is cut off
    page.keyboard.press("Escape")
    stop(page).click()
    says(answers(page).last, "stopped")
    until_free(page, slow.service)
    kept = answers(page).first.inner_text()
    send(page, "again")
    sync_api.expect(answers(page)).to_have_count(2)
    says(answers(page).last, re.compile("x{3}"))
    stop(page).click()
    says(answers(page).last, "stopped")
    assert answers(page).first.inner_text() == kept  # nothing has come after the stop
    until_free(page, slow.service)


def longer_by_20(page: sync_api.Page) -> None:
    """Wait until the last answer has 20 characters more."""
    length = "[...document.querySelectorAll('#chatbot [data-testid=bot]')].at(-1).innerText.length"
    page.wait_for_function(f"n => {length} > n + 20", arg=page.evaluate(length))


def test_a_full_line_and_a_failing_model_are_messages_and_the_page_stays_usable(
    page, slow, models, tokenizer, browser
):
    visit(page, slow.url)
    send(page, "hello")
    says(answers(page).last, re.compile("x{3}"))
    second = patient(browser).new_page()
    visit(second, slow.url)
    send(second, "me too")
    says(answers(second).last, BUSY)
    stop(page).click()
    says(answers(page).last, "stopped")
    until_free(page, slow.service)
    send(second, "now?")
    says(answers(second).last, re.compile("x{3}"))
    stop(second).click()
    says(answers(second).last, "stopped")
    until_free(second, slow.service)
    second.context.close()
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
    warn, answered = chat.gr.Warning, threading.Event()
    monkeypatch.setattr(chat.gr, "Warning", lambda text: (warn(text), answered.wait(PATIENCE / 1000)))
    visit(page, address)
    send(page, "   ")
    says(page.get_by_test_id("toast-body"), "empty message")
    send(page, "hello")
    says(answers(page).last, re.compile("c{20}"))
    answered.set()


def test_enter_pressed_twice_asks_once(page, address, monkeypatch):
    read, twice = chat.read_text, threading.Barrier(2, timeout=PATIENCE / 1000)
    monkeypatch.setattr(chat, "read_text", lambda text: (twice.wait(), read(text))[1])
    visit(page, address)
    send(page, "hello")
    page.locator("#box textarea").press("Enter")
    says(answers(page).last, "tokens/s")
    monkeypatch.setattr(chat, "read_text", read)
    send(page, "and now?")  # whatever the second time did is there when this is answered
    says(answers(page).last, "tokens/s")
    says(page.locator(".turn.user").last, "and now?")
    sync_api.expect(answers(page)).to_have_count(2)
    says(answers(page).last, "tokens/s")
    assert page.locator(".turn.user").count() == 2


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


class Lingers(SlowEngine):
    """Says `first` to the first question until it is stopped, and then goes on ending until it is let go."""

    n_parallel = 8

    def __init__(self) -> None:
        super().__init__()
        self.let_go, self.asked = threading.Event(), 0

    def stream(self, jobs):
        self.asked += 1
        if self.asked > 1:
            yield from (Piece(index, "second", 1, "stop") for index, _ in enumerate(jobs))
            return
        try:
            for n in range(10**6):
                yield from (Piece(index, "first ", n) for index, _ in enumerate(jobs))
                time.sleep(PAUSE)
        finally:
            self.let_go.wait(PATIENCE / 1000)


def test_a_question_to_all_is_answered_though_the_answers_before_it_are_still_ending(
    page, models, tokenizer, monkeypatch
):
    engine, run, ended = Lingers(), compare._run, []

    def watched(*given):
        yield from run(*given)
        ended.append(given)

    monkeypatch.setattr(compare, "_run", watched)
    with serving(Service(models, engine, tokenizer)) as url:
        visit(page, url)
        page.get_by_role("tab", name="Compare").click()
        ask = page.locator("#compare-box textarea")
        ask.fill("one")
        ask.press("Enter")
        says(page.locator("#answer-4"), "first first")
        ask.fill("two")
        ask.press("Enter")
        says(page.get_by_test_id("toast-body"), "still answering")
        assert ask.input_value() == "two"
        page.locator("#stop-all").click()
        says(page.locator("#answer-4"), "stopped")
        ask.press("Enter")
        says(page.locator("#answer-4"), "second")
        visible(page.locator("#prefer"))
        with page.expect_response(
            re.compile("/gradio_api/run/")
        ):  # of the last step of the first one's event
            engine.let_go.set()
        until(page, lambda: len(ended) == 3)
        page.locator("#vote").click()
        says(page.get_by_test_id("toast-body").last, "Choose an answer first")
        says(page.locator("#rounds .asked"), "two")
        says(page.locator("#answer-4"), "second")
        page.get_by_label("Answer 1", exact=True).check()


def test_a_vote_counts_while_a_refused_one_is_ending_and_counts_once(page, address, monkeypatch, tmp_path):
    warn, record, voted = compare.gr.Warning, compare.record, threading.Event()

    def wait() -> bool:
        return voted.wait(PATIENCE / 1000)

    monkeypatch.setattr(compare, "VOTES", tmp_path / "votes.jsonl")
    monkeypatch.setattr(compare.gr, "Warning", lambda text: (warn(text), wait()))
    visit(page, address)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-box textarea").fill("hello")
    page.locator("#ask-all").click()
    visible(page.locator("#prefer"))
    page.locator("#vote").click()
    says(page.get_by_test_id("toast-body"), "Choose an answer first")
    page.get_by_label("Answer 1", exact=True).check()
    monkeypatch.setattr(compare, "record", lambda *given: (record(*given), wait()))
    with page.expect_request(re.compile("/gradio_api/queue/join")):
        page.locator("#vote").click()
    until(page, (tmp_path / "votes.jsonl").exists)
    with page.expect_response(re.compile("/gradio_api/queue/join")):
        page.locator("#vote").click()  # once more, while the first is being written
    voted.set()
    says(page.locator("#standings"), re.compile("[01] of 1"))
    sync_api.expect(page.locator("#vote")).to_be_hidden()
    assert page.get_by_test_id("toast-body").count() <= 1
    assert (tmp_path / "votes.jsonl").read_text().count("\n") == 1


def test_differences_that_are_ticked_while_answers_are_written_are_marked(page, models, tokenizer):
    ticked = threading.Event()

    class Differs(Says):
        n_parallel = 8

        def stream(self, jobs):
            yield from (Piece(index, f"the same but word{index}", 1) for index, _ in enumerate(jobs))
            yield Piece(0, " ", 1)
            ticked.wait(PATIENCE / 1000)
            yield from (Piece(index, "", 2, "stop") for index, _ in enumerate(jobs))

    with serving(Service(models, Differs([]), tokenizer)) as url:
        visit(page, url)
        page.get_by_role("tab", name="Compare").click()
        page.locator("#compare-box textarea").fill("hello")
        page.locator("#ask-all").click()
        says(page.locator("#answer-1"), "the same")
        with page.expect_response(re.compile("/gradio_api/run/")):
            page.locator("#mark-differences input").check()
        ticked.set()
        sync_api.expect(page.locator("#rounds mark")).to_have_count(4)
        assert page.locator("#rounds mark").first.inner_text() == "word0"


def test_a_phone_shows_everything_without_scrolling_sideways(page, address):
    page.set_viewport_size({"width": 360, "height": 740})
    visit(page, address)
    send(page, "hello " * 12 + "x" * 80)
    says(answers(page).last, re.compile("c{20}"))
    visible(page.locator("#box"))
    for tab, shown in (("Chat", "#box"), ("Compare", "#ask-all")):
        page.get_by_role("tab", name=tab).click()
        visible(page.locator(shown))
        page.wait_for_function("document.documentElement.scrollWidth <= 360")
    inside(page, "#ask-all", 360, 740)


def test_the_dark_theme_is_dark_and_its_text_readable(browser, address):
    context = patient(browser, color_scheme="dark")
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
        is_light = (
            f"selector => {{ const [text, behind] = ({light})(selector); return text - behind > 0.4; }}"
        )
        page.wait_for_function(is_light, arg=selector)
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


def test_a_view_of_an_answer_that_ends_late_does_not_cover_a_new_conversation(
    page, models, tokenizer, monkeypatch
):
    """Gradio sends the last view again when a streaming handler ends; here that is after "New conversation"."""
    answer, cleared = chat._answer, threading.Event()

    def ends_late(*given):
        yield from answer(*given)
        cleared.wait(PATIENCE / 1000)

    monkeypatch.setattr(chat, "_answer", ends_late)
    with serving(Service(models, Says(["fine"]), tokenizer)) as url:
        visit(page, url)
        send(page, "hello")
        says(answers(page), "fine")
        visible(page.locator("[data-do=retry]"))
        page.get_by_role("button", name="New conversation").click()
        visible(page.locator(".start"))
        with page.expect_response(re.compile("/gradio_api/run/")):  # the view that follows the late one
            cleared.set()
        visible(page.locator(".start"))
        sync_api.expect(answers(page)).to_have_count(0)


def test_what_is_typed_while_a_new_conversation_opens_is_kept(page, models, tokenizer, monkeypatch):
    clear, typed = chat._clear, threading.Event()

    def late(turns):
        typed.wait(PATIENCE / 1000)
        return clear(turns)

    monkeypatch.setattr(chat, "_clear", late)
    with serving(Service(models, Says(["fine"]), tokenizer)) as url:
        visit(page, url)
        send(page, "hello")
        says(answers(page), "fine")
        page.get_by_role("button", name="New conversation").click()
        page.locator("#box textarea").fill("the next question")
        typed.set()
        visible(page.locator(".start"))
        page.wait_for_timeout(500)  # until the box would have been emptied
        sync_api.expect(page.locator("#box textarea")).to_have_value("the next question")


def test_retry_that_comes_after_new_conversation_leaves_the_box_free(page, models, tokenizer, monkeypatch):
    retry, cleared, retried = chat._retry, threading.Event(), threading.Event()

    def late(turns):
        cleared.wait(PATIENCE / 1000)
        retried.set()
        return retry(turns)

    monkeypatch.setattr(chat, "_retry", late)
    with serving(Service(models, Says(["fine"]), tokenizer)) as url:
        visit(page, url)
        send(page, "hello")
        says(answers(page), "fine")
        page.locator("[data-do=retry]").click()
        page.get_by_role("button", name="New conversation").click()
        visible(page.locator(".start"))
        with page.expect_response(
            re.compile("/gradio_api/queue/join")
        ):  # behind the retry: an answer, to nothing
            cleared.set()
        until(page, retried.is_set)
        send(page, "and now?")
        says(answers(page), "fine")
        sync_api.expect(stop(page)).to_have_count(0)
        page.get_by_role("button", name="New conversation").click()
        sync_api.expect(stop(page)).to_have_count(0)


def test_a_view_that_comes_late_does_not_cover_a_later_one(page, models, tokenizer, monkeypatch):
    undo, answered, ended = chat._undo, threading.Event(), threading.Event()

    def late(turns):
        view = undo(turns)
        answered.wait(PATIENCE / 1000)
        ended.set()
        return view

    monkeypatch.setattr(chat, "_undo", late)
    with serving(Service(models, Says(["fine"]), tokenizer)) as url:
        visit(page, url)
        send(page, "hello")
        says(answers(page), "fine")
        page.locator("[data-do=undo]").click()
        send(page, "and now?")
        says(page.locator("#chatbot [data-testid=user]").last, "and now?")
        says(answers(page).last, "fine")
        answered.set()
        until(page, ended.is_set)
        page.wait_for_timeout(500)  # until the late view is there
        sync_api.expect(page.locator(".start")).to_have_count(0)
        says(answers(page), "fine")


def test_of_two_conversations_opened_quickly_the_second_is_shown(page, models, tokenizer, monkeypatch):
    read, opened, ended = chat.read_stored, threading.Event(), threading.Event()

    def slowly(text):
        if "the first" in text:
            opened.wait(PATIENCE / 1000)
            ended.set()
        return read(text)

    with serving(Service(models, Says(["fine"]), tokenizer)) as url:
        visit(page, url)
        for question in ("the first", "the second"):
            send(page, question)
            says(answers(page), "fine")
            page.get_by_role("button", name="New conversation").click()
            visible(page.locator(".start"))
        monkeypatch.setattr(chat, "read_stored", slowly)
        chats = page.locator("#chats")
        with page.expect_request(re.compile("/gradio_api/queue/join")):
            chats.get_by_role("button", name="the first", exact=True).click()
        chats.get_by_role("button", name="the second", exact=True).click()
        says(page.locator("#chatbot [data-testid=user]"), "the second")
        opened.set()
        until(page, ended.is_set)
        page.wait_for_timeout(500)  # until the first one's view is there
        says(page.locator("#chatbot [data-testid=user]"), "the second")
        send(page, "more")
        sync_api.expect(answers(page)).to_have_count(2)


def test_retry_asks_with_another_seed_and_a_set_seed_is_kept(page, models, tokenizer):
    class Counts(Says):
        def stream(self, jobs):
            self.pieces = [f"answer {len(self.asked) + 1}"]
            return super().stream(jobs)

    engine = Counts([])
    with serving(Service(models, engine, tokenizer)) as url:
        visit(page, url)
        send(page, "hello")
        for count in (1, 2):
            says(answers(page).last, f"answer {count}")
            page.locator("[data-do=retry]").click()
        says(answers(page).last, "answer 3")
        assert len({jobs[0].sampling.seed for jobs in engine.asked}) == 3
        page.get_by_role("textbox", name="Seed").first.fill("7")
        page.locator("[data-do=retry]").click()
        says(answers(page).last, "answer 4")
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
        assert talk["y"] + talk["height"] <= box["y"] + 1, "nothing covers the composer"
        bottom = "[...document.querySelectorAll('.turn')].at(-1).getBoundingClientRect().bottom"
        page.wait_for_function(f"end => {bottom} <= end + 1", arg=talk["y"] + talk["height"])


def test_conversations_outlive_a_reload_and_a_lost_connection_and_files_come_back(
    page, slow, address, tmp_path
):
    """The server is asked through a wire that is pulled out for four seconds while an answer grows."""
    chats = page.locator("#chats li")
    wire = Wire(int(slow.url.rsplit(":", 1)[1]))
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
    until_free(page, slow.service)  # of whom the wire was cut off from
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
    delete = page.get_by_role("button", name="Delete about x")
    delete.click()
    says(delete, "sure?")  # for four seconds, which a busy machine may need between two clicks
    until(page, lambda: delete.count() == 0 or delete.click())
    sync_api.expect(page.locator("#chats")).not_to_contain_text("about x")


def test_formulas_are_typeset_and_strength_and_probabilities_reach_the_model(page, models, tokenizer):
    class Scores(Says):
        def score(self, job, ids, likeliest):
            self.scored = job
            for token in ids:
                yield TokenScore(token, tokenizer.decode([token]), math.log(0.04), (Likely(1, "y", -0.1),))
            hidden.wait(
                PATIENCE / 1000
            )  # all tokens are shown and the scoring has not ended: "Hide" works then too

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
        hidden.set()


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
    """Wait until its whole box is in the window, and a click in its middle hits it."""
    locator = page.locator(selector).first
    visible(locator)
    fits = """([element, width, height]) => {
        const {left, right, top, bottom} = element.getBoundingClientRect();
        const hit = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
        return left >= 0 && top >= 0 && right <= width && bottom <= height && element.contains(hit);
    }"""
    page.wait_for_function(fits, arg=[locator.element_handle(), width, height])


AXE = os.environ.get("AXE_CORE")


@pytest.mark.skipif(not AXE, reason="AXE_CORE does not name axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(browser, address, scheme, width):
    context = patient(
        browser, viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
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
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
    page.evaluate(Path(AXE).read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    result = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
    return [
        f"{where}: {one['id']}: {one['nodes'][0]['target']}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]
