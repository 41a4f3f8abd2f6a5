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
.figures { margin-top: .4em; font-size: .8em; color: var(--neutral-600); } .dark .figures { color: var(--neutral-300); }
.block.answer { min-width: 240px !important; border: 1px solid var(--border-color-primary) !important; border-radius: 8px; }
.body, .answer { overflow-wrap: anywhere; min-width: 0; line-height: 1.5; }
.body p, .body ul, .body ol, .body pre, .body table, .body blockquote { margin: 0 0 .6em; }
.body > :last-child { margin-bottom: 0; }
.body ul { list-style: disc; padding-inline-start: 1.4em; } .body ol { list-style: decimal; padding-inline-start: 1.6em; }
.body h1, .body h2, .body h3, .body h4, .body h5, .body h6 { font-size: 1.05em; font-weight: 650; margin: .6em 0 .3em; }
.body blockquote { border-inline-start: 3px solid var(--border-color-primary); padding-inline-start: .8em; }
.body pre { overflow-x: auto; overflow-wrap: normal; padding: .7em .9em; border-radius: 6px; background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.body code { font-family: var(--font-mono); font-size: .92em; } .body pre code { white-space: pre; }
.body table { display: block; width: max-content; max-width: 100%; overflow-x: auto; overflow-wrap: normal; border-collapse: collapse; border: 0 !important; padding: 0 !important; }
.body li { margin: 0; } .body table { margin-left: 0 !important; }
.body th, .body td { border: 1px solid var(--border-color-primary); padding: .25em .6em; }
.body .plain { white-space: pre-wrap; } .note { font-style: italic; }
#chatbot { contain: inline-size; height: 58vh; min-height: 340px; overflow: hidden auto !important; padding: 12px !important; border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--background-fill-primary); }
.talk { display: flex; flex-direction: column; gap: .7em; }
.answer { contain: inline-size; }
.turn { max-width: min(85%, 46em); } .turn.user { align-self: flex-end; } .turn.assistant { align-self: flex-start; }
.turn textarea { width: min(34em, 70vw); max-width: 100%; font: inherit; color: inherit; background: var(--input-background-fill); border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .4em; }
.bubble { padding: .6em .9em; border-radius: 10px; color: var(--body-text-color); background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.turn.user .bubble { background: var(--color-accent-soft); border-color: var(--border-color-accent-subdued); }
.turn .actions { display: flex; gap: .2em; } .turn.user .actions { justify-content: flex-end; }
.turn .actions button { font-size: .8em; min-height: 24px; padding: 0 .5em; border-radius: 4px; color: var(--neutral-600); } .dark .turn .actions button { color: var(--neutral-300); }
.turn .actions button:hover, .start button:hover { background: var(--background-fill-secondary); color: var(--body-text-color); }
.turn button:focus-visible, .start button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.start { height: 100%; display: flex; flex-direction: column; justify-content: center; gap: 1em; text-align: center; }
.start h2 { font-weight: 600; font-size: 1.1em; } .start div { display: flex; flex-wrap: wrap; gap: .6em; justify-content: center; }
.start button { max-width: 22em; padding: .6em .9em; text-align: start; border: 1px solid var(--border-color-primary); border-radius: 8px; color: var(--body-text-color); }
#problems { border-left: 4px solid #d97706; padding-left: .8em; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } #chatbot { height: 46vh; min-height: 260px; } }
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
