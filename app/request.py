"""What a person or a program may ask for. It is checked here, whatever the page or the client has checked before.

Gradio's sliders let NaN through and its text boxes check no length on direct API calls, so nothing that arrives
is trusted.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abctune.llm.conversation import Message

CONTEXT_TOKENS = 2048  # the report's max_seq_length; longer conversations lose their oldest turns
MAX_CHARACTERS = 16_000  # per message: about twice what the context holds of English text
MAX_MESSAGES = 200
MAX_NEW_TOKENS = 1024
MAX_STOPS = 4  # as OpenAI's API
SEEDS = 2**32
MAX_STRENGTH = 2.0
MAX_LIKELIEST = 20  # alternatives to a token that can be asked for, as in OpenAI's API
ROLES = ("system", "user", "assistant")


class Refused(Exception):
    """A request that is not served. The message is written for the person who asked and safe to show."""


class NoSuchModel(Refused):
    """The model that is asked for is not served here."""


class Sampling(BaseModel):
    """How the next token is chosen. Temperature 0 is greedy; then top_p and seed change nothing.

    seed: None until app.service draws one, so that a retry is another answer; the answer records what was drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(ge=0.05, le=1)] = 0.9
    top_k: Annotated[int, Field(ge=0)] = 0  # the likeliest tokens that are kept; 0: all
    min_p: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # of the likeliest token's probability; less likely ones go
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 256
    repetition_penalty: Annotated[float, Field(ge=1, le=2)] = 1.1
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    # What the adapter adds to the base's weights is multiplied by it: 0 is the base, 1 the variant as it was trained.
    adapter_strength: Annotated[float, Field(ge=0, le=MAX_STRENGTH)] = 1.0


@dataclass(frozen=True)
class Request:
    """One answer to give: by which model, to which conversation, how."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    prompt: str | None = None  # in place of messages: a text to go on with, without a chat template
    likeliest: int | None = None  # report each token's score and this many alternatives, up to MAX_LIKELIEST
    grammar: str | None = None  # GBNF that the answer keeps to


def draw_seeds(requests: Sequence[Request]) -> list[Request]:
    """The requests with a seed for those that set none: one for all, so that a comparison's models share it."""
    drawn = secrets.randbelow(SEEDS)
    return [
        request
        if request.sampling.seed is not None
        else replace(request, sampling=request.sampling.model_copy(update={"seed": drawn}))
        for request in requests
    ]


def read_sampling(limit: str = "max_new_tokens", **values: Any) -> Sampling:
    """Sampling settings from what a caller gave, checked.

    Args:
        limit: what the caller calls `max_new_tokens`.
    """
    try:
        return Sampling.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"])) or "settings"
        name = limit if name == "max_new_tokens" else name
        raise Refused(f"{name}: {problem['msg'].lower()}") from None


def read_request(known: Sequence[str], model: Any, messages: Any, sampling: Sampling) -> Request:
    """Check the model's name and the conversation's shape and size.

    Raises:
        Refused: with what is wrong and what would be right.
    """
    if not isinstance(model, str) or model not in known:
        refusal = NoSuchModel if isinstance(model, str) else Refused
        raise refusal(f"no such model here; there is {', '.join(known)}")
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise Refused("messages must be a list with at least one message")
    if len(messages) > MAX_MESSAGES:
        raise Refused(f"{len(messages)} messages; at most {MAX_MESSAGES} are read. Start a new conversation")
    checked = [_message(message) for message in messages]
    # Clients send an empty system message for none.
    kept = tuple(message for message in checked if message["content"] or message["role"] != "system")
    if not kept:
        raise Refused("messages must hold more than an empty system message")
    return Request(model, kept, sampling)


def read_stop(value: Any) -> tuple[str, ...]:
    """`stop` of OpenAI's API: nothing, a string or a few of them."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(one, str) for one in stops)
    ):
        raise Refused(f"stop must be a string or a list of at most {MAX_STOPS}")
    return tuple(one for one in stops if one)


def _message(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise Refused(f"each message needs a role ({', '.join(ROLES)}) and content")
    _check_known(message, ("role", "content", "name", "id"), "messages")  # those two change no answer
    content = message.get("content")
    # The API itself gives an empty answer where the model ends its turn at once; clients send it back.
    if message["role"] != "user" and content in (None, "", []):
        return {"role": message["role"], "content": ""}
    return {"role": message["role"], "content": read_text(content)}


def _check_known(given: dict[str, Any], known: Sequence[str], name: str) -> None:
    """Refuse what is not read. Clients send back the fields of an answer without a value (`tool_calls`: null)."""
    for key, value in given.items():
        if key not in known and value not in (None, False, "", [], {}):
            raise Refused(f"{name}: {str(key)[:40]} is not supported here; leave it out")


def read_text(content: Any) -> str:
    """A message's text as it was written: a string, or a list of `text` parts as Gradio and the OpenAI API also write it.

    White space at its ends stays, and parts follow one another without a break, as in training.
    """
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        for part in content:
            _check_known(part, ("type", "text", "cache_control"), "a message's content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refused("a message's content must be text; files and images are not read")
    if len(content) > MAX_CHARACTERS:
        raise Refused(
            f"a message of {len(content):,} characters is too long; at most {MAX_CHARACTERS:,} are read"
        )
    # A lone surrogate is valid in JSON and in a Python string, but has no UTF-8 and so no tokens.
    content = content.encode("utf-8", "replace").decode("utf-8")
    if not content.strip():
        raise Refused("an empty message; write something first")
    return content
