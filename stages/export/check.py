"""Does an exported file say what the adapter says? Next-token distributions, compared at positions of held-out replies."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from abctune.core.errors import UserError
from abctune.llm.conversation import IGNORE

CONVERSATIONS, POSITIONS = 8, 6  # 48 distributions: each is a whole vocabulary
CONTEXT = (
    512  # tokens of a conversation that are looked at: enough to see a wrong rotary embedding, quick on a CPU
)
# Mean Kullback-Leibler divergence, in nats, above which a file is not published. Well above what rounding to the
# format costs (tests/export/test_export.py prints it), well below what one wrongly written tensor costs (over 1).
TOLERANCE = {"merged_16bit": 0.005, "f16": 0.005, "q8_0": 0.02, "q4_k_m": 0.25}


class Prefix(NamedTuple):
    """The beginning of a conversation, and the token that comes next in it."""

    ids: list[int]
    label: int


Distributions = Callable[[list[int]], torch.Tensor]  # a prefix -> log-probabilities of the next token


def prefixes(table: pa.Table) -> list[Prefix]:
    """Places inside the replies of the first conversations, spread evenly over each."""
    found = []
    for row in table.slice(0, CONVERSATIONS).to_pylist():
        places = [at for at, label in enumerate(row["labels"][:CONTEXT]) if label != IGNORE and at]
        step = max(1, len(places) // POSITIONS)
        found += [Prefix(row["input_ids"][:at], row["input_ids"][at]) for at in places[::step][:POSITIONS]]
    if not found:
        raise UserError("data/split: no reply is short enough to check an export by; raise max_length")
    return found


def by_transformers(model: Any) -> Distributions:
    """Log-probabilities from a model in memory."""

    @torch.inference_mode()
    def next_token(ids: list[int]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
        return logits.double().cpu().log_softmax(-1)

    return next_token


def by_llama_cpp(file: Path, vocabulary: int, threads: int) -> Distributions:
    """Log-probabilities from a GGUF file, by the program that it is made for."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = CONTEXT + 8
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that spin keep others from the cores
    params.offline = True
    params.verbosity = -1
    params.api_keys = [secrets.token_hex(32)]  # its HTTP server on a loopback port is nobody's business
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise UserError(f"llama.cpp does not load {file.name}: {error}") from None

    def next_token(ids: list[int]) -> torch.Tensor:
        reply = server.handle_completions(
            {
                "prompt": ids,
                "max_tokens": 1,
                "temperature": 1.0,
                # llama.cpp reports no probabilities with an end token or half of a UTF-8 character. What it draws
                # is not looked at, and the probabilities are those before any choice.
                "grammar": "root ::= [ -~]+",
                "samplers": [],
                "logprobs": vocabulary,
                "cache_prompt": True,
            }
        )
        if "choices" not in reply:
            raise RuntimeError(f"llama.cpp: {reply}")
        log_probabilities = torch.full((vocabulary,), -torch.inf, dtype=torch.float64)
        for token in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            log_probabilities[token["id"]] = token["logprob"]
        return log_probabilities

    return next_token


def compare(
    places: Sequence[Prefix], adapter: Sequence[torch.Tensor], file: Distributions
) -> dict[str, float]:
    """How far the file's distributions are from the adapter's, in nats.

    Args:
        places: Where.
        adapter: The adapter's log-probabilities at each place, [vocabulary].
        file: Gives the file's.
    """
    divergences, losses = [], {"adapter": 0.0, "file": 0.0}
    for place, expected in zip(places, adapter, strict=True):
        found = file(place.ids)
        # A probability that llama.cpp's float32 rounds to 0 is unlikely, not impossible; nor do they sum to just 1.
        found = found.clamp(min=-100).log_softmax(-1)
        divergences.append(float((expected.exp() * (expected - found)).sum()))
        losses["adapter"] -= float(expected[place.label]) / len(places)
        losses["file"] -= float(found[place.label]) / len(places)
    return {
        "positions": len(places),
        "mean_kl": sum(divergences) / len(divergences),
        "max_kl": max(divergences),
        "adapter_loss": losses["adapter"],
        "file_loss": losses["file"],
    }
