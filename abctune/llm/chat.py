"""Conversations as the model reads them: rendered by the chat template, cut at the replies, and made token ids.

Everything that feeds text to a model (format, live samples, eval, app) goes through `Encoder` and `segments` or
`prompt_pieces`, so that a reply is trained after the same ids after which it is generated.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.llm.conversation import Message, Tools
from abctune.llm.tokenizer import REPLY_MARKUP, control_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
# A thought without text, as templates print it: Qwen's kind and Gemma 4's.
NO_THOUGHT = re.compile(r"(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*$")
THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
# A template that tells whether a message has a text: DeepSeek's print the calls of those alone that have none.
ASKS_FOR_NONE = re.compile(r"message\[['\"]content['\"]\]\s+is\s+none")
FAILS = "chat template fails"
CHANGED = "the chat template changes earlier text; labels would be wrong"
PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without a meaning, which stand for control tokens in texts


class TemplateError(UserError):
    """The chat template rewrites earlier turns, so labels cannot be placed by construction."""


class Unrenderable(UserError):
    """The chat template raises an error on this conversation: it refuses a role, or it is broken."""


@dataclass(frozen=True)
class Piece:
    """A run of rendered text that is tokenised apart from its neighbours."""

    text: str
    turn: int | None = None  # the number of the message, where this is an assistant's reply


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Tools | None = None,
) -> str:
    """The conversation as text, by the chat template in Jinja's sandbox: it reads no file and runs no code.

    Raises:
        Unrenderable: the template fails on this conversation.
    """
    asks = ASKS_FOR_NONE.search(tokenizer.chat_template or "")
    if asks and any("tool_calls" in message and not message["content"] for message in messages):
        try:
            return _applied(tokenizer, messages, add_generation_prompt, tools, none=True)
        except Unrenderable:  # Ministral 3 asks whether the text is none, and then for its length
            pass
    return _applied(tokenizer, messages, add_generation_prompt, tools, none=False)


def _applied(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Tools | None,
    none: bool,
) -> str:
    """What the template prints; with `none`, a message of tool calls alone has no text instead of an empty one."""
    try:
        text: str = tokenizer.apply_chat_template(
            [_for_template(message, none) for message in messages],
            tools=tools,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # whatever a model's own template raises
        raise Unrenderable(f"{FAILS} ({' '.join(str(error).split())[:100]})") from error
    return text


def _for_template(message: Message, none: bool) -> Mapping[str, Any]:
    if len(message) == 2:
        return message
    found: dict[str, Any] = {**message}
    if (
        "reasoning_content" in message
    ):  # gpt-oss calls it `thinking`, Qwen, GLM and the rest `reasoning_content`
        found["thinking"] = message["reasoning_content"]
    if none and "tool_calls" in message and not message["content"]:
        found["content"] = None
    return found


def system_folded(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation with its system message before the first question, for templates without that role (Gemma 2).

    As Gemma 3's template prints it. None where there is no system message, or no question after it.
    """
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, question = messages[:2]
    text = f"{system['content']}\n\n{question['content']}"
    return [Message(**{**question, "content": text}), *messages[2:]]


def segments(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None = None
) -> list[Piece]:
    """The rendered conversation, cut at its assistant boundaries.

    Returns:
        Pieces whose texts concatenate to the rendered conversation. A reply's text runs from the end of the assistant
        header to the end of what the template prints for that turn.

    Raises:
        TemplateError: a rendering is not a prefix of the next one.
    """
    pieces, rendered = _through_replies(tokenizer, messages, tools)
    if messages and messages[-1]["role"] != "assistant":
        pieces.append(_rest(rendered, render(tokenizer, messages, False, tools)))
    return pieces


def _through_replies(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None
) -> tuple[list[Piece], str]:
    pieces: list[Piece] = []
    rendered = ""
    for turn, message in enumerate(messages):
        if (
            message["role"] != "assistant" or turn == 0
        ):  # a reply before the first question answers nothing: it is context
            continue
        prompt = render(tokenizer, messages[:turn], add_generation_prompt=True, tools=tools)
        through = render(tokenizer, messages[: turn + 1], add_generation_prompt=False, tools=tools)
        pieces += [_rest(rendered, prompt), Piece(_rest(prompt, through).text, turn)]
        rendered = through
    return pieces, rendered


def _rest(before: str, text: str) -> Piece:
    if not text.startswith(before):
        raise TemplateError(CHANGED)
    return Piece(text[len(before) :])


def prompt_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None = None
) -> list[Piece]:
    """The pieces of a conversation that awaits a reply.

    Where the template rewrites earlier turns (Qwen3 drops past thoughts), the whole prompt is one piece.
    """
    prompt = render(tokenizer, messages, add_generation_prompt=True, tools=tools)
    try:
        pieces, rendered = _through_replies(tokenizer, messages, tools)
        return [*pieces, _rest(rendered, prompt)]
    except TemplateError:
        return [Piece(prompt)]


def reply_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None = None
) -> list[Piece]:
    """A conversation that ends with the assistant, as inference shows it: the prompt's pieces, then the reply.

    Usually the reply is what the whole conversation prints after its prompt. Four kinds of templates print the prompt in
    another way once it is answered, and each has a branch: the prompt has an empty thought, which a reply without
    thoughts lacks (Qwen3 without thinking); it opens the thoughts, which replies lose (DeepSeek R1); earlier thoughts
    are printed only until the reply is there (gpt-oss); the system message or the tools stand with the question that
    awaits its reply (Mistral).

    Raises:
        TemplateError: the template prints the last turn in another way than after its own generation prompt.
    """
    turn, reply = len(messages) - 1, messages[-1]
    prompt = render(tokenizer, messages[:-1], add_generation_prompt=True, tools=tools)
    through = render(tokenizer, messages, add_generation_prompt=False, tools=tools)
    if through.startswith(prompt):
        text = through[len(prompt) :]
    else:
        fits = (text for text in ("zqz", "qzq") if text not in prompt and text[0] != reply["content"][:1])
        probe = next(fits, "zqz")
        other = render(tokenizer, [*messages[:-1], Message(role="assistant", content=probe)], False, tools)
        head = _common(prompt, NO_THOUGHT.sub("", other.rpartition(probe)[0]))
        opener, printed = prompt[len(head) :], through[len(head) :]
        if through.startswith(head) and NO_THOUGHT.match(opener) and not reply.get("reasoning_content"):
            text = printed
        elif through.startswith(head) and opener.strip() == THINK_OPEN:
            text = _thought_aloud(reply, printed)
        elif any("reasoning_content" in message for message in messages[:-1]):
            before = render(tokenizer, messages[:-1], add_generation_prompt=False, tools=tools)
            text = _behind(prompt[len(_common(before, prompt)) :], through, other)
        else:
            text = _behind_question(prompt, messages[turn - 1], through, other)
    return [*prompt_pieces(tokenizer, messages[:-1], tools), Piece(text, turn)]


def _common(one: str, other: str) -> str:
    """What two texts begin with."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in same)]


def _behind(header: str, through: str, other: str) -> str:
    """The reply after its header, where the template drops earlier thoughts only once the reply is there (gpt-oss).

    Args:
        header: what the template prints to have a reply written.
        through: the conversation with the reply.
        other: the same with another reply, which shows where the header is.
    """
    before, found, _ = _common(through, other).rpartition(header)
    if not (header and found):
        raise TemplateError(CHANGED)
    return through[len(before) + len(header) :]


def _behind_question(prompt: str, asked: Message, through: str, other: str) -> str:
    """The reply, where the template prints the question in another way once it is answered.

    Mistral's print the system message, and some the tools, with the last question only while it awaits its reply.

    Args:
        prompt: the conversation that awaits the reply; what it prints after the question has the reply written.
        asked: the message before the reply.
        through, other: as in `_behind`.
    """
    header = prompt.rpartition(asked["content"].strip())[2]
    before, found, rest = _common(through, other).rpartition(header) if header else ("", "", "")
    if not found or rest.strip():
        raise TemplateError(CHANGED)
    return through[len(before) + len(header) :]


def _thought_aloud(reply: Message, printed: str) -> str:
    """The reply after a prompt that opens the thoughts itself, under a template that drops them (DeepSeek R1).

    Args:
        printed: what the template prints of it after the header.
    """
    inside, _, answer = reply["content"].rpartition(THINK_CLOSE)
    thoughts = (reply.get("reasoning_content") or inside.replace(THINK_OPEN, "")).strip()
    answer = answer.strip()
    if answer not in printed or not (answer or "tool_calls" in reply):
        raise TemplateError(CHANGED)
    if "tool_calls" in reply:  # printed around or after the answer
        found = THOUGHT.match(printed)
        answer, rest = "", printed[found.end() if found else 0 :].lstrip()
    else:
        rest = printed.rpartition(answer)[2]
    return f"{thoughts}\n{THINK_CLOSE}\n\n{answer}{rest}"


@dataclass
class Encoder:
    """Pieces of text -> token ids, with one tokenizer as it is now.

    A control token that someone wrote stays the characters they wrote: a `<|im_end|>` in a message would otherwise end
    the user's turn and let the rest of the message speak as the system. While the template is applied, one private-use
    character stands for each (`mask`); `ids` spells it out.
    """

    tokenizer: PreTrainedTokenizerBase
    _spelled: dict[str, list[int]] = field(
        default_factory=dict
    )  # a control token's text -> ids of its characters

    def __post_init__(self) -> None:
        tokens = control_tokens(self.tokenizer)
        self._any, self._in_reply = (
            _alternatives(tokens),
            _alternatives(token for token in tokens if token not in REPLY_MARKUP),
        )
        core = self._core
        bare, after_break = (core.encode(text, add_special_tokens=False).ids for text in ("a", "\na"))
        # Llama 2's kind puts a word boundary before every text, but not after a line break.
        self._anchor = "" if after_break[-len(bare) :] == bare else "\n"

    @property
    def _core(self) -> Tokenizer:
        """The tokenizer's Rust core, which keeps what a call of transformers' last set: to split control tokens, cut or pad.

        Then a copy that does none of these. To set the core back would disturb another thread's call.
        """
        core: Tokenizer = self.tokenizer.backend_tokenizer
        if core.encode_special_tokens or core.truncation or core.padding:
            core = copy.deepcopy(core)
            core.encode_special_tokens = False
            core.no_truncation()
            core.no_padding()
        return core

    def mask(
        self, messages: Sequence[Message], tools: Tools | None = None
    ) -> tuple[list[Message], Tools | None, dict[str, str]]:
        """Messages and tools with a character in the place of each control token that is spelled in them.

        Returns:
            The same objects where there is none; and {character: token}.
        """
        if not self._spells_any(messages, tools):
            return list(messages), tools, {}
        everything = json.dumps([list(messages), tools], ensure_ascii=False)
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in everything)
        characters: dict[str, str] = {}

        def masked(value: Any, pattern: re.Pattern[str]) -> Any:
            """A JSON value with every spelled control token, in keys too, replaced by its character."""
            if isinstance(value, str):
                return pattern.sub(lambda found: _mark(characters, found[0], free), value)
            if isinstance(value, dict):
                return {masked(key, pattern): masked(inner, pattern) for key, inner in value.items()}
            return [masked(inner, pattern) for inner in value] if isinstance(value, list) else value

        changed: list[Any] = [
            {**masked(message, self._pattern(message)), "role": message["role"]} for message in messages
        ]
        return changed, masked(tools, self._any), {mark: token for token, mark in characters.items()}

    def _pattern(self, message: Message) -> re.Pattern[str]:
        return self._in_reply if message["role"] == "assistant" else self._any

    def _spells_any(self, messages: Sequence[Message], tools: Tools | None) -> bool:
        for message in messages:
            pattern = self._pattern(message)
            plain = len(message) == 2
            if pattern.search(message["content"] if plain else json.dumps(message, ensure_ascii=False)):
                return True
        return tools is not None and bool(self._any.search(json.dumps(tools, ensure_ascii=False)))

    def ids(
        self, texts: Sequence[str], marks: Mapping[str, str] | None = None, begins: Container[int] = ()
    ) -> list[list[int]]:
        """Token ids of each text, marks spelled out in characters; no bos is added.

        Args:
            begins: numbers of the texts that begin a conversation, not go on with one.
        """
        if not marks:
            # The tokenizer's Rust core on all cores; transformers' wrapper would build unused masks and offsets.
            encode = self._core.encode_batch_fast
            if not self._anchor:
                return [one.ids for one in encode(list(texts), add_special_tokens=False)]
            anchors = ["" if number in begins else self._anchor for number in range(len(texts))]
            anchored = [anchor + text for anchor, text in zip(anchors, texts, strict=True)]
            found = [one.ids for one in encode(anchored, add_special_tokens=False)]
            return [
                ids[self._n_anchor :] if anchor else ids for anchor, ids in zip(anchors, found, strict=True)
            ]
        split = re.compile(f"([{''.join(marks)}])").split
        return [
            [
                token
                for place, part in enumerate(split(text))
                if part
                for token in (
                    self._characters(marks[part])
                    if part in marks
                    else self.ids([part], begins=(0,) if number in begins and not place else ())[0]
                )
            ]
            for number, text in enumerate(texts)
        ]

    @property
    def _n_anchor(self) -> int:
        return len(self._core.encode(self._anchor, add_special_tokens=False).ids)

    def _characters(self, token: str) -> list[int]:
        """Ids of a control token's characters: in two halves, neither of which is the token."""
        if token not in self._spelled:
            self._spelled[token] = [part for ids in self.ids([token[:1], token[1:]]) for part in ids]
        return self._spelled[token]


def _mark(characters: dict[str, str], token: str, free: Iterable[str]) -> str:
    if token not in characters:
        characters[token] = next(iter(free))
    return characters[token]


def _alternatives(tokens: Iterable[str]) -> re.Pattern[str]:
    # The longest first, as tokenizers match them.
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None = None
) -> list[int]:
    """Token ids of a conversation that awaits a reply, tokenised piece by piece as in training.

    Where the template refuses a system message, it stands before the first question, as in training.

    Raises:
        Unrenderable: the template fails on this conversation.
    """
    encoder = Encoder(tokenizer)
    masked, masked_tools, marks = encoder.mask(messages, tools)
    try:
        pieces = prompt_pieces(tokenizer, masked, masked_tools)
    except Unrenderable:
        if (folded := system_folded(masked)) is None:
            raise
        pieces = prompt_pieces(tokenizer, folded, masked_tools)
    found = encoder.ids([piece.text for piece in pieces], marks, begins=(0,))
    return [token for ids in found for token in ids]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text outside any conversation, without a bos; control tokens in it stay the characters written.

    In place of transformers' `split_special_tokens=True`, which stays set for whoever uses the tokenizer next.
    """
    encoder = Encoder(tokenizer)
    (masked,), _, marks = encoder.mask([Message(role="user", content=text)])
    return encoder.ids([masked["content"]], marks, begins=(0,))[0]


def prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before any text, as in pretraining: a beginning-of-text token, or nothing."""
    ids: list[int] = tokenizer.encode("a")
    plain: list[int] = tokenizer.encode("a", add_special_tokens=False)
    return ids[: len(ids) - len(plain)] if ids[len(ids) - len(plain) :] == plain else []
