"""Compare an exported file with its adapter: next-token distributions at positions of held-out replies."""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch

from abctune.core.errors import UserError
from abctune.llm.chat import prompt_ids
from abctune.llm.conversation import IGNORE, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERSATIONS, POSITIONS = 8, 6  # 48 distributions: each is a whole vocabulary
CONTEXT = (
    512  # tokens of a conversation that are looked at: enough to see a wrong rotary embedding, quick on a CPU
)
# Mean Kullback-Leibler divergence, in nats, above which a file is not published. Well above what rounding to the
# format costs (tests/export/test_export.py prints it), well below what one wrongly written tensor costs (over 1).
TOLERANCE = {"merged_16bit": 0.005, "f16": 0.005, "q8_0": 0.02, "q4_k_m": 0.25}

# What tokenizers cut differently: runs of spaces and lines, digits, contractions, scripts, combining characters, code.
TEXTS = (
    " lead,  two  spaces\n\n\nnew\ttab 12345 3.14 don't DON'T we'Ve ",
    "naïve 你好 🦙 ру́сский\r\n",
    "def f(x):\n    return x  # é\n\n    end",
)
QUESTION: list[Message] = [{"role": "user", "content": "Why is the sky blue?"}]


class Prefix(NamedTuple):
    """The beginning of a conversation, and the token that comes next in it."""

    ids: list[int]
    label: int


class Agreement(NamedTuple):
    """A file compared with its adapter: divergences in nats, losses in nats per token."""

    positions: int
    mean_kl: float
    max_kl: float
    adapter_loss: float
    file_loss: float


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
        """Float64 log-probabilities (vocabulary,) of the token after `ids`."""
        logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
        return logits.double().cpu().log_softmax(-1)

    return next_token


class LlamaCppFile:
    """A GGUF file, with a GGUF adapter on it if one is given, by the program that it is made for."""

    def __init__(self, file: Path, threads: int, lora: Path | None = None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = CONTEXT + 8
        params.n_parallel = 1
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cpuparams.poll = params.cpuparams_batch.poll = (
            0  # threads that spin keep others from the cores
        )
        params.offline = True
        params.verbosity = -1
        self._key = secrets.token_hex(32)  # its HTTP server listens on a loopback port, for this check alone
        params.api_keys = [self._key]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise UserError(f"llama.cpp does not load {file.name}: {error}") from None
        self._name = file.name

    def distributions(self, vocabulary: int) -> Distributions:
        """Log-probabilities of the next token."""

        def next_token(ids: list[int]) -> torch.Tensor:
            """Float64 log-probabilities (vocabulary,) of the token after `ids`.

            Raises:
                UserError: llama.cpp computes NaN.
                RuntimeError: llama.cpp answers with an error.
            """
            reply = self._server.handle_completions(
                {
                    "prompt": ids,
                    "max_tokens": 1,
                    "temperature": 1.0,
                    # llama.cpp reports no probabilities with an end token or half of a UTF-8 character. What it
                    # draws is not looked at, and the probabilities are those before any choice.
                    "grammar": "root ::= [ -~]+",
                    "samplers": [],
                    "logprobs": vocabulary,
                    "cache_prompt": True,
                }
            )
            if "choices" not in reply:
                raise RuntimeError(f"llama.cpp: {reply}")
            found = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            if any(token["logprob"] is None for token in found):  # JSON's word for NaN
                raise UserError(
                    f"{self._name}: llama.cpp computes values that are no numbers with it, as where activations are beyond "
                    "float16's 65,504; nothing is published. Take merged_16bit in export.formats"
                )
            log_probabilities = torch.full((vocabulary,), -torch.inf, dtype=torch.float64)
            for token in found:
                log_probabilities[token["id"]] = token["logprob"]
            return log_probabilities

        return next_token

    def tokens(self, text: str, begins: bool = False) -> list[int]:
        """Ids of a text in which control tokens count as such.

        Args:
            begins: whether to begin as the file says that texts begin, with bos or without.
        """
        wanted = {"content": text, "add_special": begins, "parse_special": True}
        found: list[int] = self._ask("tokenize", wanted)["tokens"]
        return found

    def prompt(self, messages: Sequence[Message]) -> str:
        """A conversation that awaits a reply, by the file's own template."""
        text: str = self._ask("apply-template", {"messages": list(messages)})["prompt"]
        return text

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


def require_same_tokens(file: LlamaCppFile, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Compare the file's tokenizer and template with the published ones, by what they make of texts and of a question.

    Raises:
        UserError: llama.cpp would read other ids than the model was trained on.
    """
    for text in TEXTS:
        expected = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if file.tokens(text) != expected:
            raise UserError(
                f"llama.cpp cuts {text!r} into other tokens with {name} than the tokenizer does; nothing is published. "
                "Put merged_16bit into export.formats and convert it with llama.cpp's convert_hf_to_gguf.py"
            )
    if file.tokens(file.prompt(QUESTION), begins=True) != prompt_ids(tokenizer, QUESTION):
        raise UserError(
            f"llama.cpp makes another prompt of a question with {name}'s chat template than transformers does; nothing "
            "is published. Name a plainer one with profiles.*.model.chat_template in params.yaml"
        )


def compare(places: Sequence[Prefix], adapter: Sequence[torch.Tensor], file: Distributions) -> Agreement:
    """How far the file's distributions are from the adapter's.

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
    mean = sum(divergences) / len(divergences)
    return Agreement(len(places), mean, max(divergences), losses["adapter"], losses["file"])
