"""Records as people publish them -> conversations, or a reason why not.

Lists of turns   {"messages": [{"role": "user", "content": ...}, ...]}, {"conversations": [{"from": "human", "value": ...}]}
Flat rows        {"instruction": ..., "input": ..., "output": ...}, {"prompt": ..., "completion": ...}, ...

One rule for all: every field of a record is read, or is known to be harmless (stages.format.fields.HARMLESS and the
source's `ignore`), or repeats what was read; else the row is rejected as `unread field: NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from abctune.core.files import RECORD_CHARACTERS
from abctune.core.params import Part, SourceParams
from abctune.llm.conversation import Message
from stages.format.fields import Fields, is_blank
from stages.format.providers import gemini_parts
from stages.format.repairs import Conversation, repaired, without_nulls
from stages.format.turns import (
    NAME_CHARACTERS,
    REJECTED_NOTE,
    SAID,
    Rejected,
    Turn,
    from_json,
    learn_mark,
    parsed,
    read_tools,
    read_turns,
    text_of,
    told_turns,
)

# More turns than any real dialogue has; a record beyond it is an accident, and costs a rendering a turn.
MAX_MESSAGES = 500
Columns = dict[Part, tuple[str, ...]]  # which columns may hold a part of a row
KNOWN: Columns = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "contents"),
    "system": ("system", "system_prompt", "systemInstruction", "system_instruction"),
    "user": ("instruction", "prompt", "query", "question", "text_input", "input_text"),
    "context": ("input", "context"),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),  # of a flat row's reply
    "assistant": ("output", "completion", "response", "answer", "output_text"),
    "history": ("history",),
    "tools": ("tools", "functions", "toolConfig"),
}
# By schema, the columns that may hold a list of turns; `auto` takes all that are known.
LISTS = {"messages": ("messages",), "sharegpt": ("conversations",), "alpaca": ()}
VERDICTS = ("label", "kto_tag")  # false: this is an answer to avoid
# What Alpaca's, Llama's and ChatML's layouts print around a row's texts.
TEMPLATE_WORDS = re.compile(
    r"Below is an instruction that describes a task(?:, paired with an input that provides further context)?\."
    r"|Write a response that appropriately completes the request\."
    r"|#+ *(?:Instruction|Input|Context|Response|Question|Answer|Human|User|Assistant|System)\b"
    r"|\b(?:Instruction|Input|Context|Response|Question|Answer|Human|User|Assistant|System|Q|A) *:"
    r"|<\|[^|<>]*\|>(?:system|user|assistant)?|</?s>|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
NOT_JSON = "not JSON"
PREFERENCES = ("rejected", "preferred_output", "non_preferred_output", "chosen")


def columns_of(options: SourceParams) -> Columns:
    """The columns that a source's parts are in: those that params.yaml maps, else those that its schema knows."""
    known = KNOWN | {"messages": LISTS.get(options.schema_, KNOWN["messages"])}
    mapped = {part: (column,) for part, column in options.columns.items()}
    if "user" in mapped or "assistant" in mapped:  # then the row is flat, whatever else it holds
        known |= {"messages": (), "context": ()}
    not_ignored: Columns = {
        part: tuple(n for n in names if n not in options.ignore) for part, names in known.items()
    }
    return not_ignored | mapped


class Reader:
    """Reads the records of one source.

    Args:
        group_by: the source's column of this name (`meta` of `meta.user`) is known: it may be left out of training.
    """

    def __init__(self, options: SourceParams, group_by: str | None = None) -> None:
        self._options, self._names = options, columns_of(options)
        self._ignore = options.ignore
        self._known = (*options.ignore, *((group_by, group_by.split(".")[0]) if group_by else ()))

    def read(self, record: str) -> Conversation:
        """One record's conversation.

        Args:
            record: the record as fetched, JSON.

        Raises:
            Rejected: with the reason.
        """
        fields = Fields(_parse(record))
        declared = {*self._options.columns.values(), *self._ignore}
        if any(fields.has(name) for name in PREFERENCES if name not in declared):
            raise Rejected("a preference pair, no conversation to learn")
        turns = self._turns(fields)
        if len(turns) > MAX_MESSAGES:
            raise Rejected("too many messages")
        system = self._system(fields.take(*self._names["system"]))
        tools = read_tools(fields.take(*self._names["tools"]), self._ignore)
        notes = self._verdict(fields) + [note for turn in turns for note in turn.notes]
        turns, tools = without_nulls(turns, tools, notes)
        conversation = repaired(system + turns, tools, self._options.supervise == "last", notes)
        self._check_all_read(fields, conversation)
        return conversation

    def _turns(self, fields: Fields) -> list[Turn]:
        """A record's turns: those of a list of turns, else the question and the answer of a flat row."""
        if fields.has(*self._names["messages"]) or not self._is_flat(fields):
            key = next((name for name in self._names["messages"] if fields.has(name)), None)
            if key is None:
                key = self._empty_list(fields)
            return read_turns(fields.take(key), key, self._ignore)
        return self._flat(fields)

    def _is_flat(self, fields: Fields) -> bool:
        """Whether a record whose lists of turns are empty or absent is a flat row, by its schema or by its columns.

        Under `auto` it has a question that says something, or an answer that does, next to a question that may be blank.
        """
        if self._options.schema_ == "alpaca" or not self._names["messages"]:
            return True
        asked = (*self._names["user"], *self._names["context"])
        known = fields.has(*asked) or (
            fields.has(*self._names["assistant"]) and any(n in asked for n in fields.names())
        )
        return self._options.schema_ == "auto" and known

    def _empty_list(self, fields: Fields) -> str:
        """The key of the list of turns, which is there but empty, so that reading it gives the usual reason.

        Raises:
            Rejected: there is no such key; the reason says where else a list is, or that the schema is not known.
        """
        for name in self._names["messages"]:
            if fields.take(name) is not None:
                return name
        if self._options.schema_ == "auto":
            if inside := next((name for name in fields.names() if self._holds_list(fields.take(name))), None):
                raise Rejected(f"the conversation is inside '{inside[:60]}'")
            raise Rejected("schema not recognised")
        raise Rejected(f"no list of turns under '{self._names['messages'][0]}'")

    def _holds_list(self, value: Any) -> bool:
        """Whether a field of a row is an object with a list of turns, as a log of requests has it."""
        return isinstance(value, dict) and any(
            isinstance(value.get(name), list) for name in self._names["messages"]
        )

    def _flat(self, fields: Fields) -> list[Turn]:
        names = self._names
        request = told_turns(fields.take(*names["user"]))
        context, reply = fields.take(*names["context"]), fields.take(*names["assistant"])
        if reply is None or (request is None and context is None):
            known = self._options.schema_ == "alpaca" or fields.has("instruction")
            raise Rejected("no 'instruction' or no 'output'" if known else "schema not recognised")
        turns = self._history(fields)
        # Next to a request of its own a chat in JSON is a text, to be summed up perhaps.
        if is_blank(request) and _is_turns(told := told_turns(context)):
            request, context = told, None
        # So is a reply to a request in plain text, which may have asked for JSON.
        reply = told_turns(reply) if isinstance(request, list) else reply
        reply = [reply] if isinstance(reply, dict) else reply
        if isinstance(request, list):
            if not is_blank(context):  # it has no place among turns
                raise Rejected(f"unread field: {next(filter(fields.has, names['context']))}")
            asked = [replace(one, learn=False) for one in read_turns(request, "prompt", self._ignore)]
        else:
            # Alpaca's own layout: the context follows the instruction after an empty line.
            parts = [text_of(part, self._ignore) for part in (request, context) if not is_blank(part)]
            asked = [Turn(Message(role="user", content="\n\n".join(parts)))]
        if isinstance(reply, list) and reply and isinstance(reply[0], dict):
            return [*turns, *asked, *read_turns(reply, "completion", self._ignore)]
        answer = Message(role="assistant", content=text_of(reply, self._ignore))
        if not is_blank(thoughts := fields.take(*names["reasoning"])):
            answer["reasoning_content"] = text_of(thoughts, self._ignore)
        return [*turns, *asked, Turn(answer)]

    def _history(self, fields: Fields) -> list[Turn]:
        history = from_json(fields.take(*self._names["history"]))
        if is_blank(history):
            return []
        learn = None if self._options.history == "supervised" else False
        if isinstance(history, list) and all(isinstance(one, dict) for one in history):
            turns = read_turns(history, "history", self._ignore)
            return [replace(one, learn=learn if one.learn is None else one.learn and learn) for one in turns]
        if not isinstance(history, list) or not all(
            isinstance(one, list) and len(one) == 2 for one in history
        ):
            raise Rejected("'history' is no list of [question, answer], nor of turns")
        return [
            turn
            for question, answer in history
            for turn in (
                Turn(Message(role="user", content=text_of(question))),
                Turn(Message(role="assistant", content=text_of(answer)), learn),
            )
        ]

    def _system(self, value: Any) -> list[Turn]:
        if is_blank(value):
            return []
        if isinstance(value, dict) and "parts" in value:  # Gemini's, whose role is not read
            value = gemini_parts(value["parts"]) if value.keys() <= {"parts", "role"} else value
        return [Turn(Message(role="system", content=text_of(value, self._ignore)))]

    def _verdict(self, fields: Fields) -> list[str]:
        for name in VERDICTS:
            if fields.has(name) and name not in self._options.columns.values():
                value = fields.take(name)
                if isinstance(value, str) and value.strip().lower() in ("true", "false"):  # out of a CSV file
                    value = value.strip().lower() == "true"
                if value is False:
                    raise Rejected(f"an answer to avoid ({name}: false)")
                if value is not True and name not in self._ignore:
                    raise Rejected(f"unread field: {name}")
        self._weight(fields)
        if fields.has("rejected_response"):
            fields.take("rejected_response")
            return [REJECTED_NOTE]
        return []

    def _weight(self, fields: Fields) -> None:
        """A row's own weight, which multiplies its loss (Fireworks'): 1 is the same as none, and a conversation's loss can have no other weight here."""
        if not fields.has("weight") or "weight" in self._options.columns.values():
            return
        mark = learn_mark(fields.take("weight"))
        if mark is False:
            raise Rejected("marked not to be learned (weight: 0)")
        if mark is None and "weight" not in self._ignore:
            raise Rejected("unread field: weight")

    def _check_all_read(self, fields: Fields, conversation: Conversation) -> None:
        for name, value in fields.unread(self._known):
            if not _repeats(value, conversation.messages):
                raise Rejected(f"unread field: {name[:NAME_CHARACTERS]}")


def _is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and not value[0].keys().isdisjoint(SAID)
    )


def _repeats(value: Any, messages: Sequence[Message]) -> bool:
    """Whether a text is a whole part of the conversation, or all of it, as Alpaca's `text` is.

    A part is a message or paragraphs of one: a label that an answer mentions is none.
    """
    if not isinstance(value, str):
        return False
    texts = [message["content"].strip() for message in messages]
    framed = f"\n\n{value.strip()}\n\n"
    return any(framed in f"\n\n{text}\n\n" for text in texts) or _adds_nothing(
        value, [part for text in texts for part in text.split("\n\n")]
    )


def _adds_nothing(value: str, paragraphs: Sequence[str]) -> bool:
    """Whether a text is the paragraphs in an instruction template, with no words of its own.

    A text that only quotes them, as an explanation of the answer does, is not.
    """
    for part in sorted(filter(None, paragraphs), key=len, reverse=True):
        before, found, after = value.partition(part)
        if not found:
            return False
        value = f"{before}\0{after}"  # so that no other paragraph can be found across the gap
    return not re.search(r"\w", TEMPLATE_WORDS.sub("", value))


def _parse(record: str) -> dict[str, Any]:
    if len(record) > RECORD_CHARACTERS:
        raise Rejected("too long")
    try:
        fields = parsed(record)
    except RecursionError:
        raise Rejected("nested too deep") from None
    except ValueError:  # also a number of thousands of digits
        raise Rejected(NOT_JSON) from None
    if not isinstance(fields, dict):
        raise Rejected("not a JSON object")
    return fields
