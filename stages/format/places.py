"""Whether a chat template prints every part of a conversation, whatever the parts say.

A text can stand in what was rendered by chance: the tool `weather` in a question about the weather, a thought in the answer
that repeats it. So for each build (roles, and what each turn holds) a conversation of texts that nobody writes is
rendered once, and each of them must be there.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from abctune.llm.chat import TemplateError, Unrenderable, render, reply_pieces
from abctune.llm.conversation import Message, Tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_REASONING = "chat template has no place for reasoning"
NO_CALLS = "chat template has no place for tool calls"
NO_TOOLS = "chat template has no place for tools"
REMEMBERED = 4096  # builds; a data set of tool calls has hundreds


class Places:
    """What one tokenizer's chat template leaves out, by build.

    It asks once per build whether the template has a place for each part at all. Whether the texts of one conversation
    came through whole is another question, which stages.format.render.check_complete asks of every row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._found: dict[Hashable, str | None] = {}

    def missing(self, messages: Sequence[Message], tools: Tools | None, one_reply: bool) -> str | None:
        """The reason to refuse conversations of this build; None where the template prints all of them.

        Args:
            one_reply: the last message alone is learned, and the thoughts of earlier ones may be dropped.
        """
        build = (one_reply, *map(_build, messages), None, *map(_is_described, tools or ()))
        if build not in self._found:
            if len(self._found) == REMEMBERED:
                self._found.clear()
            self._found[build] = self._tried(messages, tools, one_reply)
        return self._found[build]

    def _tried(self, messages: Sequence[Message], tools: Tools | None, one_reply: bool) -> str | None:
        probes = Probes()
        last = len(messages) - 1
        probed = [
            probes.message(message, not one_reply or turn == last) for turn, message in enumerate(messages)
        ]
        probed_tools = [probes.tool(tool) for tool in tools] if tools else tools
        try:
            if one_reply:
                text = "".join(piece.text for piece in reply_pieces(self._tokenizer, probed, probed_tools))
            else:
                text = render(self._tokenizer, probed, add_generation_prompt=False, tools=probed_tools)
        except (TemplateError, Unrenderable):
            return None  # a template that wants particular texts; what it made of the real ones is checked in any case
        return next((reason for probe, reason in probes.wanted.items() if probe not in text), None)


class Probes:
    """Texts that nobody writes, each with the reason to give where it is not printed."""

    def __init__(self) -> None:
        self.wanted: dict[str, str] = {}
        self._numbers = count()

    def _probe(self, reason: str | None) -> str:
        text = f"zq{next(self._numbers)}qz"
        if reason:
            self.wanted[text] = reason
        return text

    def message(self, message: Message, thoughts: bool) -> Message:
        """The message with its texts replaced; its thoughts are wanted or not."""
        changed: dict[str, Any] = dict(message)
        if _says(message["content"]):
            changed["content"] = self._probe(f"chat template leaves out the {message['role']}'s text")
        if "reasoning_content" in message:
            changed["reasoning_content"] = self._probe(NO_REASONING if thoughts else None)
        if "tool_calls" in message:
            changed["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return Message(**changed)  # type: ignore[typeddict-item]

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        name, argument, value = (self._probe(NO_CALLS) for _ in range(3))
        as_text = isinstance(call["function"]["arguments"], str)
        arguments = f'{{"{argument}": "{value}"}}' if as_text else {argument: value}
        return {**call, "function": {**call["function"], "name": name, "arguments": arguments}}

    def tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        """The tool under another name, with another description."""
        function = {**tool["function"], "name": self._probe(NO_TOOLS)}
        if _is_described(tool):
            function["description"] = self._probe(NO_TOOLS)
        return {**tool, "function": function}


def _build(message: Message) -> Hashable:
    """What a template may decide by: the role, and which parts the message has; not what they say."""
    role, says = message["role"], _says(message["content"])
    if len(message) == 2:
        return role, says
    kinds = tuple(isinstance(call["function"]["arguments"], str) for call in message.get("tool_calls", ()))
    return role, says, "reasoning_content" in message, kinds


def _is_described(tool: dict[str, Any]) -> bool:
    description = tool["function"].get("description")
    return isinstance(description, str) and _says(description)


def _says(text: str) -> bool:
    return bool(text) and not text.isspace()
