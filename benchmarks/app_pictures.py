"""The pictures of docs/app.md: `python -m benchmarks.app_pictures`.

Starts `python -m app` on the models of this workspace, talks to it in Debian's Chromium (`apt-get install chromium`) and
writes docs/app-*.png: desktop light and dark, phone, comparison, results. Answers are greedy or have a set seed, so that
the same models give the same pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from playwright.sync_api import Browser, Page, expect, sync_playwright

from abctune.core.errors import UserError, exits_with_one_line
from benchmarks.app_load import ours

DOCS = Path("docs")
DESKTOP, PHONE, LONG = (1280, 800), (390, 844), (1280, 1180)
TALK = ("What superpower do you wish you had?", "And what would you do with it first?")
OTHER = "What did you have for breakfast?"
COMPARED = "Do you prefer mountains or the sea?"


@exits_with_one_line
def main(out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = DOCS) -> None:
    """Take all pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise UserError("chromium is not on the PATH: `apt-get install chromium`")
    expect.set_options(timeout=120_000)
    with ours() as demo, sync_playwright() as playwright:
        address = demo.url.removesuffix("/v1/chat/completions")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with opened(browser, address, "light", DESKTOP) as page:
            talk(page)
            take(page, out / "app-chat.png")
            page.get_by_role("tab", name="Compare").click()
            compare(page)
            take(page, out / "app-compare.png")
            page.set_viewport_size({"width": LONG[0], "height": LONG[1]})
            page.get_by_role("tab", name="Results").click()
            expect(page.locator("#results table")).to_be_visible()
            take(page, out / "app-results.png")
        for name, size in (("app-dark", DESKTOP), ("app-phone", PHONE)):
            with opened(browser, address, "dark", size) as page:
                talk(page)
                take(page, out / f"{name}.png")


@contextmanager
def opened(
    browser: Browser, address: str, scheme: Literal["light", "dark"], size: tuple[int, int]
) -> Iterator[Page]:
    """The page in a new browser profile, its models loaded."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=1
    )
    context.set_default_timeout(120_000)
    page = context.new_page()
    with page.expect_response("**/gradio_api/**"):
        page.goto(address)
    expect(page.locator("#status progress")).to_have_count(0)
    page.get_by_role("textbox", name="Seed").first.fill("7")
    yield page
    context.close()


def talk(page: Page) -> None:
    """Two conversations, of which the second is open."""
    for number, questions in enumerate(((OTHER,), TALK)):
        if number:
            page.get_by_role("button", name="New conversation").click()
            expect(page.locator(".start")).to_be_visible()
        for count, question in enumerate(questions, 1):
            page.locator("#box textarea").fill(question)
            page.locator("#box textarea").press("Enter")
            expect(page.locator("#chatbot [data-testid=bot]")).to_have_count(count)
            expect(page.locator("[data-do=retry]")).to_have_count(1)


def compare(page: Page) -> None:
    """One question to all models, names hidden, differences marked: greedy, as sampled answers have little in common."""
    more = page.get_by_role("button", name="System prompt and sampling")
    more.click()
    page.get_by_label("number input for Temperature").last.fill("0")
    page.get_by_label("number input for Temperature").last.press("Tab")
    more.click()
    page.locator("#compare-box textarea").fill(COMPARED)
    page.locator("#ask-all").click()
    expect(page.locator("#prefer")).to_be_visible()
    page.locator("#mark-differences input").check()
    expect(page.locator("#rounds mark").first).to_be_visible()


def take(page: Page, file: Path) -> None:
    """What is in the window, once nothing moves."""
    page.locator("h1").first.click()  # no focus ring around what was pressed last
    for part in ("#right", "#left", ".tabitem"):
        for one in page.locator(part).all():
            one.evaluate("one => { one.scrollTop = 0; }")
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
    page.screenshot(path=file)
    print(file)


if __name__ == "__main__":
    typer.run(main)
