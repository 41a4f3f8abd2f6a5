"""Choose and load the engine: llama.cpp where the base has a GGUF and there is no GPU, else transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.params import BASE
from app.engines import Engine
from app.engines.llama_cpp import n_parallel_for
from app.engines.loading import LoadingEngine
from app.models import Models
from app.request import CONTEXT_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

EngineName = Literal["auto", "llama.cpp", "transformers"]
CACHE = Path("app/local/adapters")
EXPORTED = ("q4_k_m", "q8_0", "f16")


class Plan(NamedTuple):
    """An engine that is not loaded yet, and what is known about it before loading."""

    name: str
    context: int
    n_parallel: int
    grammars: bool
    load: Callable[[Tokenizer], Engine]


def plan(wanted: EngineName, models: Models, cache: Path = CACHE) -> Plan:
    """Which engine serves the base and the adapters. An adapter that it cannot take joins `models.problems`.

    Raises:
        UserError: llama.cpp is asked for by name and the base has no GGUF.
    """
    gguf, context = choose(wanted, models), context_of(models)
    if gguf is None:
        return Plan(
            "transformers", context, 1, False, lambda tokenizer: _reference(models, tokenizer, context)
        )
    adapters = converted(models, cache)
    return Plan(
        "llama.cpp",
        context,
        n_parallel_for(len(models.names)),
        True,
        lambda tokenizer: _llama_cpp(gguf, adapters, tokenizer, context),
    )


def load_engine(wanted: EngineName, models: Models, tokenizer: Tokenizer, cache: Path = CACHE) -> Engine:
    """Load the engine that `plan` chooses, with the base and the adapters."""
    return plan(wanted, models, cache).load(tokenizer)


def load_behind(
    wanted: EngineName,
    models: Models,
    tokenizer: Callable[[], Tokenizer],
    failed: Callable[[BaseException], None],
    cache: Path = CACHE,
) -> LoadingEngine:
    """Like `load_engine`, but loading starts later, in the background; errors that `plan` detects are raised here.

    Args:
        tokenizer: a function that loads it, since importing transformers takes longer than building the page.
        failed: called, in the loading thread, with any later error.
    """
    planned = plan(wanted, models, cache)
    known = (planned.name, planned.context, planned.n_parallel, planned.grammars)
    return LoadingEngine(*known, lambda: planned.load(tokenizer()), failed)


def choose(wanted: EngineName, models: Models) -> Path | None:
    """The base's GGUF, if llama.cpp is to serve it; None: transformers.

    Raises:
        UserError: llama.cpp is asked for by name and there is no GGUF.
    """
    gguf = gguf_of_base(models.base)
    if wanted == "llama.cpp" and gguf is None:
        raise UserError(
            f"{models.base}/base.gguf not found: this base has no GGUF; use --engine transformers"
        )
    return gguf if wanted == "llama.cpp" or (wanted == "auto" and not _has_gpu()) else None


def context_of(models: Models) -> int:
    """Tokens of a conversation and its answer: the report's length, or the base's if that is less."""
    limit = read_json(models.base / "config.json", made_by="fetch-model").get("max_position_embeddings")
    return min(CONTEXT_TOKENS, limit or CONTEXT_TOKENS)


def gguf_of_base(base: Path) -> Path | None:
    """The base as GGUF: as it was fetched, else as `stages.export` wrote it, the smallest first."""
    exported = [base.parent / "exported" / BASE / f"{fmt}/{BASE}.{fmt}.gguf" for fmt in EXPORTED]
    return next((path for path in (base / "base.gguf", *exported) if path.exists()), None)


def converted(models: Models, cache: Path = CACHE) -> dict[str, Path]:
    """Each adapter as GGUF. One that llama.cpp cannot take leaves the models and becomes a problem."""
    from app.engines.lora_gguf import gguf_of

    found = {}
    for name, adapter in list(models.adapters.items()):
        try:
            found[name] = adapter.gguf or gguf_of(adapter.path, adapter.sha256, models.base, cache)
        except UserError as error:
            models.problems.append(str(error))
            del models.adapters[name]
    return found


def _llama_cpp(gguf: Path, adapters: dict[str, Path], tokenizer: Tokenizer, context: int) -> Engine:
    from app.engines.llama_cpp import LlamaCpp

    return LlamaCpp(gguf, adapters, tokenizer, context, threads=len(os.sched_getaffinity(0)))


def _reference(models: Models, tokenizer: Tokenizer, context: int) -> Engine:
    import abctune.llm.environment  # noqa: F401  (before torch)
    from abctune.llm.device import resolve_dtype
    from app.engines.transformers_engine import BrokenAdapter, TransformersEngine

    for name in [name for name, adapter in models.adapters.items() if adapter.gguf]:
        models.problems.append(f"{name} is there in llama.cpp's form alone; use --engine llama.cpp")
        del models.adapters[name]
    while True:
        paths = {name: adapter.path for name, adapter in models.adapters.items()}
        try:
            return TransformersEngine(models.base, paths, tokenizer, context, resolve_dtype("auto"))
        except BrokenAdapter as error:  # the base and the others are served
            models.problems.append(str(error))
            del models.adapters[error.name]


def _has_gpu() -> bool:
    # Without importing torch, which takes seconds that llama.cpp does not need.
    return Path("/dev/nvidia0").exists()
