"""What both tabs show: the settings, and the line of details below an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from abctune.core.params import BASE
from app.models import Models
from app.request import MAX_STRENGTH, Sampling, read_sampling
from app.service import Reply

DEFAULTS = Sampling()
FINISH = {
    "length": "cut at the token limit",
    "time": "cut at the time limit",
    "stopped": "stopped",
    "interrupted": "interrupted: the page lost its connection or was closed",
}
PRIVATE: dict[str, Any] = {
    "api_visibility": "private"
}  # events of the page itself; programs use app.page.api
QUEUE: dict[str, Any] = {"concurrency_limit": None}  # the queue of app.service decides who is answered when


def sampling_controls() -> list[gr.components.Component]:
    """Sliders in the order of `sampling_of`'s arguments."""
    return [
        gr.Slider(0, 1.5, DEFAULTS.temperature, step=0.05, label="Temperature", info="0: the likeliest"),
        gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.05, label="Top-p"),
        gr.Slider(16, 1024, DEFAULTS.max_new_tokens, step=16, label="Max tokens"),
        gr.Slider(1, 2, DEFAULTS.repetition_penalty, step=0.05, label="Repetition"),
        # Text, because Gradio's number field shows 0 where there is none, and sends it.
        gr.Textbox(label="Seed", placeholder="drawn for each answer", max_lines=1, max_length=10),
        gr.Slider(
            0,
            MAX_STRENGTH,
            DEFAULTS.adapter_strength,
            step=0.05,
            label="Adapter strength",
            info="0: the base; 1: as trained",
        ),
    ]


def sampling_of(
    temperature: Any, top_p: Any, max_new_tokens: Any, repetition_penalty: Any, seed: Any, strength: Any = 1.0
) -> Sampling:
    """Read and check the values of the controls.

    Raises:
        Refused: a value is impossible.
    """
    return read_sampling(
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        seed=None if isinstance(seed, str) and not seed.strip() else seed,
        adapter_strength=strength,
    )


def record_of(reply: Reply, models: Models) -> dict[str, Any]:
    """Everything that an answer depends on, and its figures; the downloaded JSON holds this record."""
    request = reply.request
    return {
        "model": request.model,
        "adapter_sha256": models.sha256(request.model),
        **request.sampling.model_dump(),
        "system": request.messages[0]["content"] if request.messages[0]["role"] == "system" else None,
        "dropped_messages": reply.dropped,
        "prompt_tokens": reply.n_prompt,
        "answer_tokens": reply.n_tokens,
        "finish": reply.finish or "stopped",
        "shared_batch": reply.shared_batch,
        "cached_tokens": reply.cached_tokens,
        "tokens_per_second": reply.tokens_per_second,
        "first_token_seconds": reply.first_token_seconds,
    }


def figures(record: Mapping[str, Any], hidden: bool = False) -> str:
    """The details of an answer: which model, how fast, why it ended, what was left out.

    Args:
        record: as record_of makes it, perhaps with fields missing.
        hidden: leave out what tells the models apart: speed tells the base from the adapters.
    """
    parts = []
    if not hidden and "model" in record:
        parts.append(str(record["model"]))
        if record.get("adapter_strength", 1.0) != 1.0 and record["model"] != BASE:
            parts.append(f"strength {record['adapter_strength']:g}")
    if (tokens := record.get("answer_tokens")) is not None:
        parts.append(f"{tokens} token{'s' * (tokens != 1)}")
    if not hidden and record.get("tokens_per_second") is not None:
        parts.append(f"{record['tokens_per_second']:.0f} tokens/s")
    if not hidden and record.get("first_token_seconds") is not None:
        parts.append(f"first after {record['first_token_seconds']:.2f} s")
    if record.get("finish") in FINISH:
        parts.append(FINISH[record["finish"]])
    if dropped := record.get("dropped_messages"):
        parts.append(f"the oldest {dropped} messages no longer fit the context and were left out")
    return " · ".join(parts)


def queue_position(ahead: int) -> str:
    """How many requests are ahead, as the page says it."""
    if not ahead:  # it would be our turn
        return "the models are loading …"
    return f"waiting: {ahead} {'answer' if ahead == 1 else 'answers'} before yours …"
