"""`/v1/models` and `/v1/chat/completions` as OpenAI's clients speak them, so that other tools can use a variant."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.page.parts import DEFAULTS
from app.request import Refused, Request, read_request, read_sampling
from app.service import BUSY, FAILED, Reply, Service, Waiting

log = logging.getLogger("app")
MAX_BODY = 2**20
LOOK_SECONDS = 0.25  # between two looks whether the client is still there
# Asked for by many clients with these values, which mean "nothing special"; any other would be ignored in silence.
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stop": (None, [], ""),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "response_format": (None, {"type": "text"}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}


def openai_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    created = int(time.time())

    @routes.get("/models")
    def models() -> dict[str, Any]:
        rows = [
            {"id": name, "object": "model", "created": created, "owned_by": "abctune"}
            for name in service.models.names
        ]
        return {"object": "list", "data": rows}

    @routes.post("/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        try:
            body = await _read_body(http)
            request = _read(service, body)
        except Refused as refusal:
            return _error(400, str(refusal))
        answer = _answer(service, request, http)
        try:
            first = await anext(answer)  # so that a refusal still has a status code
        except StopAsyncIteration:  # the client has gone; nobody reads this
            return Response(status_code=499)
        except Refused as refusal:
            return _error(*_status(refusal), str(refusal))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_events(head, first, answer, with_usage), media_type="text/event-stream")
        last = first
        try:
            async for item in answer:
                last = item
        except Refused as refusal:
            return _error(*_status(refusal), str(refusal))
        return JSONResponse(_completion(head, last[0]))

    return routes


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


def _read(service: Service, body: dict[str, Any]) -> Request:
    for key, allowed in ONLY.items():
        if body.get(key) not in allowed:
            raise Refused(f"{key} is not supported here")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    given = {
        "temperature": body.get("temperature"),
        "top_p": body.get("top_p"),
        "max_new_tokens": limit,
        "repetition_penalty": body.get("repetition_penalty"),
        "seed": body.get("seed"),
    }
    sampling = read_sampling(
        **(DEFAULTS.model_dump() | {key: value for key, value in given.items() if value is not None})
    )
    messages = body.get("messages")
    if isinstance(messages, list):  # OpenAI's newer name for the system's role
        messages = [
            message | {"role": "system"}
            if isinstance(message, dict) and message.get("role") == "developer"
            else message
            for message in messages
        ]
    return read_request(service.models.names, body.get("model"), messages, sampling)


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
    head: dict[str, Any], first: tuple[Reply, str], rest: AsyncIterator, with_usage: bool
) -> AsyncIterator[str]:
    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return _event(head | {"object": "chat.completion.chunk", "choices": choices})

    yield chunk({"role": "assistant", "content": first[1]})
    reply = first[0]
    try:
        async for item in rest:
            reply, text = item
            if text:
                yield chunk({"content": text})
        yield chunk({}, _finish(reply))
        if with_usage:
            yield _event(head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)})
    except Refused as refusal:  # the status line is out already
        yield _event({"error": {"message": str(refusal), "type": "server_error"}})
    finally:
        await rest.aclose()
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _completion(head: dict[str, Any], reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text}
    choices = [{"index": 0, "message": message, "finish_reason": _finish(reply), "logprobs": None}]
    return head | {"object": "chat.completion", "choices": choices, "usage": _usage(reply)}


def _finish(reply: Reply) -> str:
    return "stop" if reply.finish == "stop" else "length"


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.n_prompt,
        "completion_tokens": reply.n_tokens,
        "total_tokens": reply.n_prompt + reply.n_tokens,
    }


def _status(refusal: Refused) -> tuple[int]:
    return ({BUSY: 429, FAILED: 500}.get(str(refusal), 400),)


def _error(status: int, message: str) -> JSONResponse:
    kind = {429: "rate_limit_error", 500: "server_error"}.get(status, "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
