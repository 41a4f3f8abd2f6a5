"""The report: self-contained, safe against what models write, honest about what it cannot show."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from abctune.study.rendering import environment
from stages.plot.__main__ import main
from stages.plot.colors import DARK
from stages.plot.figures.curves import spread
from stages.plot.figures.style import DASHES, MARKERS, styles_of
from tests.plot.fake_run import PROMPTS, RECIPES, collect, effect

HOSTILE = '<script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(1)></div>{{ 7 * 7 }} | \x1b[31m \x00 "quoted"'


class Page(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def plain(reported, monkeypatch) -> None:
    monkeypatch.chdir(reported)


def page() -> Page:
    return Page(Path("plots/report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script(plain):
    for tag, attributes in page().tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    css = re.search(r"<style>(.*)</style>", Path("plots/report.html").read_text(), re.S)[1]
    assert "url(" not in css and "@import" not in css


def test_the_page_is_well_formed(plain):
    assert page().open == []


def test_a_models_answer_cannot_become_markup(fake_run, undrawn):
    fake_run()
    path = Path("metrics/eval/B/samples.jsonl")
    rows = [json.loads(line) | {"answer": HOSTILE} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collect(Path(), "B")
    main()
    shown = page()
    assert "<script>alert(1)</script>" in shown.text and "{{ 7 * 7 }}" in shown.text  # as text
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script"})
    assert not any("evil" in str(attributes) for _, attributes in shown.tags)
    assert "\x1b" not in shown.text and "\x00" not in shown.text


def test_every_figure_has_alt_text_and_every_prompt_all_answers(plain):
    images = [attributes for tag, attributes in page().tags if tag == "img"]
    assert len(images) == 5
    assert all(len(image["alt"]) > 40 for image in images)
    text = page().text
    for prompt in PROMPTS:
        assert prompt in text
    assert all(text.count(f"{model} says: ") == len(PROMPTS) for model in ("base", "A", "B", "C"))


def test_verdicts_come_first_and_the_limits_are_named(plotted, undrawn):
    plotted({"C": effect(instruct=-0.3)})
    text = page().text
    assert text.index("C is better than base overall") < text.index("Test loss and paired differences")
    assert "does not mean that its answers are more often correct" in text
    assert "They do not cover the draw of the mix" in text


def test_the_reports_numbers_stand_beside_the_measured_ones_as_another_setting(plain):
    for text in (page().text, Path("plots/report.md").read_text()):
        for stated in ("394.6", "3053.8", "2975.0", "4.617", "7.508", "7.967", "0.461", "0.787", "0.780"):
            assert stated in text
        assert "ther model and data" in text
        assert "7.967 − 0.461 = 7.506" in text


def test_the_report_names_the_datas_versions_and_hashes(plain):
    assert "chat-data" in page().text and "ab" * 8 in page().text


def test_the_full_profile_is_the_reports_own_setting(plotted, undrawn):
    plotted(profile="full")
    assert "ther model and data" not in page().text


def test_warnings_of_training_reach_the_report(plain):
    assert "B: warmup_steps 50 >= max_steps 40" in page().text


def test_equal_results_leave_git_status_clean(fake_run):
    """Another commit, another day, changed files, a loss that differs in its sixth decimal: the same bytes."""
    fake_run()
    main()
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.invalid")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "params.yaml", "plots", "metrics/summary.json"], check=True)
    subprocess.run([*git, "commit", "-qm", "start"], check=True)
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# a comment\n")
    for path in Path("metrics/eval").glob("*/conversations.parquet"):
        rows = pd.read_parquet(path)
        rows.assign(nll=rows["nll"] * (1 + 1e-7)).to_parquet(path, index=False)
    collect()
    main()
    status = subprocess.run(
        [*git, "status", "--porcelain", "plots", "metrics/summary.json"], capture_output=True
    )
    assert status.stdout == b""


def test_figures_hold_no_date_and_no_address_to_load(plain):
    for path in Path("plots").glob("*.svg"):
        text = path.read_text()
        assert "<dc:date>" not in text
        assert not re.search(r'(?:xlink:)?href="(?!#)', text)


def test_every_color_of_a_figure_has_one_for_a_dark_browser(plain):
    for path in Path("plots").glob("*.svg"):
        drawing, rules = path.read_text(), path.read_text().count("@media (prefers-color-scheme: dark)")
        drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)
        used = set(re.findall(r"#[0-9a-f]{6}(?=[;\"])", drawing))
        assert used <= {light.lower() for light in DARK} and len(used) > 5, path
        assert rules == 1, path
    # Colors of the page itself are named once for light and once for dark.
    style = re.search(r"<style>(.*?)</style>", Path("plots/report.html").read_text(), re.DOTALL)[1]
    named = [set(re.findall(r"(--\w+): #", rule)) for rule in re.findall(r":root \{(.*?)\}", style)]
    assert named[0] == named[1] and len(named[0]) > 5
    assert not re.search(r"(?<!-): #[0-9a-f]{3}", re.sub(r":root \{.*?\}", "", style))


def test_a_variants_look_does_not_change_when_another_is_added():
    few, more = styles_of("ABC"), styles_of("ABCDEFG")
    assert {name: more[name] for name in few} == few
    assert few["base"].color == "#000000"
    assert len({(style.color, str(style.dash)) for style in styles_of(map(str, range(30))).values()}) == 31
    assert len(DASHES) > 3 and len(MARKERS) > 5


def test_many_variants_get_a_line_per_reference(plotted, undrawn):
    plotted(recipes={**RECIPES, "D": RECIPES["B"], "E": RECIPES["C"]})
    assert "Overall, compared with base (nats): A " in page().text


@pytest.mark.parametrize(
    "wanted", [{"a": 0.5, "b": 0.5, "c": 0.5}, {"a": 0.99, "b": 1.0, "c": 0.1}, {"a": 0.0, "b": 0.01}]
)
def test_labels_are_pushed_apart_and_stay_in_order(wanted):
    placed = spread(wanted, 0.1)
    positions = [placed[name] for name in sorted(wanted, key=wanted.__getitem__)]
    assert all(upper - lower >= 0.1 - 1e-9 for lower, upper in pairwise(positions))
    assert max(positions) <= 1 + 1e-9


def test_what_was_mended_in_the_rows_is_in_both_reports_by_kind(plain):
    for name in ("report.html", "report.md"):
        assert "mended: system messages joined: 1,234" in (Path("plots") / name).read_text(
            encoding="utf-8"
        ), name


def test_a_template_that_forgets_to_call_a_method_is_an_error():
    template = environment(escape=False).from_string("{{ name.upper }}")
    with pytest.raises(TypeError, match="instead of calling it"):
        template.render(name="x")
