"""The web page: a chat, a comparison of the models side by side, and the results of the study they are from."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import gradio as gr

from app.engines import Engine
from app.engines.loading import LoadingEngine
from app.page.api import add_api
from app.page.chat import chat_tab
from app.page.compare import compare_tab
from app.page.parts import PRIVATE, QUEUE
from app.page.results import results_html
from app.page.style import ASSETS, katex_script
from app.service import Service


def build_page(service: Service) -> gr.Blocks:
    """The page with all its tabs."""
    models = service.models
    with gr.Blocks(title="abctune", analytics_enabled=False) as page:
        gr.HTML(
            f"<div class='head'><h1>abctune</h1><p>The base model and what was fine-tuned from it "
            f"({escape(', '.join(models.adapters) or 'nothing yet')}), on this machine.</p></div>",
            js_on_load=katex_script() + (ASSETS / "names.js").read_text("utf-8"),
            apply_default_css=False,
            elem_id="title",
        )
        status = gr.HTML("", apply_default_css=False, elem_id="status")

        def loading() -> Iterator[str]:
            """The status line while the models load."""
            yield from _loading(service.engine)

        page.load(loading, None, [status], show_progress="hidden", **QUEUE, **PRIVATE)
        if models.problems:
            lines = "\n".join(f"- {problem}" for problem in models.problems)
            gr.Markdown(f"Not served:\n\n{lines}", elem_id="problems")
        with gr.Tab("Chat"):
            chat_tab(service, page)
        with gr.Tab("Compare"):
            compare_tab(service)
        with gr.Tab("Results"):
            gr.HTML(results_html(service), apply_default_css=False, elem_id="results")
        add_api(service)
    return page


def _loading(engine: Engine) -> Iterator[str]:
    """What the page says until the models are loaded."""
    while isinstance(engine, LoadingEngine) and not engine.ready(0.5):
        yield (
            '<p role="status"><progress aria-label="Loading the models"></progress> The models are loading, for '
            f"{engine.waited():.0f} s so far. What you ask now is answered when they are there.</p>"
        )
    yield ""
