"""The Compare tab: one question to several models, their answers side by side, and a vote, blind if wanted.

A comparison may take several turns: each model goes on from its own answers. The vote is on all of them, once.
"""

from __future__ import annotations

import difflib
import logging
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from abctune.llm.conversation import Message
from abctune.llm.prompts import PROMPTS
from abctune.study.votes import AskedTurn, CastVote
from app.about import model_colors
from app.page.parts import (
    PRIVATE,
    QUEUE,
    figures,
    in_line,
    record_of,
    sampling_controls,
    sampling_of,
)
from app.page.style import ASSETS
from app.page.view import body_html, dot_html, note_html
from app.rendering import plain_html
from app.request import MAX_CHARACTERS, Refused, read_request, read_text
from app.service import FAILED, Reply, Service, Waiting
from app.votes import VOTES, record, tally

log = logging.getLogger("app")
TIE = "no difference"
ASK, AGAIN = "Ask all", "Ask all again"
EMPTY = note_html("Every model that is ticked answers here. The vote counts while the names are hidden.")


@dataclass(frozen=True)
class Setup:
    """How a comparison is made; fixed at its first question."""

    models: tuple[str, ...]
    system: str = ""
    blind: bool = True


@dataclass
class Turn:
    """One question and its answers, in the comparison's order."""

    prompt: str
    replies: list[Reply] = field(default_factory=list)


@dataclass
class Round:
    """A comparison: its turns, in the order in which the models are shown."""

    order: list[str]
    setup: Setup
    turns: list[Turn] = field(default_factory=list)
    done: bool = False
    voted: bool = False
    stopped: bool = False  # by a person; the thread that writes the answers looks here at every step
    marked: bool = False  # whether differences are highlighted

    @property
    def hidden(self) -> bool:
        """Whether names are kept back."""
        return self.setup.blind and not (self.voted or self.stopped)

    @property
    def replies(self) -> list[Reply]:
        """The answers to the last question."""
        return self.turns[-1].replies

    def asked(self, place: int) -> list[Message]:
        """What the model at `place` reads: its own earlier answers and the new question."""
        read: list[Message] = (
            [{"role": "system", "content": self.setup.system}] if self.setup.system.strip() else []
        )
        for turn in self.turns:
            read.append({"role": "user", "content": turn.prompt})
            if turn.replies:
                read.append({"role": "assistant", "content": turn.replies[place].text})
        return read


def compare_tab(service: Service) -> None:
    """The tab's controls, and what happens when."""
    models = service.models
    current = gr.State(None)
    with gr.Column(elem_id="compare"):
        with gr.Row(elem_id="compare-setup"):
            chosen = gr.CheckboxGroup(
                models.names, value=models.names, label="Models", scale=3, min_width=220, elem_id="chosen"
            )
            with gr.Column(scale=1, min_width=180, elem_id="compare-switches"):
                blind = gr.Checkbox(True, label="Blind: names after the vote", container=False)
                marked = gr.Checkbox(
                    False, label="Mark differences", container=False, elem_id="mark-differences"
                )
        answers = gr.HTML(
            EMPTY,
            js_on_load=(ASSETS / "compare.js").read_text("utf-8"),
            apply_default_css=False,
            elem_id="rounds",
        )
        with gr.Row(visible=False, elem_id="ballot") as ballot:
            prefer = gr.Radio(
                _places(models.names),
                label="Which answer is best? (keys 1, 2, …; 0: no difference; Enter votes)",
                scale=4,
                min_width=260,
                elem_id="prefer",
            )
            vote = gr.Button("Vote", variant="primary", size="md", scale=1, min_width=100, elem_id="vote")
        with gr.Row(elem_id="compare-ask"):
            box = gr.Textbox(
                label="Question to all models", show_label=False, placeholder="One question for all; Enter asks",
                lines=1, max_lines=6, max_length=MAX_CHARACTERS, scale=6, min_width=240, elem_id="compare-box",
            )  # fmt: skip
            ask = gr.Button(ASK, variant="primary", size="md", scale=1, min_width=110, elem_id="ask-all")
            stop = gr.Button("Stop", size="md", scale=0, min_width=70)
            fresh = gr.Button("New comparison", size="md", scale=0, min_width=150, elem_id="fresh")
    gr.Examples([[text] for text in (*PROMPTS[2:4], *PROMPTS[7:9])], [box], label="Examples")
    with gr.Accordion("System prompt and sampling", open=False):
        system = gr.Textbox(
            label="System prompt for all", lines=2, max_lines=6, max_length=MAX_CHARACTERS, placeholder="none"
        )
        settings = sampling_controls()
    standing = gr.Markdown(standings(), elem_id="standings")

    # --- what happens when
    outputs = [current, ballot, prefer, answers]
    colors = model_colors(models)

    def joined(row: Sequence[Any]) -> list[Any]:
        now, shown, choice, *columns = row
        return [now, shown, choice, rounds_html(service, now, columns, colors)]

    def run(
        now: Round | None, prompt: Any, names: Any, instructions: Any, is_blind: Any, marks: Any, *values: Any
    ) -> Iterator[list[Any]]:
        setup = Setup(tuple(names or ()), str(instructions or ""), bool(is_blind))
        text: Any = (
            ""  # the box is emptied once: the next question may be in it before the answers have ended
        )
        for row in _run(service, now, prompt, setup, values):
            if not isinstance(row[0], Round):
                yield [*row, gr.skip(), gr.skip()]
                continue
            row[0].marked = bool(marks)
            yield [*joined(row), text, AGAIN]
            text = gr.skip()

    def mark(now: Round | None, marks: Any) -> Any:
        if now is None or not now.done:
            return gr.skip()
        now.marked = bool(marks)
        return rounds_html(service, now, _columns(service, now), colors)

    def begin_anew(now: Round | None) -> list[Any]:
        _stop(now)
        return [None, gr.update(visible=False), None, EMPTY, "", ASK]

    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
    start: dict[str, Any] = {"show_progress": "hidden", **QUEUE, **PRIVATE}
    asked = [current, box, chosen, system, blind, marked, *settings]
    gr.on([ask.click, box.submit], run, asked, [*outputs, box, ask], **start)
    stop.click(_stop, [current], None, queue=False, **PRIVATE)
    marked.change(mark, [current, marked], [answers], **at_once)
    fresh.click(
        begin_anew,
        [current],
        [*outputs, box, ask],
        **at_once,
    )

    def voted(now: Round | None, choice: Any) -> list[Any]:
        *row, places = _vote(service, now, choice)
        if not isinstance(row[0], Round):  # refused: all stays as it is
            return [gr.update()] * 4 + [places]
        return [*joined(row), places]

    # Through the queue: Gradio shows no warning of an event that is outside it.
    vote.click(voted, [current, prefer], [*outputs, standing], **start)


def _places(names: Sequence[str]) -> list[str]:
    return [*(f"Answer {place}" for place, _ in enumerate(names, 1)), TIE]


def _run(
    service: Service, now: Round | None, prompt: Any, setup: Setup, values: tuple[Any, ...]
) -> Iterator[list[Any]]:
    """Ask all models of a comparison, a new one if there is none; yields [round, ballot, choice, *columns]."""
    if now is not None and not now.done and not now.stopped:
        gr.Warning("The models are still answering; stop them first.")
        yield [gr.skip()] * 4
        return
    try:
        sampling = sampling_of(*values)
        text = read_text(prompt)
        if now is None or now.stopped:
            now = _new(service, setup)
        now.turns.append(Turn(text))
        now.done = now.stopped = False
        requests = [
            read_request(service.models.names, name, now.asked(place), sampling)
            for place, name in enumerate(now.order)
        ]
        with closing(service.answer(requests)) as answer:
            for progress in answer:
                if now.stopped:
                    break
                if isinstance(progress, Waiting):
                    yield _only(now, note_html(in_line(progress.ahead)))
                    continue
                now.turns[-1].replies = progress
                yield _view(service, now)
        now.done = True
        yield (
            _view(service, now) if now.replies else _failed(service, now, "Stopped before it was your turn.")
        )
    except Refused as refusal:
        yield _failed(service, now, str(refusal))
    except Exception:
        log.exception("the comparison failed")
        yield _failed(service, now, FAILED)


def _new(service: Service, setup: Setup) -> Round:
    names = [name for name in service.models.names if name in setup.models]
    if len(names) < 2:
        raise Refused("tick at least two models to compare")
    return Round(random.sample(names, len(names)) if setup.blind else names, setup)


def _failed(service: Service, now: Round | None, reason: str) -> list[Any]:
    """The reason in the place of answers, or as a warning where earlier answers stay."""
    if now is not None and now.turns and not now.replies:  # a question that got no answer
        now.turns.pop()
    if now is None or not now.turns:
        return _only(None, note_html(reason))
    now.done = True
    gr.Warning(reason)
    return _view(service, now)


def _only(now: Round | None, column: str) -> list[Any]:
    return [now, gr.update(visible=False), None, column]


def _view(service: Service, now: Round) -> list[Any]:
    ballot = now.done and not now.voted and not now.stopped  # half a round is nothing to vote on
    choices = gr.update() if now.done else gr.update(choices=_places(now.order), value=None)
    return [now, gr.update(visible=ballot), choices, *_columns(service, now)]


def _columns(service: Service, now: Round) -> list[str]:
    """The answers to the last question."""
    return [_answer(service, now, now.turns[-1], place) for place in range(len(now.order))]


def _answer(service: Service, now: Round, turn: Turn, place: int) -> str:
    reply, name = turn.replies[place], now.order[place]
    title = f"Answer {place + 1}" if now.hidden else name
    dot = dot_html(None if now.hidden else model_colors(service.models).get(name))
    ended = bool(reply.finish or now.done)
    small = figures(record_of(reply, service.models), hidden=now.hidden) if ended else ""
    if now.marked and now.done and turn is now.turns[-1]:
        others = [other.text for at, other in enumerate(turn.replies) if at != place]
        text = differences_html(reply.text, others)
    else:
        text = body_html({"role": "assistant", "content": reply.text, "growing": not ended})
    return f'<strong>{escape(title)}</strong>{dot}\n<div class="body">{text}</div><div class="figures">{escape(small)}</div>'


def rounds_html(service: Service, now: Any, columns: Sequence[str], colors: dict[str, str]) -> str:
    """All questions, each with its answers below it; the last ones are given as `columns`."""
    if not isinstance(now, Round) or not now.turns:
        return "".join(str(column) for column in columns)
    waiting = len(columns) != len(now.order)
    parts = []
    for turn in now.turns:
        last = turn is now.turns[-1]
        texts = columns if last else [_answer(service, now, turn, place) for place in range(len(now.order))]
        ids = [f' id="answer-{place}"' if last and not waiting else "" for place, _ in enumerate(texts, 1)]
        cells = "".join(
            f'<article class="answer"{one}>{text}</article>' for one, text in zip(ids, texts, strict=True)
        )
        parts.append(f'<div class="asked">{plain_html(turn.prompt)}</div><div class="columns">{cells}</div>')
    return "".join(parts)


def differences_html(text: str, others: Sequence[str]) -> str:
    """The text as written, with the words marked that no other answer has in that order."""
    words = re.findall(r"\S+|\s+", text)
    common: set[int] = set()
    for other in others:
        matcher = difflib.SequenceMatcher(None, words, re.findall(r"\S+|\s+", other), autojunk=False)
        for block in matcher.get_matching_blocks():
            common.update(range(block.a, block.a + block.size))
    marked = [
        escape(word) if place in common or word.isspace() else f"<mark>{escape(word)}</mark>"
        for place, word in enumerate(words)
    ]
    return f'<p dir="auto" class="plain">{"".join(marked)}</p>'


def _stop(now: Round | None) -> None:
    if now is not None and not now.done:
        now.stopped = True


def _vote(service: Service, now: Round | None, choice: Any) -> list[Any]:
    unchanged = [gr.update()] * 4
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
    return [*_view(service, now), standings()]


def _ballot_paper(service: Service, now: Round, preferred: str | None) -> CastVote:
    """The vote as it is stored; `python -m tools.votes` reads it."""
    return CastVote(
        models=tuple(now.order),
        adapters={name: service.models.sha256(name) for name in now.order},
        system=now.setup.system,
        turns=tuple(
            AskedTurn(prompt=turn.prompt, answers=tuple(reply.text for reply in turn.replies))
            for turn in now.turns
        ),
        sampling=now.replies[0].request.sampling.model_dump(mode="json"),
        preferred=preferred,
        blind=now.setup.blind,
    )


def standings() -> str:
    """The blind votes so far as a table, with what chance alone would give."""
    rows = tally(VOTES)
    if not rows:
        return "No blind votes yet."
    lines = [
        f"| {one.model} | {one.wins} of {one.shown} | {one.share:.0%} | {one.low:.0%} to {one.high:.0%} | {one.chance:.0%} |"
        for one in rows
    ]
    return "\n".join(
        [
            "Blind votes on this machine. `python -m tools.votes` takes them into the report, as Bradley-Terry strengths.\n",
            "| model | preferred | share | 95 % interval | by chance |",
            "|---|---|---|---|---|",
            *lines,
        ]
    )
