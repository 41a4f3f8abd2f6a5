"""`/v1/models`, `/v1/chat/completions` and `/v1/completions` as OpenAI's clients speak them, so that other tools can use a variant."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.request import (
    MAX_NEW_TOKENS,
    NoSuchModel,
    Refused,
    Request,
    read_request,
    read_sampling,
    read_stop,
)
from app.service import BUSY, FAILED, Reply, Service, Waiting

log = logging.getLogger("app")
MAX_BODY = 2**20
LOOK_SECONDS = 0.25  # between two looks whether the client is still there
RETRY_SECONDS = 5  # when a full line is worth another try
# Asked for by many clients with these values, which mean "nothing special".
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
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "grammar": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "adapter_strength")
# What changes no answer, and what is read elsewhere in this module. Any other field is refused: none is ignored in silence.
KNOWN = {
    *ONLY,
    *SAMPLING,
    *(
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "stream",
        "stream_options",
    ),
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
}


def openai_routes(service: Service) -> APIRouter:
    routes = APIRouter()
    created = int(time.time())

    def row(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "abctune"}

    @routes.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [row(name) for name in service.models.names]}

    @routes.get("/v1/models/{name}")
    def model(name: str) -> Response:
        if name not in service.models.names:
            return _refused(NoSuchModel(f"no such model here; there is {', '.join(service.models.names)}"))
        return JSONResponse(row(name))

    @routes.post("/v1/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        return await _complete(service, http, CHAT)

    @routes.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        return await _complete(service, http, TEXT)

    @routes.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    def nothing_else(path: str) -> Response:
        return api_error(404, f"there is no /v1/{path} here that takes this method")

    return routes


@dataclass(frozen=True)
class Form:
    """How OpenAI's two ways of asking differ."""

    id: str
    whole: str  # `object` of a whole answer
    part: str  # and of a piece of a stream
    chat: bool

    def choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        if not self.chat:
            return {"text": text or ""}
        role = {"role": "assistant"} if first else {}
        return {"delta": role | ({} if text is None else {"content": text})}


CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", chat=True)
TEXT = Form("cmpl", "text_completion", "text_completion", chat=False)


async def _complete(service: Service, http: HttpRequest, form: Form) -> Response:
    try:
        body = await _read_body(http)
        request = _read(service, body, form)
    except Refused as refusal:
        return _refused(refusal)
    answer = _answer(service, request, http)
    try:
        first = await anext(answer)  # so that a refusal still has a status code
    except StopAsyncIteration:  # the client has gone; nobody reads this
        return Response(status_code=499)
    except Refused as refusal:
        return _refused(refusal)
    head = {"id": f"{form.id}-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
    if body.get("stream"):
        options = body.get("stream_options")
        with_usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
        return StreamingResponse(
            _events(form, head, first, answer, with_usage), media_type="text/event-stream"
        )
    last = first
    try:
        async for item in answer:
            last = item
    except Refused as refusal:
        return _refused(refusal)
    return JSONResponse(_completion(form, head, last[0]))


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
    for key, value in body.items():
        if key not in KNOWN or (key in ONLY and value not in ONLY[key]):
            raise Refused(f"{key} is not supported here")
    given = {key: body[key] for key in SAMPLING if body.get(key) is not None}
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if isinstance(limit, int) and limit > MAX_NEW_TOKENS:  # the answer then ends with `length`
        limit = MAX_NEW_TOKENS
    if limit is not None:
        given["max_new_tokens"] = limit
    sampling, stop = read_sampling(**given), read_stop(body.get("stop"))
    names, model = service.models.names, body.get("model")
    if not form.chat:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:  # LangChain sends a list of one
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise Refused("prompt must be one text")
        # Checked as a message is: its size, its characters.
        asked = read_request(names, model, [{"role": "user", "content": prompt}], sampling)
        return replace(
            asked, messages=(), prompt=prompt.encode("utf-8", "replace").decode("utf-8"), stop=stop
        )
    messages = body.get("messages")
    if isinstance(messages, list):  # OpenAI's newer name for the system's role
        messages = [
            message | {"role": "system"}
            if isinstance(message, dict) and message.get("role") == "developer"
            else message
            for message in messages
        ]
    return replace(read_request(names, model, messages, sampling), stop=stop)


async def _answer(service: Service, request: Request, http: HttpRequest) -> AsyncIterator[tuple[Reply, str]]:
    """The growing reply and the text that is new in it.

    A thread drives the model and puts what comes into a queue, so that a slow reader does not keep it from
    others; when the reader goes away, the thread stops.
    """
    loop, arrived, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def drive() -> None:
        outcome: Refused | None = None
        sent = 0
        answer = service.answer([request])
        try:
            for progress in answer:
                if gone.is_set():
                    break
                if isinstance(progress, Waiting):
                    continue
                text = progress[0].text
                loop.call_soon_threadsafe(arrived.put_nowait, (progress[0], text[sent:]))
                sent = max(sent, len(text))
        except Refused as refusal:
            outcome = refusal
        except Exception:
            log.exception("the API failed")
            outcome = Refused(FAILED)
        finally:
            answer.close()
            loop.call_soon_threadsafe(arrived.put_nowait, outcome)

    threading.Thread(target=drive, name="openai-api", daemon=True).start()
    try:
        looked = loop.time()
        while True:
            # On a clock, not when nothing comes: while an answer grows, something always comes.
            if loop.time() - looked >= LOOK_SECONDS:
                looked = loop.time()
                if await http.is_disconnected():
                    return
            try:
                item = await asyncio.wait_for(arrived.get(), timeout=LOOK_SECONDS)
            except TimeoutError:
                continue
            if not isinstance(item, tuple):
                break
            yield item
        if item is not None:
            raise item
    finally:
        gone.set()


async def _events(
    form: Form, head: dict[str, Any], first: tuple[Reply, str], rest: AsyncIterator, with_usage: bool
) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choices = [{"index": 0, "finish_reason": finish, "logprobs": None, **delta}]
        return _event(head | {"object": form.part, "choices": choices})

    yield chunk(form.delta(first[1], first=True))
    reply = first[0]
    try:
        async for item in rest:
            reply, text = item
            if text:
                yield chunk(form.delta(text))
        yield chunk(form.delta(None), _finish(reply))
        if with_usage:
            yield _event(head | {"object": form.part, "choices": [], "usage": _usage(reply)})
    except Refused as refusal:  # the status line is out already
        yield _event(
            {"error": {"message": str(refusal), "type": "server_error", "param": None, "code": None}}
        )
    finally:
        await rest.aclose()
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _completion(form: Form, head: dict[str, Any], reply: Reply) -> dict[str, Any]:
    choices = [{"index": 0, "finish_reason": _finish(reply), "logprobs": None, **form.choice(reply.text)}]
    return head | {"object": form.whole, "choices": choices, "usage": _usage(reply)}


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
