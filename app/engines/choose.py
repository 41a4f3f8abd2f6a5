"""The engine for what is there: llama.cpp where the base has a GGUF and there is no GPU, else transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.params import BASE
from app.engines import Engine
from app.models import Models
from app.request import CONTEXT_TOKENS

EngineName = Literal["auto", "llama.cpp", "transformers"]
CACHE = Path("app/local/adapters")
EXPORTED = ("q4_k_m", "q8_0", "f16")


def load_engine(wanted: EngineName, models: Models, tokenizer: object, cache: Path = CACHE) -> Engine:
    """Load the base and the adapters. An adapter that the engine cannot take joins `models.problems`.

    Raises:
        UserError: llama.cpp is asked for by name and the base has no GGUF.
    """
    gguf = gguf_of_base(models.base)
    if wanted == "llama.cpp" and gguf is None:
        raise UserError(
            f"{models.base}/base.gguf not found: this base has no GGUF; use --engine transformers"
        )
    limit = read_json(models.base / "config.json", made_by="fetch-model").get("max_position_embeddings")
    context = min(CONTEXT_TOKENS, limit or CONTEXT_TOKENS)
    if wanted == "llama.cpp" or (wanted == "auto" and gguf and not _has_gpu()):
        return _llama_cpp(gguf, models, tokenizer, context, cache)
    return _reference(models, tokenizer, context)


def gguf_of_base(base: Path) -> Path | None:
    """The base as GGUF: as it was fetched, else as `stages.export` wrote it, the smallest first."""
    exported = [base.parent / "exported" / BASE / f"{fmt}/{BASE}.{fmt}.gguf" for fmt in EXPORTED]
    return next((path for path in (base / "base.gguf", *exported) if path.exists()), None)


def _llama_cpp(gguf: Path, models: Models, tokenizer: object, context: int, cache: Path) -> Engine:
    from app.engines.llama_cpp import LlamaCpp
    from app.engines.lora_gguf import gguf_of

    converted = {}
    for name, adapter in list(models.adapters.items()):
        try:
            converted[name] = gguf_of(adapter.path, adapter.sha256, models.base, cache)
        except UserError as error:
            models.problems.append(str(error))
            del models.adapters[name]
    return LlamaCpp(gguf, converted, tokenizer, context, threads=len(os.sched_getaffinity(0)))


def _reference(models: Models, tokenizer: object, context: int) -> Engine:
    import abctune.llm.environment  # noqa: F401  (before torch)
    from abctune.llm.device import resolve_dtype
    from app.engines.transformers_engine import BrokenAdapter, TransformersEngine

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
