"""The Compare tab: one question to several models, their answers side by side, and a vote, blind if wanted.

A comparison may take several turns: each model goes on from its own answers. The vote is on all of them, once.

Events of one browser tab run at the same time, and their views may arrive in another order than they were made. So no
handler draws what it has just done: all change one `CompareState`, and every view shows that state as it is. Gradio sends the
last view of a streaming handler once more when the handler ends, which could cover a newer one; a `redraw` follows each.
"""

from __future__ import annotations

import difflib
import logging
import random
import re
import threading
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
    queue_position,
    record_of,
    sampling_controls,
    sampling_of,
)
from app.page.style import ASSETS
from app.page.view import body_html, dot_html, note_html
from app.rendering import plain_html
from app.request import MAX_CHARACTERS, Refused, Request, read_request, read_text
from app.service import FAILED, Reply, Service, Waiting
from app.votes import VOTES, record, tally

log = logging.getLogger("app")
TIE = "no difference"
ASK, AGAIN = "Ask all", "Ask all again"
EMPTY = "Every model that is ticked answers here. The vote counts while the names are hidden."
STOPPED = "Stopped before it was your turn."
# Handlers run in threads; what they change of a CompareState they change under this lock. One for all browser tabs, since
# it is held for microseconds.
COMPARISON_LOCK = threading.Lock()


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
class Comparison:
    """Questions to several models and their answers, in the order in which the models are shown."""

    order: list[str]
    setup: Setup
    turns: list[Turn] = field(default_factory=list)
    done: bool = False  # all have answered the last question
    stopped: bool = False  # by a person, or it failed halfway; the thread that writes the answers checks this at every step
    voted: bool = False
    note: str = ""  # shown in place of answers that have not begun

    @property
    def running(self) -> bool:
        """Whether answers are still being written."""
        return not (self.done or self.stopped)

    @property
    def hidden(self) -> bool:
        """Whether the models' names are hidden."""
        return self.setup.blind and not (self.voted or self.stopped)

    @property
    def open_to_vote(self) -> bool:
        """Whether a vote would count; incomplete answers are not voted on."""
        return self.done and not self.voted and not self.stopped

    @property
    def replies(self) -> list[Reply]:
        """The answers to the last question."""
        return self.turns[-1].replies if self.turns else []

    def messages(self, place: int) -> list[Message]:
        """What the model at `place` reads: its own earlier answers and the new question."""
        read: list[Message] = (
            [{"role": "system", "content": self.setup.system}] if self.setup.system.strip() else []
        )
        for turn in self.turns:
            read.append({"role": "user", "content": turn.prompt})
            if turn.replies:
                read.append({"role": "assistant", "content": turn.replies[place].text})
        return read


@dataclass
class CompareState:
    """What the Compare tab of one browser tab shows; handlers change it in place."""

    comparison: Comparison | None = None
    marked: bool = False  # whether differences are highlighted
    note: str = EMPTY  # shown while there is no comparison


def compare_tab(service: Service) -> None:
    """The tab's controls, and what happens when."""
    models = service.models
    current = gr.State(CompareState())
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
            note_html(EMPTY),
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
            stop = gr.Button("Stop", size="md", scale=0, min_width=70, elem_id="stop-all")
            fresh = gr.Button("New comparison", size="md", scale=0, min_width=150, elem_id="fresh")
    gr.Examples([[text] for text in (*PROMPTS[2:4], *PROMPTS[7:9])], [box], label="Examples")
    with gr.Accordion("System prompt and sampling", open=False):
        system = gr.Textbox(
            label="System prompt for all", lines=2, max_lines=6, max_length=MAX_CHARACTERS, placeholder="none"
        )
        settings = sampling_controls()
    standing = gr.Markdown(standings(), elem_id="standings")

    # --- what happens when
    outputs = [ballot, prefer, answers, ask]

    def run(
        state: CompareState, prompt: Any, names: Any, instructions: Any, is_blind: Any, *values: Any
    ) -> Iterator[list[Any]]:
        """Ask the question, and show the answers as they are written."""
        setup = Setup(tuple(names or ()), str(instructions or ""), bool(is_blind))
        # The box is emptied once, when the question is taken: the next one may be in it before the answers have ended.
        text: Any = ""
        for _ in _run(service, state, prompt, setup, values):
            yield [*_view(service, state), text]
            text = gr.skip()
        yield [*_view(service, state), gr.skip()]

    def redraw(state: CompareState, marks: Any) -> list[Any]:
        """Show the comparison as it is, differences marked or not."""
        state.marked = bool(marks)
        return _view(service, state)

    def stopped(state: CompareState) -> list[Any]:
        """Stop the answers and show what there is."""
        _stop(state)
        return _view(service, state)

    def begin_anew(state: CompareState) -> list[Any]:
        """Stop and clear the comparison."""
        _stop(state)
        state.comparison, state.note = None, EMPTY
        return [*_view(service, state), ""]

    def voted(state: CompareState, choice: Any) -> list[Any]:
        """Count the vote; show the names and the standings."""
        _vote(service, state, choice)
        return [*_view(service, state), standings()]

    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
    # Through the queue: Gradio shows no warning of an event that is outside it.
    in_line: dict[str, Any] = {"show_progress": "hidden", **QUEUE, **PRIVATE}
    # "multiple": Gradio's other modes drop an event that comes while the last one of its kind is ending. What must not be
    # done twice is checked where it is done.
    always: dict[str, Any] = {"trigger_mode": "multiple"}
    asked = [current, box, chosen, system, blind, *settings]
    events = [
        gr.on([ask.click, box.submit], run, asked, [*outputs, box], **in_line, **always),
        stop.click(stopped, [current], outputs, **at_once, **always),
        fresh.click(begin_anew, [current], [*outputs, box], **at_once, **always),
        vote.click(voted, [current, prefer], [*outputs, standing], **in_line, **always),
    ]
    for event in events:
        event.then(redraw, [current, marked], outputs, **at_once, **always)
    marked.change(redraw, [current, marked], outputs, **at_once, **always).then(
        redraw, [current, marked], outputs, **at_once, **always
    )


def _places(names: Sequence[str]) -> list[str]:
    return [*(f"Answer {place}" for place, _ in enumerate(names, 1)), TIE]


def _run(
    service: Service, state: CompareState, prompt: Any, setup: Setup, values: tuple[Any, ...]
) -> Iterator[None]:
    """Ask all models of the comparison, a new one if none is open; yields when there is more to show."""
    now = None
    try:
        sampling = sampling_of(*values)
        now = _take_question(service, state, prompt, setup)
        if now is None:
            return
        requests = [
            read_request(service.models.names, name, now.messages(place), sampling)
            for place, name in enumerate(now.order)
        ]
        yield from _answer_all(service, now, requests)
        with COMPARISON_LOCK:
            now.done = not now.stopped
    except Refused as refusal:
        _fail(state, now, str(refusal))
    except Exception:
        log.exception("the comparison failed")
        _fail(state, now, FAILED)


def _take_question(service: Service, state: CompareState, prompt: Any, setup: Setup) -> Comparison | None:
    """Add the question to the comparison, a new one if none is open; None while answers are still being written.

    Raises:
        Refused: the question is no text, or fewer than two models are chosen.
    """
    running = state.comparison is not None and state.comparison.running
    if running and not str(prompt or "").strip():  # Enter was pressed twice, and the box is empty already
        return None
    text = read_text(prompt)
    with COMPARISON_LOCK:
        now = state.comparison
        if now is None or not now.running:
            if now is None or now.stopped:
                now = state.comparison = _new(service, setup)
            now.turns.append(Turn(text))
            now.done, now.note = False, ""
            return now
        asked = now.turns[-1].prompt
    if text != asked:  # else Enter was pressed twice
        gr.Warning("The models are still answering; stop them first.")
    return None


def _answer_all(service: Service, now: Comparison, requests: Sequence[Request]) -> Iterator[None]:
    with closing(service.answer(requests)) as answer:
        for progress in answer:
            with COMPARISON_LOCK:
                if now.stopped:
                    return
                if isinstance(progress, Waiting):
                    now.note = queue_position(progress.ahead)
                else:
                    now.turns[-1].replies = progress
            yield


def _new(service: Service, setup: Setup) -> Comparison:
    names = [name for name in service.models.names if name in setup.models]
    if len(names) < 2:
        raise Refused("tick at least two models to compare")
    return Comparison(random.sample(names, len(names)) if setup.blind else names, setup)


def _fail(state: CompareState, now: Comparison | None, reason: str) -> None:
    """Say the reason in place of answers, or as a warning where there are some.

    Args:
        now: the comparison that failed; None if the question was refused before it was taken.
    """
    with COMPARISON_LOCK:
        if now is not None and now.stopped:
            return
        if now is not None and now.replies:  # half written
            now.stopped = True
        elif now is not None:
            _take_back(state, now)
        if state.comparison is None:
            state.note = reason
            return
    gr.Warning(reason)


def _take_back(state: CompareState, now: Comparison) -> None:
    """Remove a question that got no answer, and the comparison if it was the only one."""
    now.turns.pop()
    now.done = True
    if not now.turns and state.comparison is now:
        state.comparison = None


def _stop(state: CompareState) -> None:
    with COMPARISON_LOCK:
        now = state.comparison
        if now is None or not now.running:
            return
        now.stopped = True
        if not now.replies:
            _take_back(state, now)
            state.note = STOPPED


def _view(service: Service, state: CompareState) -> list[Any]:
    """The ballot, its choices, the questions with their answers, and the name of the button: the state as it is."""
    now = state.comparison
    if now is None:
        return [gr.update(visible=False), gr.update(value=None), note_html(state.note), ASK]
    # While answers are written nothing is chosen; after that the choice is the person's.
    choices = gr.update(choices=_places(now.order), value=None) if now.running else gr.update()
    label = ASK if now.stopped else AGAIN
    return [gr.update(visible=now.open_to_vote), choices, comparison_html(service, now, state.marked), label]


def comparison_html(service: Service, now: Comparison, marked: bool) -> str:
    """All questions, each with its answers below it; differences are marked in the last ones, once they are complete."""
    parts = []
    turns = list(now.turns)
    for turn in turns:
        last = turn is turns[-1]
        marks = marked and last and now.done
        texts = [_answer(service, now, turn, place, marks) for place, _ in enumerate(turn.replies)]
        ids = [f' id="answer-{place}"' if last else "" for place, _ in enumerate(texts, 1)]
        cells = "".join(
            f'<article class="answer"{one}>{text}</article>' for one, text in zip(ids, texts, strict=True)
        )
        cells = cells or f'<article class="answer">{note_html(now.note or "…")}</article>'
        parts.append(f'<div class="asked">{plain_html(turn.prompt)}</div><div class="columns">{cells}</div>')
    return "".join(parts)


def _answer(service: Service, now: Comparison, turn: Turn, place: int, marked: bool) -> str:
    reply, name = turn.replies[place], now.order[place]
    title = f"Answer {place + 1}" if now.hidden else name
    dot = dot_html(None if now.hidden else model_colors(service.models).get(name))
    ended = bool(reply.finish) or not now.running
    small = figures(record_of(reply, service.models), hidden=now.hidden) if ended else ""
    if marked:
        others = [other.text for at, other in enumerate(turn.replies) if at != place]
        text = differences_html(reply.text, others)
    else:
        text = body_html({"role": "assistant", "content": reply.text, "streaming": not ended})
    return f'<strong>{escape(title)}</strong>{dot}\n<div class="body">{text}</div><div class="figures">{escape(small)}</div>'


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


def _vote(service: Service, state: CompareState, choice: Any) -> None:
    """Record the vote, of which there is one per comparison; a second one changes nothing."""
    with COMPARISON_LOCK:
        now = state.comparison
        if now is None or not now.open_to_vote:
            return
        places = _places(now.order)
        if choice in places:
            now.voted = True  # before it is written, so that a second vote meanwhile is none
    if choice not in places:
        gr.Warning("Choose an answer first.")
        return
    try:
        record(VOTES, _cast_vote(service, now, None if choice == TIE else now.order[places.index(choice)]))
    except OSError:
        log.exception("the vote could not be written")
        now.voted = False
        gr.Warning("The vote could not be saved.")


def _cast_vote(service: Service, now: Comparison, preferred: str | None) -> CastVote:
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
