"""`dvc plots show` and `diff`: one colour per variant, one dash per revision, and a page that needs no network."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.workspace import Workspace

CURVES = ("plots/train_loss.csv", "plots/eval_loss.csv", "plots/learning_rate.csv")
A, B, C, BASE = "#0072B2", "#D55E00", "#009E73", "#000000"
COLOUR = {"A": A, "B": B, "C": C}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# The color behind the first chart, and of its text, as red, green and blue.
PAGE_AND_TEXT = """() => {
    const chart = document.querySelector("svg.marks"), style = (of, name) => getComputedStyle(of)[name].match(/\\d+/g)
    return [style(chart, "backgroundColor"), style(chart.querySelector("text"), "fill")].map((rgb) => rgb.map(Number))
}"""


Drawn = Callable[..., ElementTree.Element]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, study_once: Path) -> Workspace:
    """The study with the page that needs no network, for tests that change nothing but what DVC plots."""
    root = tmp_path_factory.mktemp("offline") / "study"
    project = Workspace(shutil.copytree(study_once, root, symlinks=True))
    project.tool("vega_page")
    return project


@pytest.fixture(scope="module")
def drawn(offline: Workspace) -> Drawn:
    """Draws a chart of `dvc plots diff`, given its path and the revisions, as SVG; DVC is asked once for all charts."""

    @cache
    def shown(*revisions: str) -> dict:
        found = json.loads(offline.run("dvc", "plots", "diff", *revisions, "--json").stdout)
        assert "errors" not in found
        return found["data"]

    @cache
    def draw(path: str, *revisions: str) -> ElementTree.Element:
        import vl_convert

        spec = shown(*revisions)[path][0]["content"]
        spec = json.loads(spec) if isinstance(spec, str) else spec
        return ElementTree.fromstring(vl_convert.vegalite_to_svg(spec, vl_version="5.21"))

    return draw


def strokes(svg: ElementTree.Element, mark: str) -> Counter[tuple[str, str]]:
    """(colour, dash) of every drawn line of a kind of mark, legends left out."""
    found: Counter[tuple[str, str]] = Counter()
    for group in svg.iter("{http://www.w3.org/2000/svg}g"):
        name = group.get("class", "")
        if mark in name.split() and "role-mark" in name:
            for path in group:
                if path.get("opacity") != "0" and path.get("stroke"):
                    found[path.get("stroke").upper(), path.get("stroke-dasharray", "")] += 1
    return found


@pytest.mark.parametrize("revisions", [("main", "b-rate"), ("main", "b-rate", "seed-1")])
def test_colour_is_the_variant_and_dash_the_revision_in_every_chart(drawn, revisions):
    for path in CURVES:
        lines = strokes(drawn(path, *revisions), "mark-line")
        variants = "BC" if "eval" in path else "ABC"
        assert {colour for colour, _ in lines} == {COLOUR[v] for v in variants}, path
        dashes = {dash for _, dash in lines}
        assert len(dashes) == len(revisions), path
        assert lines == Counter((COLOUR[v], dash) for v in variants for dash in dashes), path


def test_the_first_revision_named_is_the_solid_one(drawn):
    for first, second in (("main", "b-rate"), ("b-rate", "main")):
        svg = drawn(CURVES[0], first, second)
        labels = [
            path.get("aria-label", "")
            for path in svg.iter("{http://www.w3.org/2000/svg}path")
            if path.get("stroke-dasharray") == "1,0"
        ]
        assert any(label.endswith(f"revision: {first}") for label in labels)
        assert not any(label.endswith(f"revision: {second}") for label in labels)


def test_a_step_comes_after_the_one_before(drawn):
    """As text, step 10 would come before step 2, and the line would run back and forth."""
    svg = drawn(CURVES[0], "main", "b-rate")
    for group in svg.iter("{http://www.w3.org/2000/svg}g"):
        if "mark-line role-mark" in group.get("class", ""):
            for path in group:
                xs = [float(x) for x in re.findall(r"[ML]([\d.]+),", path.get("d", ""))]
                assert xs == sorted(xs)


def test_loss_per_source_has_every_model_and_interval_of_every_revision(drawn):
    lines = strokes(drawn("plots/test_loss.csv", "main", "b-rate"), "mark-rule")
    dashes = {dash for _, dash in lines}
    assert len(dashes) == 2
    # overall, chat, instruct and general text
    assert lines == Counter({(colour, dash): 4 for colour in (BASE, A, B, C) for dash in dashes})


def test_images_stand_side_by_side(offline):
    offline.run("dvc", "plots", "diff", "main", "b-rate")
    page = (offline.root / "dvc_plots/index.html").read_text()
    for image in ("forest", "resources"):
        found = re.findall(rf'<img src="(static/[^"]*{image}\.svg)"', page)
        assert len(found) == 2
        assert all((offline.root / "dvc_plots" / path).stat().st_size for path in found)


def test_without_the_offline_page_dvcs_own_is_used(study):
    study.run("dvc", "plots", "show")
    assert "https://cdn.jsdelivr.net" in (study.root / "dvc_plots/index.html").read_text()


def test_the_offline_page_is_not_in_git(offline):
    assert (offline.root / ".dvc/plots/offline.html").exists()
    assert not offline.git("status", "--porcelain")


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize(
    "command", [("show",), ("diff", "main", "b-rate"), ("diff", "main", "b-rate", "seed-1")]
)
def test_the_page_renders_in_a_browser_without_a_network(offline, chromium, command):
    offline.run("dvc", "plots", *command)
    page_url = (offline.root / "dvc_plots/index.html").as_uri()
    asked, errors = [], []
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_url)
    page.wait_for_function("document.querySelectorAll('svg.marks').length >= 4", timeout=120_000)
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('svg.marks')].map(svg =>
             [svg.getBoundingClientRect().width, svg.querySelectorAll('.role-mark path').length])"""
    )
    images = page.evaluate("() => [...document.images].map(image => image.naturalWidth)")
    if command == ("show",):  # on a phone nothing is wider than the screen
        page.set_viewport_size({"width": 390, "height": 844})
        page.reload()
        page.wait_for_function("document.querySelectorAll('svg.marks').length >= 4", timeout=120_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(PAGE_AND_TEXT) == [[20, 23, 27], [232, 234, 237]]
        page.emulate_media(color_scheme="dark", media="print")  # paper is white
        assert page.evaluate(PAGE_AND_TEXT)[1] == [0, 0, 0]
    context.close()
    assert not errors
    assert all(url.startswith(("file://", "data:", "blob:")) for url in asked)
    assert len(boxes) == 4 and all(width > 300 and marks >= 4 for width, marks in boxes)
    assert images and all(width > 0 for width in images)
