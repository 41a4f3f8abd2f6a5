"""How the page looks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import gradio as gr

from abctune.core.params import BASE

ASSETS = Path(__file__).parent / "assets"
CSS = (ASSETS / "page.css").read_text(encoding="utf-8")
# The report's colors (stages/plot/figures/style.py, which a Space does not hold; a test compares the two).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASE_COLOR = "#000000"
# System fonts: Gradio's themes would fetch theirs from Google. The blues and greys all have a contrast of 4.5 or more.
THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    spacing_size=gr.themes.sizes.spacing_sm,
    radius_size=gr.themes.sizes.radius_md,
    text_size=gr.themes.sizes.text_sm,
    font=["system-ui", "Segoe UI", "Helvetica Neue", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="#fbfbfa",
    body_background_fill_dark="#14171b",
    body_text_color="#1b1f24",
    body_text_color_dark="#e8eaed",
    body_text_color_subdued="#525b66",
    body_text_color_subdued_dark="#a9b2bd",
    color_accent="#00588a",
    link_text_color="#00588a",
    link_text_color_dark="#7cc0ec",
    block_background_fill="#ffffff",
    block_background_fill_dark="#1b1f24",
    block_border_width="1px",
    block_border_color="#d9dde3",
    block_border_color_dark="#353b43",
    border_color_primary="#d9dde3",
    border_color_primary_dark="#353b43",
    block_label_text_color="#1b1f24",
    block_label_text_color_dark="#e8eaed",
    block_title_text_color="#1b1f24",
    block_title_text_color_dark="#e8eaed",
    block_title_text_weight="600",
    block_info_text_color="#525b66",
    block_info_text_color_dark="#a9b2bd",
    input_shadow="none",
    input_shadow_focus="none",
    input_border_color="#8b939e",
    input_border_color_dark="#6b7480",
    input_background_fill="#ffffff",
    input_background_fill_dark="#14171b",
    input_placeholder_color="#525b66",
    input_placeholder_color_dark="#a9b2bd",
    slider_color="#00588a",
    slider_color_dark="#7cc0ec",
    button_border_width="1px",
    button_primary_border_color="#00588a",
    button_primary_background_fill="#00588a",
    button_primary_background_fill_hover="#004a75",
    button_primary_background_fill_dark="#00639c",
    button_primary_text_color="#ffffff",
    button_secondary_background_fill="#ffffff",
    button_secondary_background_fill_dark="#23282f",
    button_secondary_border_color="#8b939e",
    button_secondary_border_color_dark="#4b5563",
    button_secondary_text_color="#1b1f24",
    button_secondary_text_color_dark="#e8eaed",
    checkbox_background_color_selected="#00588a",
    checkbox_background_color_selected_dark="#00639c",
)


def colors_of(variants: Iterable[str]) -> dict[str, str]:
    """The color of each model, by the order of the variants in params.yaml as in the report; base is black."""
    return {BASE: BASE_COLOR} | {name: COLORS[place % len(COLORS)] for place, name in enumerate(variants)}


def katex_script() -> str:
    """What typesets formulas with the KaTeX that Gradio brings for its own Chatbot; nothing where it brings none."""
    folder = Path(gr.__file__).parent / "templates/frontend/assets"
    found = [next(iter(sorted(folder.glob(f"katex-*.{kind}"))), None) for kind in ("js", "css")]
    if not all(found):
        return ""
    script, style = (json.dumps(f"assets/{file.name}") for file in found if file)
    return (
        (ASSETS / "typeset.js").read_text(encoding="utf-8").replace("SCRIPT", script).replace("STYLE", style)
    )
