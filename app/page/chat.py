"""The Chat tab.

The conversation lives in a State on the server; the page only shows it (app.page.view: Gradio's own Chatbot does not
distinguish a message from its HTML). No handler raises: whatever goes wrong becomes a message in the
conversation.

A stopped or retracted answer is marked on its turn; the handler that writes it then ends by itself, and its last view is
the conversation as it is at that moment. (Gradio's own way, `cancels`, cuts that handler off: views that were still on
their way arrived after the stop and left the page as if the answer were still being written.) Views are numbered: of two
handlers that run at the same time the earlier view may arrive last, and Gradio sends the last view of a streaming handler
once more when that ends. The page then asks for the conversation as it is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from abctune.llm.prompts import PROMPTS
from app.about import facts_html, model_colors
from app.engines import TokenScore
from app.page.conversation import (
    CONVERSATION_LOCK,
    Conversation,
    Drawing,
    Turn,
    as_json,
    display,
    fail,
    messages,
    read_stored,
    sampling_of_record,
    update,
)
from app.page.parts import PRIVATE, QUEUE, sampling_controls, sampling_of
from app.page.style import ASSETS
from app.page.view import SCRIPT, conversation_html
from app.request import MAX_CHARACTERS, Refused, read_request, read_text
from app.service import FAILED, Service, Waiting

log = logging.getLogger("app")
EXAMPLES = (PROMPTS[0], PROMPTS[1], PROMPTS[5], PROMPTS[6])
# Saves the text of a hidden box as a file, in the browser: no file is made on the server for anyone to guess.
SAVE = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "conversation.json"; link.click(); URL.revokeObjectURL(link.href);
}"""
# What a page that is loaded again shows: the conversation that its tab had open.
RESTORE = """(turns) => {
    try {
        const key = sessionStorage.getItem("abctune.open"), kept = key && localStorage.getItem("abctune.chat." + key);
        return [turns, kept ? JSON.stringify({key, messages: JSON.parse(kept).messages}) : ""];
    } catch { return [turns, ""]; }
}"""
CHATS = """<nav aria-label="Conversations"><h2>Conversations</h2><p class="none">Kept in this browser alone.</p><ul></ul>
<label class="bring">Import JSON<input type="file" accept=".json,application/json" class="unseen"></label>
<p role="status"></p></nav>"""
Shown = tuple[Conversation, Drawing, Any]
SEND = {"submit_btn": True, "stop_btn": False}
STOP = {"submit_btn": False, "stop_btn": True}


def chat_tab(service: Service, page: gr.Blocks) -> None:
    """The tab's controls, and what happens when."""
    models = service.models
    conversation = gr.State(Conversation())
    with gr.Row(elem_id="chat-row"):
        with gr.Column(elem_id="left"):
            clear = gr.Button("New conversation", size="sm")
            save = gr.Button("Download JSON", size="sm", elem_id="save")
            chats = gr.HTML(
                CHATS,
                js_on_load=(ASSETS / "chats.js").read_text("utf-8"),
                apply_default_css=False,
                elem_id="chats",
            )
        with gr.Column(elem_id="middle"):
            model = gr.Dropdown(
                [(models.label(name), name) for name in models.names],
                value=models.names[-1],
                label="Model",
                elem_id="model",
            )
            chatbot = gr.HTML(
                conversation_html(Drawing(0, "", []), EXAMPLES),
                js_on_load=SCRIPT,
                apply_default_css=False,
                elem_id="chatbot",
            )
            box = gr.Textbox(
                label="Message", show_label=False, placeholder="Write a message; Shift+Enter for a new line", lines=1,
                max_lines=6, max_length=MAX_CHARACTERS, autofocus=True, elem_id="box", container=True, **SEND,
            )  # fmt: skip
        with gr.Column(elem_id="right"):
            about = gr.HTML(facts_html(service, models.names[-1]), apply_default_css=False, elem_id="about")
            system = gr.Textbox(
                label="System prompt", lines=2, max_lines=6, max_length=MAX_CHARACTERS, placeholder="none"
            )
            with gr.Accordion("Sampling", open=True):
                settings = sampling_controls()
    file, stored = gr.Textbox(visible=False), gr.Textbox(visible=False)

    # --- what happens when
    answer_inputs = [conversation, model, system, *settings]
    view = [conversation, chatbot, box]
    opened = [*view, model, system, *settings]

    def answer(
        turns: Conversation, name: Any, instructions: Any, *values: Any
    ) -> Iterator[tuple[Any, Any, Any]]:
        """The view, again and again, while the model answers."""
        for shown in _answer(service, turns, name, instructions, values):
            yield draw(shown)

    def draw(shown: Shown) -> tuple[Conversation, str, Any]:
        """A handler's result as the values of `view`."""
        turns, drawing, text = shown
        return turns, conversation_html(drawing, EXAMPLES, model_colors(models)), text

    def then_answer(event: gr.events.Dependency) -> gr.events.Dependency:
        """After an event, have the model answer."""
        return event.then(answer, answer_inputs, view, **in_line, **always)

    def drawn(handler: Callable[..., Shown]) -> Callable[..., Any]:
        """The handler with its result as the values of `view`."""
        return functools.wraps(handler)(lambda *given: draw(handler(*given)))

    def open_chat(turns: Conversation, text: Any) -> tuple[Any, ...]:
        """Open a conversation from its JSON, with the settings of its last answer."""
        shown, last = _open(turns, text)
        return *draw(shown), *_settings_of(service, last)

    def open_kept(turns: Conversation, event: gr.EventData) -> tuple[Any, ...]:
        """Open the kept conversation that was clicked."""
        return open_chat(turns, event.value)

    def tokens(turns: Conversation, event: gr.EventData) -> Iterator[tuple[Any, Any]]:
        """Show how likely the tokens of the clicked answer were, or hide it."""
        for drawing in _tokens(service, turns, event.index):
            yield turns, draw((turns, drawing, None))[1]

    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
    # Through the queue: Gradio shows no warning of an event that is outside it.
    in_line: dict[str, Any] = {"show_progress": "hidden", **QUEUE, **PRIVATE}
    # "multiple": Gradio's other modes drop an event that comes while the last one of its kind is ending. What must not be
    # done twice is checked where it is done.
    always: dict[str, Any] = {"trigger_mode": "multiple"}
    then_answer(box.submit(drawn(_ask), [conversation, box], view, **in_line, **always))
    then_answer(chatbot.example_select(drawn(_example), [conversation], view, **at_once))
    then_answer(chatbot.retry(drawn(_retry), [conversation], view, **at_once, **always))
    then_answer(chatbot.edit(drawn(_edit), [conversation], view, **in_line, **always))
    box.stop(drawn(_settle), [conversation], view, **at_once)
    chatbot.undo(drawn(_undo), [conversation], view, **at_once)
    chatbot.select(tokens, [conversation], view[:2], **in_line, **always)
    # The page asks for it when Gradio has delivered an earlier view after a later one.
    chatbot.tick(drawn(_as_it_is), [conversation], view, **at_once, **always)
    gr.on([clear.click, chats.clear], drawn(_clear), [conversation], view, **at_once, **always)
    chats.select(open_kept, [conversation], opened, **in_line, **always)
    page.load(open_chat, [conversation, stored], opened, js=RESTORE, **in_line)
    model.change(lambda name: facts_html(service, name), [model], [about], **at_once)
    save.click(
        lambda turns: as_json(turns, service.engine.name, models.about()), [conversation], [file], **at_once
    ).then(None, [file], None, js=SAVE, **PRIVATE)


def _open(turns: Conversation, text: Any) -> tuple[Shown, dict[str, Any]]:
    """Put a kept conversation in the place of the open one; also the record of its last answer."""
    if not text:
        return (turns, display(turns), gr.update()), {}
    number = turns.begin_opening()
    try:
        found = read_stored(text)
    except Refused as refusal:
        gr.Warning(str(refusal))
        return (turns, display(turns), gr.update()), {}
    with CONVERSATION_LOCK:
        if turns.opened != number:  # another was opened meanwhile
            return (turns, display(turns), gr.update()), {}
        _clear(turns)
        turns.extend(found)  # the same list: an answer that is still being written looks at it
        turns.key = found.key
        last = next((turn.record for turn in reversed(turns) if turn.record), {})
    return (turns, display(turns), gr.update(**SEND)), last


def _settings_of(service: Service, record: dict[str, Any]) -> list[Any]:
    """Model, system prompt and settings as the record has them; without one all stay."""
    sampling = sampling_of_record(record) if "temperature" in record else None
    name = record.get("model")
    model = gr.update(value=name) if name in service.models.names else gr.update()
    if sampling is None:
        return [model, *[gr.update()] * 7]
    return [
        model, record.get("system") or "", sampling.temperature, sampling.top_p, sampling.max_new_tokens,
        sampling.repetition_penalty, gr.update(), sampling.adapter_strength,
    ]  # fmt: skip


def _tokens(service: Service, turns: Conversation, index: Any) -> Iterator[Drawing]:
    """Show how likely each token of an answer was, or hide it again."""
    turn = turns[index] if isinstance(index, int) and 0 <= index < len(turns) else None
    if turn is None or not turn.record or turn.scores is not None:
        if turn is not None:
            turn.scores = None
        yield display(turns)
        return
    scores: list[TokenScore] = []
    turn.scores = scores
    yield display(turns)
    try:
        asked = messages(turns[:index], str(turn.record.get("system") or ""))
        sampling = sampling_of_record(turn.record) or sampling_of(0, 1, 256, 1, None)
        request = read_request(service.models.names, turn.record.get("model"), asked, sampling)
        with closing(service.token_scores(request, turn.text)) as found:
            for progress in found:
                if turn.scores is not scores or turn not in turns:  # hidden again, or taken back
                    break
                if not isinstance(progress, Waiting):
                    scores[:] = progress
                    yield display(turns)
    except Refused as refusal:
        if turn.scores is scores:
            turn.scores = None
        gr.Warning(str(refusal))
    yield display(turns)


def _answer(
    service: Service, turns: Conversation, name: Any, system: Any, values: tuple[Any, ...]
) -> Iterator[Shown]:
    """Answer the last message if it is a person's; else show the conversation as it is."""
    turn = turns.begin_answer()
    if turn is None:
        yield _as_it_is(turns)
        return
    asked = messages(turns[:-1], str(system or ""))
    try:
        request = read_request(service.models.names, name, asked, sampling_of(*values))
        with closing(service.answer([request])) as answer:
            for progress in answer:
                if turn.canceled:
                    break
                update(turn, progress, service.models)
                yield turns, display(turns), gr.update(**STOP)
    except Refused as refusal:
        fail(turn, str(refusal))
    except Exception:
        log.exception("the chat failed")
        fail(turn, FAILED)
    turn.streaming = False
    yield _as_it_is(turns)


def _as_it_is(turns: Conversation) -> Shown:
    """The conversation, and the button for its state; what is in the box stays."""
    return turns, display(turns), gr.update(**(STOP if turns and turns[-1].streaming else SEND))


def _ask(turns: Conversation, text: Any) -> Shown:
    """Put the message into the conversation, or say why not and leave it in the box."""
    question = _question(text) if text else None
    with CONVERSATION_LOCK:
        if question is None or _is_being_answered(turns, question.text):  # Enter was pressed twice
            return turns, display(turns), gr.update()
        return _put(turns, question)


def _question(text: Any) -> Turn | None:
    """What a person wrote as a turn; None, and a warning that says why, where it is no message."""
    try:
        return Turn("user", read_text(text))
    except Refused as refusal:
        gr.Warning(str(refusal))
        return None


def _put(turns: Conversation, question: Turn) -> Shown:
    with CONVERSATION_LOCK:
        _cancel(turns)
        turns.append(question)
        turns.begin()
    return turns, display(turns), gr.update(value="", **STOP)


def _is_being_answered(turns: Conversation, text: str) -> bool:
    """Whether the last question is this one, and its answer has not come or is still being written."""
    if not turns or (turns[-1].role == "assistant" and (turns[-1].canceled or not turns[-1].streaming)):
        return False
    return next((turn.text for turn in reversed(turns) if turn.role == "user"), None) == text


def _example(turns: Conversation, event: gr.EventData) -> Shown:
    return _ask(turns, event.value)


def _retry(turns: Conversation) -> Shown:
    with CONVERSATION_LOCK:
        while turns and turns[-1].role != "user":
            turns.pop().canceled = True
    # After "New conversation" there is nothing to repeat.
    return turns, display(turns), gr.update(**(STOP if turns else SEND))


def _clear(turns: Conversation) -> Shown:
    with CONVERSATION_LOCK:
        for turn in turns:
            turn.canceled = True
        turns.clear()  # the list itself: an answer that is being written looks at it
        turns.key = ""
        turns.begin_opening()  # one that is being opened does not come after this
    return _as_it_is(turns)  # with what was typed meanwhile


def _undo(turns: Conversation) -> Shown:
    """Take back the last question; it returns to the box."""
    with CONVERSATION_LOCK:
        _retry(turns)
        text = turns.pop().text if turns else ""
    return turns, display(turns), gr.update(value=text, **SEND)


def _edit(turns: Conversation, event: gr.EventData) -> Shown:
    """Replace a question of the past; what followed it goes."""
    index = event.index
    if not isinstance(index, int) or not (0 <= index < len(turns)) or turns[index].role != "user":
        return turns, display(turns), gr.update()
    question = _question(event.value)
    if question is None:  # what would have been replaced stays
        return turns, display(turns), gr.update()
    with CONVERSATION_LOCK:
        for turn in turns[index:]:
            turn.canceled = True
        del turns[index:]
    return _put(turns, question)


def _settle(turns: Conversation) -> Shown:
    """After a stop: what is there stays."""
    _cancel(turns)
    return turns, display(turns), gr.update(**SEND)


def _cancel(turns: Conversation) -> None:
    """End the answer that is being written, if one is; a question that has no answer yet gets a note."""
    with CONVERSATION_LOCK:
        if turns and turns[-1].role == "user":
            turns.append(Turn("assistant", "", streaming=True))
        if not turns:
            return
        turn = turns[-1]
        waiting = turn.streaming and turn.reply is None
        turn.canceled, turn.streaming = True, False
        if waiting:
            fail(turn, "Stopped before it was your turn.")
