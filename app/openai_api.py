"""`/v1/models`, `/v1/chat/completions` and `/v1/completions` for OpenAI's clients, so that other tools can use a variant."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.engines import Likely, TokenScore
from app.grammar import read_grammar
from app.request import (
    MAX_LIKELIEST,
    MAX_NEW_TOKENS,
    NoSuchModel,
    Refused,
    Request,
    Sampling,
    read_request,
    read_sampling,
    read_stop,
)
from app.service import BUSY, FAILED, Reply, Service, Waiting

log = logging.getLogger("app")
MAX_BODY = 2**20
RETRY_SECONDS = 5  # when a full line is worth another try
# Fields that many clients send with their default values, which ask for nothing.
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
}
# Fields of the other route.
ONLY_CHAT: dict[str, tuple[Any, ...]] = {"prompt": (None,)}
ONLY_TEXT: dict[str, tuple[Any, ...]] = {"messages": (None,), "top_logprobs": (None, 0)}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "adapter_strength")
LIMITS = ("max_tokens", "max_completion_tokens")  # one, by its old and its new name
# Fields that change no answer, and fields that are read elsewhere in this module. Any other field is refused, so that
# none is ignored silently.
KNOWN = {
    *ONLY,
    *SAMPLING,
    *LIMITS,
    *(
        "model",
        "messages",
        "prompt",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "response_format",
        "grammar",
    ),
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
}


def openai_routes(service: Service) -> APIRouter:
    """The routes of OpenAI's API, answered by the service."""
    routes = APIRouter()
    created = int(time.time())

    def row(name: str) -> dict[str, Any]:
        """A model as OpenAI's API lists it."""
        return {"id": name, "object": "model", "created": created, "owned_by": "abctune"}

    @routes.get("/health")
    def health() -> dict[str, str]:
        """Whether the server answers, as llama.cpp's server says it."""
        return {"status": "ok"}

    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        """The models that can be named in a request."""
        return {"object": "list", "data": [row(name) for name in service.models.names]}

    @routes.get("/v1/models/{name}")
    def model(name: str) -> Response:
        """One model, or error 404."""
        if name not in service.models.names:
            return _refused(NoSuchModel(f"no such model here; there is {', '.join(service.models.names)}"))
        return JSONResponse(row(name))

    @routes.post("/v1/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        """An answer to a conversation, whole or as a stream."""
        return await _complete(service, http, CHAT)

    @routes.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        """The continuation of a text, whole or as a stream."""
        return await _complete(service, http, TEXT)

    @routes.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    def nothing_else(path: str) -> Response:
        """Error 404 for the rest of OpenAI's API."""
        return api_error(404, f"there is no /v1/{path} here that takes this method")

    return routes


@dataclass(frozen=True)
class Form:
    """How the two routes of OpenAI's API differ."""

    id: str
    whole: str  # `object` of a whole answer
    part: str  # and of a piece of a stream
    chat: bool

    def choice(self, text: str) -> dict[str, Any]:
        """A whole answer, in the shape that its route returns."""
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def logprobs(
        self, request: Request, scores: Sequence[TokenScore], offset: int = 0
    ) -> dict[str, Any] | None:
        """The scores of some tokens, which begin `offset` characters after the answer's beginning."""
        if request.likeliest is None:
            return None
        if self.chat:
            return {"content": [_score(score) for score in scores], "refusal": None}
        starts = accumulate((len(score.text) for score in scores), initial=offset)
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{one.text: one.logprob for one in score.likeliest} for score in scores],
            "text_offset": list(starts)[: len(scores)],
        }

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        """A piece of a streamed answer, in the shape that its route returns."""
        if not self.chat:
            return {"text": text or ""}
        role = {"role": "assistant"} if first else {}
        return {"delta": role | ({} if text is None else {"content": text})}


CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", chat=True)
TEXT = Form("cmpl", "text_completion", "text_completion", chat=False)


@dataclass(frozen=True)
class Delta:
    """A partial reply, and what was added to it last."""

    reply: Reply
    text: str
    scores: tuple[TokenScore, ...]


async def _complete(service: Service, http: HttpRequest, form: Form) -> Response:
    try:
        body = await _read_body(http)
        request = _read(service, body, form)
        with_usage = _read_stream(body)
    except Refused as refusal:
        return _refused(refusal)
    answer = _answer(service, request, http)
    try:
        first = await anext(answer)  # so that a refusal still has a status code
    except StopAsyncIteration:  # the client has disconnected; nobody reads this
        return Response(status_code=499)
    except Refused as refusal:
        return _refused(refusal)
    head = {"id": f"{form.id}-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
    if body.get("stream"):
        return StreamingResponse(
            _events(form, head, first, answer, with_usage), media_type="text/event-stream"
        )
    last = first
    try:
        async for item in answer:
            last = item
    except Refused as refusal:
        return _refused(refusal)
    return JSONResponse(_completion(form, head, last.reply))


async def _read_body(http: HttpRequest) -> dict[str, Any]:
    raw = b""
    async for part in http.stream():
        raw += part
        if len(raw) > MAX_BODY:
            raise Refused(f"the request is larger than {MAX_BODY:,} bytes")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    return body


def _read(service: Service, body: dict[str, Any], form: Form) -> Request:
    only = ONLY | (ONLY_CHAT if form.chat else ONLY_TEXT)
    for key, value in body.items():
        if key not in KNOWN or (key in only and value not in only[key]):
            raise Refused(f"{key} is not supported here; leave it out")
    sampling = _read_sampling(body)
    more: dict[str, Any] = {
        "stop": read_stop(body.get("stop")),
        "likeliest": _read_likeliest(body, form),
        "grammar": read_grammar(body),
    }
    names, model = service.models.names, body.get("model")
    if not form.chat:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:  # LangChain sends a list of one
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise Refused("prompt must be one text")
        # Checked as a message is: its size, its characters.
        asked = read_request(names, model, [{"role": "user", "content": prompt}], sampling)
        return replace(asked, messages=(), prompt=prompt.encode("utf-8", "replace").decode("utf-8"), **more)
    messages = body.get("messages")
    if isinstance(messages, list):  # OpenAI's newer name for the system's role
        messages = [
            message | {"role": "system"}
            if isinstance(message, dict) and message.get("role") == "developer"
            else message
            for message in messages
        ]
    return replace(read_request(names, model, messages, sampling), **more)


def _read_sampling(body: dict[str, Any]) -> Sampling:
    given = {key: body[key] for key in SAMPLING if body.get(key) is not None}
    limits = {key: body[key] for key in LIMITS if body.get(key) is not None}
    if not limits:
        return read_sampling(**given)
    if len(set(map(str, limits.values()))) > 1:
        raise Refused("max_tokens and max_completion_tokens differ; give one of them")
    name, limit = limits.popitem()
    if isinstance(limit, int) and limit > MAX_NEW_TOKENS:  # the answer then ends with `length`
        limit = MAX_NEW_TOKENS
    return read_sampling(name, **given, max_new_tokens=limit)


def _read_stream(body: dict[str, Any]) -> bool:
    """Whether a stream ends with its usage; `stream` and `stream_options` are checked."""
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise Refused("stream must be true or false")
    if options is None:
        return False
    if not stream:
        raise Refused("stream_options needs stream: true")
    if not isinstance(options, dict) or not all(isinstance(value, bool | None) for value in options.values()):
        raise Refused('stream_options must be an object, as {"include_usage": true}')
    if further := [key for key, value in options.items() if value and key != "include_usage"]:
        raise Refused(f"stream_options.{further[0]} is not supported here; leave it out")
    return bool(options.get("include_usage"))


def _read_likeliest(body: dict[str, Any], form: Form) -> int | None:
    """How many alternatives to report per token; None: no scores at all. The two forms ask for it differently."""
    asked, top = body.get("logprobs"), body.get("top_logprobs") or 0
    if form.chat:
        if not isinstance(asked, bool | None):
            raise Refused("logprobs must be true or false; top_logprobs says how many alternatives")
        if top and not asked:
            raise Refused("top_logprobs needs logprobs: true")
        asked = top if asked else None
    if asked is not None and not (type(asked) is int and 0 <= asked <= MAX_LIKELIEST):
        raise Refused(f"logprobs must be {'true or false' if form.chat else f'0 to {MAX_LIKELIEST}'}, "
                      f"top_logprobs 0 to {MAX_LIKELIEST}")  # fmt: skip
    return asked


async def _answer(service: Service, request: Request, http: HttpRequest) -> AsyncGenerator[Delta]:
    """The partial reply and what is new in it.

    A thread runs the model and puts its output into a queue, so that a slow reader does not block it for
    others; when the reader disconnects, the thread stops.
    """
    loop, gone = asyncio.get_running_loop(), threading.Event()
    arrived: asyncio.Queue[Delta | Refused | None] = asyncio.Queue()

    def drive() -> None:
        """Put the answer's pieces into the queue, then None or the refusal that ended it."""
        outcome: Refused | None = None
        sent = scored = 0
        answer = service.answer([request])
        try:
            for progress in answer:
                if gone.is_set():
                    break
                if isinstance(progress, Waiting):
                    continue
                text, scores = progress[0].text, tuple(progress[0].scores[scored:])
                loop.call_soon_threadsafe(arrived.put_nowait, Delta(progress[0], text[sent:], scores))
                sent, scored = max(sent, len(text)), scored + len(scores)
        except Refused as refusal:
            outcome = refusal
        except Exception:
            log.exception("the API failed")
            outcome = Refused(FAILED)
        finally:
            answer.close()
            loop.call_soon_threadsafe(arrived.put_nowait, outcome)

    threading.Thread(target=drive, name="openai-api", daemon=True).start()
    left = asyncio.create_task(_until_left(http, arrived))
    try:
        while isinstance(item := await arrived.get(), Delta):
            yield item
        if item is not None:
            raise item
    finally:
        gone.set()
        left.cancel()


async def _until_left(http: HttpRequest, arrived: asyncio.Queue[Delta | Refused | None]) -> None:
    """Put None into the queue when the client disconnects; its request has been read, so no other message comes."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    arrived.put_nowait(None)


async def _events(
    form: Form, head: dict[str, Any], first: Delta, rest: AsyncGenerator[Delta], with_usage: bool
) -> AsyncIterator[str]:
    offset = 0

    def chunk(
        delta: dict[str, Any],
        scores: Sequence[TokenScore] = (),
        finish: str | None = None,
        **more: dict[str, Any],
    ) -> str:
        """One event of the stream; counts the characters whose scores have been sent."""
        nonlocal offset
        logprobs = form.logprobs(reply.request, scores, offset) if scores else None
        offset += sum(len(score.text) for score in scores)
        choices = [{"index": 0, "finish_reason": finish, "logprobs": logprobs, **delta}]
        return _event(head | {"object": form.part, "choices": choices, **more})

    reply = first.reply
    yield chunk(form.delta(first.text, first=True), first.scores)
    try:
        async for delta in rest:
            reply = delta.reply
            if delta.text or delta.scores:
                yield chunk(form.delta(delta.text), delta.scores)
        yield chunk(form.delta(None), finish=_finish(reply), abctune=_provenance(reply))
        if with_usage:
            yield _event(head | {"object": form.part, "choices": [], "usage": _usage(reply)})
    except Refused as refusal:  # the status line has been sent already
        yield _event(
            {"error": {"message": str(refusal), "type": "server_error", "param": None, "code": None}}
        )
    finally:
        await rest.aclose()
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _completion(form: Form, head: dict[str, Any], reply: Reply) -> dict[str, Any]:
    logprobs = form.logprobs(reply.request, reply.scores)
    choices = [{"index": 0, "finish_reason": _finish(reply), "logprobs": logprobs, **form.choice(reply.text)}]
    return head | {
        "object": form.whole,
        "choices": choices,
        "usage": _usage(reply),
        "abctune": _provenance(reply),
    }


def _provenance(reply: Reply) -> dict[str, Any]:
    """What reproduces the answer; clients ignore fields that they do not know."""
    return {
        "seed": reply.request.sampling.seed,
        "shared_batch": reply.shared_batch,
        "cached_tokens": reply.cached_tokens,
    }


def _score(score: TokenScore) -> dict[str, Any]:
    return _likely(score) | {"top_logprobs": [_likely(one) for one in score.likeliest]}


def _likely(one: Likely) -> dict[str, Any]:
    known = "\ufffd" not in one.text  # a part of a character
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode()) if known else None}


def _finish(reply: Reply) -> str:
    return "stop" if reply.finish == "stop" else "length"


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.n_prompt,
        "completion_tokens": reply.n_tokens,
        "total_tokens": reply.n_prompt + reply.n_tokens,
    }


def _refused(refusal: Refused) -> JSONResponse:
    status = 404 if isinstance(refusal, NoSuchModel) else {BUSY: 429, FAILED: 500}.get(str(refusal), 400)
    return api_error(status, str(refusal), "model_not_found" if isinstance(refusal, NoSuchModel) else None)


def api_error(status: int, message: str, code: str | None = None) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    error = {
        "message": message,
        "type": kind.get(status, "invalid_request_error"),
        "param": None,
        "code": code,
    }
    return JSONResponse(
        {"error": error}, status, {"Retry-After": str(RETRY_SECONDS)} if status == 429 else None
    )
