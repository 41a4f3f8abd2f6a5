"""The web page: a chat, and a comparison of all models side by side."""

from __future__ import annotations

import gradio as gr

from app.page.api import add_api
from app.page.chat import chat_tab
from app.page.compare import compare_tab
from app.service import Service

# A long word is broken, or a phone scrolls sideways. The class of an answer is on its box and on the text inside; only
# the box has a border.
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#title p { margin: 0; } #title h1 { margin: 0 0 .1em; }
.figures { display: block; margin-top: .5em; opacity: .7; font-size: .8em; }
.block.answer { min-width: 240px !important; border: 1px solid var(--border-color-primary) !important; border-radius: 8px; }
#chatbot .message, #chatbot .message-wrap, .answer { overflow-wrap: anywhere; word-break: break-word; min-width: 0; }
.note { font-style: italic; }
#problems { border-left: 4px solid #d97706; padding-left: .8em; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } }
"""
# System fonts: Gradio's themes would fetch theirs from Google.
THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    block_border_width="1px",
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
)


def build_page(service: Service) -> gr.Blocks:
    models = service.models
    with gr.Blocks(title="abctune", analytics_enabled=False) as page:
        gr.Markdown(
            f"# abctune\nThe base model and what was fine-tuned from it ({', '.join(models.adapters) or 'nothing yet'}), on this machine "
            f"({service.engine.name}). A lower test loss means closer to the training data's style, not truer.",
            elem_id="title",
        )
        if models.problems:
            lines = "\n".join(f"- {problem}" for problem in models.problems)
            gr.Markdown(f"Not served:\n\n{lines}", elem_id="problems")
        with gr.Tab("Chat"):
            chat_tab(service)
        with gr.Tab("Compare"):
            compare_tab(service)
        add_api(service)
    return page
