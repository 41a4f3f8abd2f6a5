"""Serve the chat demo: `python -m app`. See docs/app.md."""

from __future__ import annotations

import os

# Before Gradio and the Hugging Face libraries are imported: nothing here may call out.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# llama.cpp's threads wait by spinning, which is fastest on a quiet machine. Beside other work it is ruin: next to a
# training run on two cores, 64 tokens took over a minute spinning and 1.5 s sleeping.
if os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import abctune
from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import load_params
from abctune.llm.tokenizer import BASE_MODEL, load_tokenizer
from app.engines.choose import EngineName, load_engine
from app.models import Models, find_models
from app.revision import fetch_revision
from app.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

AUTH = "ABCTUNE_AUTH"


def print_version(wanted: bool) -> None:
    """Print abctune's version and end, if `--version` is given."""
    if wanted:
        print(f"abctune {abctune.__version__}")
        raise typer.Exit


@exits_with_one_line
def main(
    rev: Annotated[
        str | None, typer.Option(help="Git revision or experiment to take the adapters from.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Serve this variant alone beside the base.")] = None,
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
    service = load_service(rev, variant, engine)
    for problem in service.models.problems:
        print(f"warning: {problem}", file=sys.stderr)
    print_start(service, listener, share, f"{time.perf_counter() - started:.1f}")
    from app.server import LOOPBACK, build_app

    loopback = listener.getsockname()[0] in LOOPBACK and not share
    serve(
        build_app(service, auth, only_loopback=loopback, origins=cors or (), frames=framed_by or ()), listener
    )


def load_service(rev: str | None, variant: str | None, engine: EngineName) -> Service:
    """Everything that answers, from the workspace or from another revision."""
    root = fetch_revision(rev) if rev else Path()
    params = load_params(root / "params.yaml")
    models: Models = find_models(root, BASE_MODEL, params, only=variant)
    tokenizer = load_tokenizer(BASE_MODEL, **params.active.model.template)
    return Service(models, load_engine(engine, models, tokenizer), tokenizer)


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


def print_start(service: Service, listener: socket.socket, share: bool, seconds: str) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://{'localhost' if host == '0.0.0.0' else host}:{port}"
    print(
        f"{', '.join(service.models.names)} by {service.engine.name}, loaded in {seconds} s: {address}",
        flush=True,
    )
    if share:
        print(f"public: {tunnel(host, port)}", flush=True)


def serve(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    server.run(sockets=[listener])


def tunnel(host: str, port: int) -> str:
    """Gradio's own tunnel; the one thing here that makes an outside connection, and only when asked to."""
    import secrets

    from gradio.networking import setup_tunnel

    return setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)


if __name__ == "__main__":
    typer.run(main)
