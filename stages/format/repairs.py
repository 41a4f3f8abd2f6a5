"""What is repaired in a conversation, each kind counted, and what cannot be: the order of turns, empty texts, no reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from abctune.llm.chat import system_folded
from abctune.llm.conversation import Message, Tools
from stages.format.turns import Rejected, Turn

# Thoughts that a reply's text begins with; some sets leave out the opening mark, as DeepSeek R1's answers do.
THOUGHTS_INSIDE = re.compile(
    r"\s*(?:<(?:think|thinking|thought|reasoning)>)?(?P<thoughts>.*?)</(?P<tag>think|thinking|thought|reasoning)>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Conversation:
    """What a record says: its messages, and which of them are learned (replies only)."""

    messages: list[Message]
    supervised: list[bool]
    tools: Tools | None = None
    repairs: tuple[str, ...] = ()

    @property
    def marks(self) -> list[bool] | None:
        """`supervised` where the data say more than that every reply is learned, else None."""
        usual = [message["role"] == "assistant" for message in self.messages]
        return None if self.supervised == usual else self.supervised


def repaired(
    turns: Sequence[Turn], tools: Tools | None, last_only: bool, notes: Sequence[str] = ()
) -> Conversation:
    """The conversation of some turns.

    Args:
        last_only: learn the last reply alone.
        notes: what has been repaired before.

    Raises:
        Rejected: there is nothing to learn, a text is missing, or a system message comes after the first turn.
    """
    if not turns:
        raise Rejected("empty conversation")
    repairs = list(notes)
    turns = [_one_thought(turn, repairs) for turn in turns]
    turns = _without_empty(_one_system(turns, repairs), repairs)
    replies = [number for number, turn in enumerate(turns) if turn.message["role"] == "assistant"]
    if not replies:
        raise Rejected("no assistant turn")
    opening = _opening(turns)
    if opening is not None:
        repairs.append("an assistant's opening is context")
    learned = [
        number
        for number in replies
        if turns[number].learn is not False
        and number != opening
        and not (last_only and number != replies[-1])
    ]
    if len(turns) == 1:
        raise Rejected("nothing stands before the reply")
    if not learned:
        raise Rejected("no reply is marked to be learned")
    if any(turns[number].learn is False for number in replies):
        repairs.append("reply marked not to be learned is context")
    if any(turn.learn and turn.message["role"] != "assistant" for turn in turns):
        repairs.append("turn marked to be learned is no reply")
    supervised = [number in learned for number in range(len(turns))]
    return Conversation([turn.message for turn in turns], supervised, tools, tuple(dict.fromkeys(repairs)))


def without_nulls(
    turns: Sequence[Turn], tools: Tools | None, notes: list[str]
) -> tuple[list[Turn], Tools | None]:
    """Turns and tools without the nulls in tool calls' arguments and in the tools, noted where there were any.

    Parquet and Arrow give all objects of a column the same keys: a call of one tool has the arguments of all others as
    null, and a model would learn to write them.
    """
    kept_tools = _dropped(tools) if tools else tools
    kept = [
        replace(turn, message=Message(**{**turn.message, "tool_calls": _dropped(turn.message["tool_calls"])}))  # type: ignore[typeddict-item]
        if "tool_calls" in turn.message
        else turn
        for turn in turns
    ]
    if kept_tools != tools or kept != list(turns):
        notes.append("nulls in tools and tool calls left out")
    return kept, kept_tools


def _dropped(value: Any) -> Any:
    """A value without the keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: _dropped(inner) for key, inner in value.items() if inner is not None}
    return [_dropped(inner) for inner in value] if isinstance(value, list) else value


def _one_thought(turn: Turn, notes: list[str]) -> Turn:
    """The turn with its thoughts once: those in the text stay where a field of their own gives them again.

    Raises:
        Rejected: the two differ, so one of them is not what was thought.
    """
    given = turn.message.get("reasoning_content")
    if given is None or (inside := THOUGHTS_INSIDE.match(turn.message["content"])) is None:
        return turn
    if given.strip() != inside["thoughts"].strip():
        raise Rejected(f"reasoning differs from that between <{inside['tag']}> in the text")
    notes.append("reasoning given twice is learned once")
    message = Message(**{k: v for k, v in turn.message.items() if k != "reasoning_content"})  # type: ignore[typeddict-item]
    return replace(turn, message=message)


def _one_system(turns: list[Turn], notes: list[str]) -> list[Turn]:
    """The system turns at the beginning as one turn; those without text are dropped."""
    count = next((n for n, turn in enumerate(turns) if turn.message["role"] != "system"), len(turns))
    texts = list(dict.fromkeys(t for turn in turns[:count] if (t := turn.message["content"]).strip()))
    if any(turn.message["role"] == "system" for turn in turns[count:]):
        raise Rejected("wrong turn order")
    if len(texts) > 1:
        notes.append("system messages joined")
    head = [Turn(Message(role="system", content="\n\n".join(texts)))] if texts else []
    return head + turns[count:]


def _without_empty(turns: list[Turn], notes: list[str]) -> list[Turn]:
    """The conversation up to its first empty reply; an empty question spoils the row."""
    for number, turn in enumerate(turns):
        message = turn.message
        if message["content"].strip() or message["role"] == "tool" or "tool_calls" in message:
            continue
        if message["role"] == "user" or not any(t.message["role"] == "assistant" for t in turns[:number]):
            raise Rejected("empty message")
        notes.append("cut at an empty reply")
        return turns[:number]
    return turns


def _opening(turns: Sequence[Turn]) -> int | None:
    """The number of an assistant's turn that opens a conversation which a user goes on with: a greeting, no answer."""
    first = 1 if turns[0].message["role"] == "system" else 0
    opens = turns[first].message["role"] == "assistant"
    goes_on = any(turn.message["role"] == "user" for turn in turns[first:])
    return first if opens and goes_on else None


def merged(conversation: Conversation) -> Conversation:
    """The conversation with consecutive turns of one role joined by an empty line, for templates that require it."""
    messages: list[Message] = []
    supervised: list[bool] = []
    for message, learn in zip(conversation.messages, conversation.supervised, strict=True):
        same = messages and messages[-1]["role"] == message["role"] and message["role"] != "tool"
        if same and len(messages[-1]) == len(message) == 2:
            # A reply of which a part is not to be learned cannot be learned in part.
            supervised[-1] = supervised[-1] and learn
            messages[-1] = Message(
                role=message["role"], content=f"{messages[-1]['content']}\n\n{message['content']}"
            )
        else:
            messages.append(message)
            supervised.append(learn)
    if len(messages) == len(conversation.messages):
        return conversation
    repairs = (*conversation.repairs, "neighbouring turns of one role joined")
    return replace(conversation, messages=messages, supervised=supervised, repairs=repairs)


def folded(conversation: Conversation) -> Conversation:
    """The conversation with its system message before the first question, for templates that refuse the role."""
    messages = system_folded(conversation.messages)
    if messages is None:
        return conversation
    repairs = (*conversation.repairs, "system message put before the first question")
    return replace(conversation, messages=messages, supervised=conversation.supervised[1:], repairs=repairs)
