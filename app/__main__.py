"""Serve the chat demo: `python -m app`. See docs/app.md."""

from __future__ import annotations

import os

# Before Gradio and the Hugging Face libraries are imported: nothing here may call out.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# llama.cpp's threads wait by spinning, which is fastest on an idle machine and very slow on a busy one: during a
# training run on the same two cores, 64 tokens took over a minute with spinning threads and 1.5 s with sleeping ones.
if os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvicorn

import abctune
from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import load_params
from abctune.core.places import BASE_MODEL
from abctune.llm.tokenizer import load_tokenizer
from app.engines.choose import EngineName, load_behind, load_engine
from app.gradio_stubs import write_no_stubs
from app.models import Models, find_models, join_revisions
from app.revision import fetch_revision
from app.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.engines.loading import LoadingEngine

AUTH = "ABCTUNE_AUTH"


def print_version(wanted: bool) -> None:
    """Print abctune's version and end, if `--version` is given."""
    if wanted:
        print(f"abctune {abctune.__version__}")
        raise typer.Exit


@exits_with_one_line
def main(
    rev: Annotated[
        list[str] | None,
        typer.Option(
            help="Git revision or experiment to take the adapters from; repeatable: B@one, B@other."
        ),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Serve only the base and this variant.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    engine: Annotated[
        EngineName, typer.Option(help="auto: llama.cpp on a CPU if the base has a GGUF.")
    ] = "auto",
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin (https://host) whose pages may call the API; repeatable.")
    ] = None,
    framed_by: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may show this one in a frame; repeatable.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="A public link through gradio.live; needs a password.")
    ] = False,
) -> None:
    """Chat with the base model and the variants. A password: ABCTUNE_AUTH=user:password in the environment."""
    started = time.perf_counter()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    auth = read_auth(os.environ.get(AUTH))
    if auth is None and (share or host not in ("127.0.0.1", "localhost", "::1")):
        print(
            f"warning: anyone who reaches this address can use the model; set {AUTH}=user:password",
            file=sys.stderr,
        )
    if share and auth is None:
        raise UserError(f"--share makes the demo public: set {AUTH}=user:password in the environment")
    listener = listen(host, port)
    models, template = choose_models(rev or (), variant)
    running = Running()
    loading = load_behind(engine, models, lambda: load_tokenizer(BASE_MODEL, **template), running.fail)
    for problem in models.problems:
        print(f"warning: {problem}", file=sys.stderr)
    write_no_stubs()
    from app.server import LOOPBACK, build_app  # imports Gradio

    loopback = listener.getsockname()[0] in LOOPBACK and not share
    service = Service(models, loading)
    app = build_app(service, auth, only_loopback=loopback, origins=cors or (), frames=framed_by or ())
    # Only now: loading the models at the same time would keep the page waiting for longer than it would save them.
    loading.begin()
    running.announce(service, loading, listener, share, started)
    running.serve(app, listener)


def choose_models(revs: Sequence[str], variant: str | None) -> tuple[Models, dict[str, Any]]:
    """The workspace's models, or those of one or more revisions, and how the tokenizer's template is chosen.

    Raises:
        UserError: there is no such revision or variant, or two revisions write conversations differently.
    """
    found, templates = {}, []
    for rev in revs or (None,):
        root = fetch_revision(rev) if rev else Path()
        params = load_params(root / "params.yaml")
        found[str(rev)] = find_models(root, BASE_MODEL, params, only=variant)
        templates.append(params.active.model.template)
    if any(template != templates[0] for template in templates):
        raise UserError(
            f"--rev {' --rev '.join(revs)}: their profiles' chat templates differ; serve one at a time"
        )
    return next(iter(found.values())) if len(found) == 1 else join_revisions(found), templates[0]


def load_service(revs: Sequence[str], variant: str | None, engine: EngineName) -> Service:
    """The models and the engine that answers for them, loaded."""
    models, template = choose_models(revs, variant)
    return Service(models, load_engine(engine, models, load_tokenizer(BASE_MODEL, **template)))


def read_auth(text: str | None) -> tuple[str, str] | None:
    """`user:password`; the password may hold colons."""
    if not text:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise UserError(f"{AUTH} must be user:password")
    return user, password


def listen(host: str, port: int) -> socket.socket:
    """Take the port before the models are loaded, so that a taken one is known at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be used ({error.strerror}); choose another with --port"
        ) from None


class Running:
    """The web server. It stops if the models, which are loaded in the background, cannot be loaded."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._failure: BaseException | None = None

    def fail(self, failure: BaseException) -> None:
        """Record why the models could not be loaded, and stop the server."""
        self._failure = failure
        if self._server is not None:
            self._server.should_exit = True

    def announce(
        self, service: Service, loading: LoadingEngine, listener: socket.socket, share: bool, started: float
    ) -> None:
        """Print the address of the page, and print again when the models are loaded."""
        host, port = listener.getsockname()[:2]
        address = f"http://{'localhost' if host == '0.0.0.0' else host}:{port}"
        page = time.perf_counter() - started
        print(f"{address} in {page:.1f} s; the models are loading ...", file=sys.stderr, flush=True)
        if share:
            print(f"public: {tunnel(host, port)}", flush=True)

        def when_loaded() -> None:
            """Wait for the models, then name them and the address."""
            loading.ready(timeout=None)
            seconds = time.perf_counter() - started
            names = ", ".join(service.models.names)
            print(f"{names} by {service.engine.name}, loaded in {seconds:.1f} s: {address}", flush=True)

        threading.Thread(target=when_loaded, name="announce", daemon=True).start()

    def serve(self, app: FastAPI, listener: socket.socket) -> None:
        """Run the server until it is told to stop.

        Raises:
            UserError: the models could not be loaded.
        """
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        if self._failure is None:
            self._server.run(sockets=[listener])
        if self._failure is not None:
            raise self._failure


def tunnel(host: str, port: int) -> str:
    """Open Gradio's tunnel and return its public URL; nothing else here connects to the outside."""
    import secrets

    from gradio.networking import setup_tunnel

    return setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)


if __name__ == "__main__":
    typer.run(main)
