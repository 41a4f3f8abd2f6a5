"""The page and the API as one web application, and what guards it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from app.openai_api import api_error, openai_routes
from app.page import build_page
from app.page.style import CSS, THEME
from app.service import Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4 * 2**20  # a long conversation is some 100 kB
# How often Gradio looks for events, and for progress bars, of which this page has none. By default it does so a thousand
# and a hundred times a second, which takes 8 % of a core for ever, and llama.cpp's threads, which wait for each other at
# every step, wait for that too.
LOOK_SECONDS = 0.05
PROGRESS_SECONDS = 1.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Whatever an answer says, the browser loads nothing from anywhere else. Gradio needs inline scripts and eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors "
)


def build_app(
    service: Service,
    auth: tuple[str, str] | None = None,
    only_loopback: bool = True,
    origins: Sequence[str] = (),
    frames: Sequence[str] = (),
) -> FastAPI:
    """The web application: the page, and the API, behind one guard.

    Args:
        auth: user and password, asked for by the page and, as `Authorization: Bearer <password>`, by the API.
        only_loopback: refuse requests that name another host, as a foreign page's scripts would after pointing
            their own name at 127.0.0.1.
        origins: pages of other origins (`https://host`) whose scripts may call the API and read its answers.
        frames: origins of pages that may show this one in a frame, as Hugging Face does.
    """
    app = FastAPI(title="abctune", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(openai_routes(service))
    hosts = LOOPBACK if only_loopback else ()
    app.add_middleware(Guard, password=auth[1] if auth else None, origins=origins, frames=frames, hosts=hosts)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    page = build_page(service)
    page.queue(max_size=4 * 40, api_open=False)
    page._queue.sleep_when_free = LOOK_SECONDS
    page._queue.progress_update_sleep_when_free = PROGRESS_SECONDS
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        auth=auth,
        allowed_paths=[],
        max_file_size="1kb",  # nothing is uploaded here
        show_error=False,  # no exception text in the browser
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        theme=THEME,
        css=CSS,
    )


class Guard:
    """Limits the size of requests, adds the headers, and asks the API's callers for the password."""

    def __init__(
        self,
        app: ASGIApp,
        password: str | None,
        origins: Sequence[str],
        frames: Sequence[str],
        hosts: Sequence[str],
    ) -> None:
        """`hosts`: the names under which requests may address this; any, if there are none."""
        self._app, self._password, self._origins, self._hosts = app, password, origins, hosts
        self._policy = (POLICY + " ".join(["'self'", *frames])).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what a foreign page sends; pass on all else."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}

        async def send_with_headers(message: Message) -> None:
            """Send a message, the headers of safety added to a response's beginning."""
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", self._policy),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        if refusal := self._refusal(scope["path"], headers):
            await refusal(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: dict[str, str]) -> Response | None:
        found = self._reason(path, headers)
        if found is None:
            return None
        status, reason = found
        answer = api_error(status, reason) if path.startswith("/v1/") else PlainTextResponse(reason, status)
        if status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def _reason(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        if self._hosts and _hostname(headers.get("host", "")) not in self._hosts:
            return 400, "this is not served under that host name"
        if not self._may_call(headers):
            return 403, "pages of other origins may not call this; --cors allows one"
        if path.rstrip("/").endswith("/upload"):
            return 413, "nothing is uploaded here"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers:
            return 411, "a request must say its length"
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, "the request is too large"
        if self._password is not None and path.startswith("/v1/") and not self._knows_password(headers):
            return 401, "a password is needed"
        return None

    def _may_call(self, headers: dict[str, str]) -> bool:
        """Whether a request comes from our own page, from a program, or from a page that is allowed.

        A browser names the page's origin in every POST, also in those that are sent without asking first ("no-cors").
        """
        origin = headers.get("origin")
        ours = {headers.get("host"), headers.get("x-forwarded-host")}  # a foreign page can set neither
        return origin is None or origin in self._origins or urlsplit(origin).netloc in ours

    def _knows_password(self, headers: dict[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        return secrets.compare_digest(given.encode(), (self._password or "").encode())


def _hostname(host: str) -> str | None:
    """Of a Host header: without the port, and without an IPv6 address's brackets."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
