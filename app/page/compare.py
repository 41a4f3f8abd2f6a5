"""The Compare tab: one prompt, every model's answer side by side, and a vote, blind if wanted."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from abctune.llm.prompts import PROMPTS
from app.page.parts import (
    PRIVATE,
    QUEUE,
    figures,
    in_line,
    sampling_controls,
    sampling_of,
)
from app.page.view import body_html, note_html
from app.request import MAX_CHARACTERS, Refused, read_request, read_text
from app.service import FAILED, Reply, Service, Waiting
from app.votes import VOTES, record, tally

log = logging.getLogger("app")
TIE = "no difference"


@dataclass
class Round:
    """One prompt and its answers, in the order in which they are shown."""

    prompt: str
    order: list[str]
    blind: bool
    replies: list[Reply] = field(default_factory=list)
    done: bool = False
    voted: bool = False
    stopped: bool = False  # by a person; whoever writes the answers looks here at every step

    @property
    def hidden(self) -> bool:
        return self.blind and not (self.voted or self.stopped)


def compare_tab(service: Service) -> None:
    models = service.models
    current = gr.State(None)
    with gr.Row():
        box = gr.Textbox(
            label="One prompt for all",
            lines=2,
            max_lines=8,
            max_length=MAX_CHARACTERS,
            scale=4,
            min_width=300,
            elem_id="compare-box",
        )
        with gr.Column(scale=1, min_width=160):
            blind = gr.Checkbox(True, label="Blind: names after the vote")
            ask = gr.Button("Ask all", variant="primary", elem_id="ask-all")
            stop = gr.Button("Stop", size="sm")
    gr.Examples([[text] for text in (*PROMPTS[2:4], *PROMPTS[7:9])], [box], label="Examples")
    with gr.Row(equal_height=True):
        answers = [
            gr.HTML("", container=True, min_height=120, elem_classes="answer", elem_id=f"answer-{place}")
            for place, _ in enumerate(models.names, 1)
        ]
    with gr.Row(visible=False) as ballot:
        prefer = gr.Radio(
            _places(models.names), label="Which answer is best?", scale=4, min_width=260, elem_id="prefer"
        )
        vote = gr.Button("Vote", variant="primary", scale=1, min_width=120, elem_id="vote")
    with gr.Accordion("Sampling", open=False):
        settings = sampling_controls()
    standing = gr.Markdown(standings(), elem_id="standings")

    outputs = [current, ballot, prefer, *answers]

    def run(prompt: Any, is_blind: Any, *values: Any) -> Iterator[list[Any]]:
        yield from _run(service, prompt, bool(is_blind), values)

    start: dict[str, Any] = {"show_progress": "hidden", **QUEUE, **PRIVATE}
    gr.on([ask.click, box.submit], run, [box, blind, *settings], outputs, **start)
    stop.click(_stop, [current], None, queue=False, **PRIVATE)
    vote.click(
        lambda now, choice: _vote(service, now, choice),
        [current, prefer],
        [*outputs, standing],
        show_progress="hidden",
        **QUEUE,  # Gradio shows no warning of an event that is outside its queue
        **PRIVATE,
    )


def _places(names: list[str]) -> list[str]:
    return [*(f"Answer {place}" for place, _ in enumerate(names, 1)), TIE]


def _run(service: Service, prompt: Any, blind: bool, values: tuple[Any, ...]) -> Iterator[list[Any]]:
    names = list(service.models.names)
    try:
        sampling = sampling_of(*values)
        text = read_text(prompt)
        order = random.sample(names, len(names)) if blind else names
        now = Round(text, order, blind)
        asked = [{"role": "user", "content": text}]
        requests = [read_request(names, name, asked, sampling) for name in order]
        with closing(service.answer(requests)) as answer:
            for progress in answer:
                if now.stopped:
                    break
                if isinstance(progress, Waiting):
                    yield [
                        now,
                        gr.update(visible=False),
                        None,
                        *[note_html(in_line(progress.ahead))] * len(names),
                    ]
                    continue
                now.replies = progress
                yield _view(now)
        now.done = True
        if now.replies:
            yield _view(now)
        else:
            yield [
                None,
                gr.update(visible=False),
                None,
                *[note_html("Stopped before it was your turn.")] * len(names),
            ]
    except Refused as refusal:
        yield [None, gr.update(visible=False), None, note_html(str(refusal)), *[""] * (len(names) - 1)]
    except Exception:
        log.exception("the comparison failed")
        yield [None, gr.update(visible=False), None, note_html(FAILED), *[""] * (len(names) - 1)]


def _view(now: Round) -> list[Any]:
    ballot = now.done and not now.voted and not now.stopped  # half a round is nothing to vote on
    return [
        now,
        gr.update(visible=ballot),
        gr.update() if now.done else None,
        *(_answer(now, place) for place in range(len(now.order))),
    ]


def _answer(now: Round, place: int) -> str:
    reply, name = now.replies[place], now.order[place]
    title = f"Answer {place + 1}" if now.hidden else name
    ended = bool(reply.finish or now.done)
    text = body_html({"role": "assistant", "content": reply.text, "growing": not ended})
    # Speed tells the base from the adapters, so a blind answer keeps it back until the vote.
    small = figures(reply, None if now.hidden else name, reply.finish or "stopped") if ended else ""
    return f'<strong>{escape(title)}</strong>\n<div class="body">{text}</div><div class="figures">{escape(small)}</div>'


def _stop(now: Round | None) -> None:
    if now is not None:
        now.stopped = True


def _vote(service: Service, now: Round | None, choice: Any) -> list[Any]:
    unchanged = [gr.update()] * (3 + len(service.models.names))
    places = _places(now.order) if now else []
    if now is None or not now.done or now.voted or now.stopped or choice not in places:
        gr.Warning("Choose an answer first.")
        return [*unchanged, standings()]
    preferred = None if choice == TIE else now.order[places.index(choice)]
    try:
        record(VOTES, _ballot_paper(service, now, preferred))
    except OSError:
        log.exception("the vote could not be written")
        gr.Warning("The vote could not be saved.")
        return [*unchanged, standings()]
    now.voted = True
    return [*_view(now), standings()]


def _ballot_paper(service: Service, now: Round, preferred: str | None) -> dict[str, Any]:
    return {
        "prompt": now.prompt,
        "models": now.order,
        "adapters": {name: service.models.sha256(name) for name in now.order},
        "answers": [reply.text for reply in now.replies],
        "sampling": now.replies[0].request.sampling.model_dump(),
        "preferred": preferred,
        "blind": now.blind,
    }


def standings() -> str:
    rows = tally(VOTES)
    if not rows:
        return "No blind votes yet."
    lines = [
        f"| {model} | {wins} of {count} | {wins / count:.0%} | {low:.0%} to {high:.0%} |"
        for model, wins, count, low, high in rows
    ]
    return "\n".join(
        [
            "Blind votes on this machine\n",
            "| model | preferred | share | 95 % interval |",
            "|---|---|---|---|",
            *lines,
        ]
    )
