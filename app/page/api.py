"""What programs may call through the client of Gradio, `/chat`. The OpenAI-compatible routes are in app.openai_api."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import gradio as gr

from app.page.parts import DEFAULTS, QUEUE, sampling_of
from app.request import Refused, read_request
from app.service import FAILED, Service, Waiting

log = logging.getLogger("app")


def add_api(service: Service) -> None:
    """Add `/chat` to the page that is being built."""

    def chat(
        message: str,
        model: str = service.models.names[-1],
        history: list | None = None,
        system: str = "",
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        max_new_tokens: int = DEFAULTS.max_new_tokens,
        repetition_penalty: float = DEFAULTS.repetition_penalty,
        seed: int | None = DEFAULTS.seed,
    ) -> Iterator[str]:
        """One answer, as it is written. `history`: earlier messages as {"role", "content"}; errors come as `error: ...`."""
        try:
            opening = [{"role": "system", "content": system}] if system else []
            asked = [*opening, *(history or []), {"role": "user", "content": message}]
            sampling = sampling_of(temperature, top_p, max_new_tokens, repetition_penalty, seed)
            for progress in service.answer([read_request(service.models.names, model, asked, sampling)]):
                if not isinstance(progress, Waiting):
                    yield progress[0].text
        except Refused as refusal:
            yield f"error: {refusal}"
        except Exception:
            log.exception("the chat API failed")
            yield f"error: {FAILED}"

    gr.api(chat, api_name="chat", **QUEUE)
