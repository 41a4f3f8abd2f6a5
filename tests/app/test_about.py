"""What the page tells of the models and of the study, and what it takes back from a browser."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import gradio
import pytest

from app import gradio_stubs
from app.about import facts, model_colors
from app.engines.loading import LoadingEngine
from app.gradio_stubs import _WithoutStubs
from app.models import UNSCORED, Adapter, Models, trained_since_scored
from app.page import _loading, build_page
from app.page.compare import CompareState, Setup, _run, differences_html
from app.page.conversation import display, messages, read_stored
from app.page.results import results_html
from app.page.style import COLORS, katex_script
from app.request import Refused
from app.service import Service
from stages.plot.colors import COLORS as OF_THE_REPORT
from tests.app.test_load import Says


@pytest.fixture(scope="module")
def study(reported, tmp_path_factory) -> Path:
    """A finished study with its report, without weights."""
    root = shutil.copytree(reported, tmp_path_factory.mktemp("study") / "study")
    for name in "ABC":
        (root / "models" / name).mkdir(parents=True)
        shutil.copy(root / "metrics/collected" / name / "training.json", root / "models" / name)
    return root


def served(*roots: Path) -> Service:
    """A service on the studies, as `--rev a --rev b` makes it."""
    several = len(roots) > 1
    adapters = {
        (key := f"{name}@{root.name}" if several else name): Adapter(
            key, root / "models" / name, "0123456789abcdef"
        )
        for root in roots
        for name in "ABC"
    }
    models = Models(roots[0] / "models/base", adapters, {"C": 2.5}, root=roots[0], variants=("A", "B", "C"))
    return Service(models, Says(["x"]), None)


def test_a_model_tells_its_data_steps_replicate_and_verdict(study):
    found = facts(served(study), "C")
    assert "conversations seen" in found["Data"] and "instruct" in found["Data"]
    assert " of " in found["Steps"] and "peak rate" in found["Steps"]
    assert found["Replicate"].startswith("1 of ") and "seed" in found["Replicate"]
    summary = json.loads((study / "metrics/summary.json").read_text())
    assert found["Against base"] == f"{summary['C']['vs_base']}, 2.500 nats"
    assert found["Adapter"] == "SHA-256 0123456789ab"


def test_figures_of_an_earlier_adapter_are_not_shown_as_those_of_the_one_that_is_served(study, tmp_path):
    lock = "stages:\n"
    for name, scored in (("B", "old"), ("C", "new")):
        entry = f"    - {{path: models/{name}, md5: %s}}\n"
        lock += f"  train@{name}:\n    outs:\n{entry % 'new'}  eval@{name}:\n    deps:\n{entry % scored}"
    (tmp_path / "dvc.lock").write_text(lock)
    assert trained_since_scored(tmp_path / "dvc.lock", ["A", "B", "C"]) == {"B"}
    service = served(study)
    assert "Trained again" not in results_html(service)
    service.models = replace(service.models, unscored=frozenset({"B"}))
    assert facts(service, "B")["Against base"] == UNSCORED and "nats" in facts(service, "C")["Against base"]
    assert "not what is below: B." in results_html(service)


def test_results_show_the_reports_verdicts_and_figures_of_each_study(study, tmp_path):
    html = results_html(served(study))
    headlines = json.loads((study / "metrics/study.json").read_text())["headlines"]
    assert all(line.replace("'", "&#x27;") in html for line in headlines)
    assert html.count('<img src="data:image/svg+xml;base64,') == 3
    other = tmp_path / ("a" * 40)
    shutil.copytree(study, other)
    both = served(study, other)
    html = results_html(both)
    assert html.count("<section>") == 2 and "revision aaaaaaaaaa" in html
    assert facts(both, f"C@{other.name}")["From"] == "revision aaaaaaaaaa"
    colors = model_colors(both.models)
    assert colors[f"B@{other.name}"] == colors[f"B@{study.name}"] == COLORS[1] and colors["base"] == "#000000"
    assert "No results here" in results_html(served(tmp_path / "empty"))


def test_the_page_says_that_the_models_are_loading_until_they_are(models):
    ready = threading.Event()

    def load():
        ready.wait(10)
        return Says(["x"])

    engine = LoadingEngine("llama.cpp", 512, 1, False, load, failed=pytest.fail)
    build_page(Service(models, engine))  # is there before loading has begun, and needs no tokenizer
    engine.begin()
    said = _loading(engine)
    assert "The models are loading" in next(said)
    ready.set()
    assert list(said)[-1] == ""


def test_gradio_is_imported_without_writing_stub_files():
    spec = _WithoutStubs().find_spec(gradio_stubs.MODULE, gradio.__path__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "create_or_modify_pyi(component_class" in inspect.getsource(module.ComponentMeta.__new__)
    assert module.create_or_modify_pyi("no class", "name", []) is None


def test_colors_are_the_reports_and_formulas_need_no_network():
    assert COLORS == OF_THE_REPORT
    assert "assets/katex-" in katex_script(), "Gradio brings KaTeX under another name"


def test_a_kept_conversation_is_read_back_with_what_its_answers_depend_on():
    how = {
        "model": "B",
        "answer_tokens": 1,
        "finish": "stop",
        "seed": 7,
        "adapter_strength": 0.5,
        "system": "be kind",
    }
    kept = {
        "key": "abc123",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello", "how": how},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "was grow"},
        ],
    }
    turns = read_stored(json.dumps(kept))
    rows = display(turns).rows
    assert turns.key == "abc123" and rows[1]["how"] == how
    assert rows[1]["figures"] == "B · strength 0.5 · 1 token"
    assert "interrupted" in rows[3]["figures"]
    assert [message["content"] for message in messages(turns, "")] == ["hi", "hello", "more", "was grow"]


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[]",
        "{",
        '{"key": "a", "messages": []}',
        '{"key": "<b>", "messages": [{"role": "user", "content": "x"}]}',
        '{"key": "a", "messages": [{"role": "system", "content": "x"}]}',
        '{"key": "a", "messages": [{"role": "user", "content": 7}]}',
        '{"key": "a", "messages": [{"role": "assistant", "content": "x", "how": {"answer_tokens": "many"}}]}',
        json.dumps({"key": "a", "messages": [{"role": "user", "content": "x" * 16_001}]}),
        json.dumps({"key": "a", "messages": [{"role": "user", "content": "x"}] * 201}),
        "x" * 4_000_001,
        7,
    ],
)
def test_what_is_no_kept_conversation_is_refused(kept):
    with pytest.raises(Refused):
        read_stored(kept)


def test_differences_are_the_words_that_no_other_answer_has():
    assert differences_html("it is <4> now", ["it is five", "now it is"]) == (
        '<p dir="auto" class="plain">it is <mark>&lt;4&gt;</mark> <mark>now</mark></p>'
    )
    assert "<mark>" not in differences_html("all the same", ["all the same"])


def test_each_model_of_a_comparison_goes_on_from_its_own_answers(service):
    state, setup = CompareState(), Setup(("A", "base"), system="be kind")
    for prompt in ("one", "two"):
        list(_run(service, state, prompt, setup, (0.7, 0.9, 16, 1.1, 1)))
    now = state.comparison
    for place, name in enumerate(now.order):
        read = now.messages(place)
        assert [message["role"] for message in read] == ["system", "user", "assistant", "user", "assistant"]
        assert set(read[2]["content"]) == {{"base": "z"}.get(name, name.lower())}
    assert [turn.prompt for turn in now.turns] == ["one", "two"]
