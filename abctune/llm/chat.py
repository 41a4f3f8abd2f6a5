"""Conversations as the model reads them: the chat template, the pieces between turns, the stop tokens.

Everything that feeds text to a model (format, live samples, eval, app) goes through `segments`, so that the
ids a reply is trained behind are the ids it is generated behind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abctune.core.errors import UserError
from abctune.llm.conversation import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_MODEL = Path("models/base")
# Llama 3.1/3.2 templates print today's date unless given one; this is the date the report's prompt shows.
DATE_STRING = "26 July 2024"
# End-of-turn tokens of the common chat formats; a tokenizer that has one stops generation on it.
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "</s>")


class TemplateError(UserError):
    """The chat template rewrites earlier turns, so labels cannot be placed by construction."""


class Unrenderable(UserError):
    """The chat template raises an error on this conversation: it refuses a role, or it is broken."""


def load_tokenizer(path: Path = BASE_MODEL, chat_template: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder with the chat template that params name.

    Args:
        chat_template: `model` keeps the model's own; any other name is a file `<name>.jinja` beside this module.

    Raises:
        UserError: no tokenizer in the folder, no template, or padding that would hide the end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not (path / "tokenizer.json").exists():
        raise UserError(
            f"{path}/tokenizer.json not found; `dvc repro fetch-model` makes it, or `dvc pull` brings it"
        )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if chat_template != "model":
        tokenizer.chat_template = (Path(__file__).parent / f"{chat_template}.jinja").read_text(
            encoding="utf-8"
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"{path} has no chat template; name one with profiles.*.model.chat_template in params.yaml"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # Padding with eos makes collators mask the real eos, and the model never learns to stop.
        raise UserError(f"{path}: the pad token must be set and differ from eos ({tokenizer.eos_token!r})")
    return tokenizer


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of the chat template's source and the pinned date."""
    return hashlib.sha256(f"{DATE_STRING}\n{tokenizer.chat_template}".encode()).hexdigest()


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end a reply: the tokenizer's eos and whichever end-of-turn tokens it knows."""
    known = (tokenizer.convert_tokens_to_ids(token) for token in END_OF_TURN)
    ids = {tokenizer.eos_token_id, *known} - {None, tokenizer.unk_token_id}
    return frozenset(ids)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Every string that the tokenizer would turn into a special token, wherever it stands in a text."""
    return tuple(sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special))


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    """The conversation as text, by the chat template in Jinja's sandbox: it reads no file and runs no code.

    Raises:
        Unrenderable: the template fails on this conversation.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=DATE_STRING,
        )
    except Exception as error:  # whatever a model's own template raises
        raise Unrenderable(f"chat template fails ({' '.join(str(error).split())[:100]})") from error


def segments(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """MicroBatching the rendered conversation at its assistant boundaries.

    Returns:
        (text, is_reply) pairs whose texts concatenate to the rendered conversation. A reply's text runs from
        behind the assistant header to the end of what the template prints for that turn.

    Raises:
        TemplateError: a rendering is not a prefix of the next one.
    """
    pieces: list[tuple[str, bool]] = []
    rendered = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:turn], add_generation_prompt=True)
        through = render(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        if not (prompt.startswith(rendered) and through.startswith(prompt)):
            raise TemplateError(
                f"the chat template changes earlier text at message {turn}; labels would be wrong"
            )
        pieces += [(prompt[len(rendered) :], False), (through[len(prompt) :], True)]
        rendered = through
    if messages and messages[-1]["role"] != "assistant":
        whole = render(tokenizer, messages, add_generation_prompt=False)
        if not whole.startswith(rendered):
            raise TemplateError(
                "the chat template changes earlier text at the last message; labels would be wrong"
            )
        pieces.append((whole[len(rendered) :], False))
    return pieces


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that awaits a reply, tokenised piece by piece as in training.

    A control token that someone wrote stays the characters they wrote: a `<|im_end|>` in a message would
    otherwise end the user's turn and let the rest of the message speak as the system. (format rejects such rows,
    so training and this agree on all text that training has seen.)
    """
    contents = [message["content"] for message in messages]
    written = [token for token in control_tokens(tokenizer) if any(token in text for text in contents)]
    # One private-use character stands for each while the template is applied.
    stands_for = {chr(0xF0000 + index): token for index, token in enumerate(written)}
    masked = [Message(role=one["role"], content=_mask(one["content"], stands_for)) for one in messages]
    pieces = [text for text, _ in segments(tokenizer, masked[:-1])]
    past, prompt = "".join(pieces), render(tokenizer, masked, add_generation_prompt=True)
    if not prompt.startswith(past):
        raise TemplateError("the chat template changes earlier text at the last message")
    parts = re.compile(f"([{''.join(stands_for)}])").split if stands_for else lambda piece: [piece]
    return [
        token
        for piece in [*pieces, prompt[len(past) :]]
        for part in parts(piece)
        for token in tokenizer.encode(
            stands_for.get(part, part), add_special_tokens=False, split_special_tokens=part in stands_for
        )
    ]


def _mask(text: str, stands_for: dict[str, str]) -> str:
    for mark, token in sorted(stands_for.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(mark, "").replace(token, mark)
    return text
