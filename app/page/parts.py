"""What both tabs show: the settings, and the small print under an answer."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.request import Sampling, read_sampling
from app.service import Reply

DEFAULTS = Sampling()
FINISH = {
    "length": "cut at the token limit",
    "time": "cut at the time limit",
    "stopped": "stopped",
}
PRIVATE: dict[str, Any] = {
    "api_visibility": "private"
}  # events of the page itself; programs use app.page.api
QUEUE: dict[str, Any] = {"concurrency_limit": None}  # app.service's line decides who is answered when


def sampling_controls() -> list[gr.components.Component]:
    """Sliders in the order of `sampling_of`'s arguments."""
    return [
        gr.Slider(0, 1.5, DEFAULTS.temperature, step=0.05, label="Temperature", info="0: the likeliest"),
        gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.05, label="Top-p"),
        gr.Slider(16, 1024, DEFAULTS.max_new_tokens, step=16, label="Max tokens"),
        gr.Slider(1, 2, DEFAULTS.repetition_penalty, step=0.05, label="Repetition"),
        # Text, because Gradio's number field shows 0 where there is none, and sends it.
        gr.Textbox(label="Seed", placeholder="drawn for each answer", max_lines=1, max_length=10),
    ]


def sampling_of(
    temperature: Any, top_p: Any, max_new_tokens: Any, repetition_penalty: Any, seed: Any
) -> Sampling:
    return read_sampling(
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        seed=None if isinstance(seed, str) and not seed.strip() else seed,
    )


def figures(reply: Reply, name: str | None, finish: str | None) -> str:
    """The small print: which model, how fast, why it ended, what was left out."""
    parts = [name] if name else []
    parts.append(f"{reply.n_tokens} token{'s' * (reply.n_tokens != 1)}")
    if name and reply.tokens_per_second is not None:
        parts.append(f"{reply.tokens_per_second:.0f} tokens/s")
    if name and reply.first_token_seconds is not None:
        parts.append(f"first after {reply.first_token_seconds:.2f} s")
    if finish in FINISH:
        parts.append(FINISH[finish])
    if reply.dropped:
        parts.append(f"the oldest {reply.dropped} messages no longer fit the context and were left out")
    return " · ".join(parts)


def in_line(ahead: int) -> str:
    return f"waiting: {ahead} {'answer' if ahead == 1 else 'answers'} before yours …"
