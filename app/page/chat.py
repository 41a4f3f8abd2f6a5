"""The Chat tab.

The conversation lives in a State on the server; the page only shows it (app.page.view: Gradio's own Chatbot knows no
difference between a message and how it looks). No handler raises: whatever goes wrong becomes a message in the
conversation.

Whoever stops an answer or takes it back marks its turn, and the handler that writes it ends by itself, its last view
being the conversation as it then is. (Gradio's own way, `cancels`, cuts that handler off: views that were still on
their way arrived after the stop and left the page as if the answer were growing.)
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from abctune.llm.prompts import PROMPTS
from app.page.conversation import Conversation, Turn, as_json, display, fail, messages, update
from app.page.parts import PRIVATE, QUEUE, sampling_controls, sampling_of
from app.page.view import SCRIPT, conversation_html
from app.request import MAX_CHARACTERS, Refused, read_request, read_text
from app.service import FAILED, Service

log = logging.getLogger("app")
EXAMPLES = (PROMPTS[0], PROMPTS[1], PROMPTS[5], PROMPTS[6])
# Saves the text of a hidden box as a file, in the browser: no file is made on the server for anyone to guess.
SAVE = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "conversation.json"; link.click(); URL.revokeObjectURL(link.href);
}"""
Shown = tuple[Conversation, list[dict[str, Any]], Any]
SEND = {"submit_btn": True, "stop_btn": False}
STOP = {"submit_btn": False, "stop_btn": True}


def chat_tab(service: Service) -> None:
    models = service.models
    conversation = gr.State([])
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            model = gr.Dropdown(
                [(models.label(name), name) for name in models.names],
                value=models.names[-1],
                label="Model",
                elem_id="model",
            )
            chatbot = gr.HTML(
                conversation_html([], EXAMPLES), js_on_load=SCRIPT, apply_default_css=False, elem_id="chatbot"
            )
            box = gr.Textbox(
                show_label=False, placeholder="Write a message; Shift+Enter for a new line", lines=1, max_lines=8,
                max_length=MAX_CHARACTERS, autofocus=True, elem_id="box", **SEND,
            )  # fmt: skip
            with gr.Row():
                clear = gr.Button("New conversation", size="sm")
                save = gr.Button("Download JSON", size="sm", elem_id="save")
        with gr.Column(scale=1, min_width=280):
            system = gr.Textbox(
                label="System prompt", lines=2, max_lines=6, max_length=MAX_CHARACTERS, placeholder="none"
            )
            with gr.Accordion("Sampling", open=True):
                settings = sampling_controls()
            gr.Markdown(
                f"Context: {service.engine.context:,} tokens. Older turns that no longer fit are left out; the answer then says so. Test loss: nats per token on held-out rows."
            )
    file = gr.Textbox(visible=False)

    # --- what happens when
    answer_inputs = [conversation, model, system, *settings]
    view = [conversation, chatbot, box]

    def answer(
        turns: Conversation, name: Any, instructions: Any, *values: Any
    ) -> Iterator[tuple[Any, Any, Any]]:
        if not turns or turns[-1].role != "user":
            # Nothing to answer, and nothing to write: after a refusal the next message may have been sent already.
            yield gr.skip(), gr.skip(), gr.skip()
            return
        for shown in _answer(service, turns, name, instructions, values):
            yield drawn(shown)

    def then_answer(event: gr.events.Dependency) -> gr.events.Dependency:
        return event.then(answer, answer_inputs, view, show_progress="hidden", **QUEUE, **PRIVATE)

    def drawing(handler: Callable[..., Shown]) -> Callable[..., Any]:
        return functools.wraps(handler)(lambda *given: drawn(handler(*given)))

    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
    # Through the queue: Gradio shows no warning of an event that is outside it.
    then_answer(
        box.submit(drawing(_ask), [conversation, box], view, show_progress="hidden", **QUEUE, **PRIVATE)
    )
    then_answer(chatbot.example_select(drawing(_example), [conversation], view, **at_once))
    then_answer(chatbot.retry(drawing(_retry), [conversation], view, **at_once))
    then_answer(chatbot.edit(drawing(_edit), [conversation], view, **at_once))
    box.stop(drawing(_settle), [conversation], view, **at_once)
    chatbot.undo(drawing(_undo), [conversation], view, **at_once)
    clear.click(drawing(_clear), [conversation], view, **at_once)
    save.click(lambda turns: as_json(turns, service.engine.name), [conversation], [file], **at_once).then(
        None, [file], None, js=SAVE, **PRIVATE
    )


def drawn(shown: Shown) -> tuple[Conversation, str, Any]:
    """The same with the conversation as the page shows it."""
    turns, rows, box = shown
    return turns, conversation_html(rows, EXAMPLES), box


def _answer(
    service: Service, turns: Conversation, name: Any, system: Any, values: tuple[Any, ...]
) -> Iterator[Shown]:
    """Answer the last message, which is a person's."""
    turn = Turn("assistant", "", growing=True)
    asked = messages(turns, str(system or ""))
    turns.append(turn)
    try:
        request = read_request(service.models.names, name, asked, sampling_of(*values))
        with closing(service.answer([request])) as answer:
            for progress in answer:
                if turn.ended:
                    break
                update(turn, progress, service.models)
                yield turns, display(turns), gr.update(**STOP)
    except Refused as refusal:
        fail(turn, str(refusal))
    except Exception:
        log.exception("the chat failed")
        fail(turn, FAILED)
    turn.growing = False
    # After a retry or an edit another answer is growing already, and the button is its own.
    yield turns, display(turns), gr.update() if turns and turns[-1].growing else gr.update(**SEND)


def _ask(turns: Conversation, text: Any) -> Shown:
    """Put the message into the conversation, or say why not and leave it in the box."""
    _end(turns)
    try:
        turns.append(Turn("user", read_text(text)))
    except Refused as refusal:
        if text:
            gr.Warning(str(refusal))
        return turns, display(turns), gr.update()
    return turns, display(turns), gr.update(value="", **STOP)


def _example(turns: Conversation, event: gr.EventData) -> Shown:
    return _ask(turns, event.value)


def _retry(turns: Conversation) -> Shown:
    while turns and turns[-1].role != "user":
        turns.pop().ended = True
    return turns, display(turns), gr.update(**STOP)


def _clear(turns: Conversation) -> Shown:
    for turn in turns:
        turn.ended = True
    turns.clear()  # the list itself: an answer that is being written looks at it
    return turns, [], gr.update(value="", **SEND)


def _undo(turns: Conversation) -> Shown:
    """Take back the last question; it returns to the box."""
    _retry(turns)
    text = turns.pop().text if turns else ""
    return turns, display(turns), gr.update(value=text, **SEND)


def _edit(turns: Conversation, event: gr.EventData) -> Shown:
    """Replace a question of the past; what followed it goes."""
    index = event.index
    if not isinstance(index, int) or not (0 <= index < len(turns)) or turns[index].role != "user":
        return turns, display(turns), gr.update()
    for turn in turns[index:]:
        turn.ended = True
    del turns[index:]
    return _ask(turns, event.value)


def _settle(turns: Conversation) -> Shown:
    """After a stop: what is there stays."""
    _end(turns)
    return turns, display(turns), gr.update(**SEND)


def _end(turns: Conversation) -> None:
    if not turns or turns[-1].role != "assistant":
        return
    turn = turns[-1]
    waiting = turn.growing and turn.reply is None
    turn.ended, turn.growing = True, False
    if waiting:
        fail(turn, "Stopped before it was your turn.")
