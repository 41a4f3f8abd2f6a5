"""The tokenizer of a model folder, as the whole project uses it: chat template, padding, the tokens that end a reply."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.core.places import BASE_MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.json"
# Some templates print the day's date unless given one: one date, so that a prompt is the same on every day.
DATE = date(2024, 7, 26)
DATE_STRING = "26 July 2024"  # as the report's prompt shows it
# End-of-turn tokens of the common chat formats; a tokenizer that has one stops generation on it.
END_OF_TURN = (
    *("<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "</s>"),
    *("<|return|>", "<|call|>"),  # gpt-oss: an answer, a call
    *("<turn|>", "<|tool_response>"),  # Gemma 4: likewise
)
# Special tokens a reply's own text may spell: a model writes them as these tokens.
REPLY_MARKUP = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})
# What a tokenizer that mangles spaces or bytes does not give back, and a space that begins a text.
PROBES = ("two words,\n  indented; naïve 你好", " lead")


def load_tokenizer(
    path: Path = BASE_MODEL,
    chat_template: str = "model",
    template_args: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder with the chat template and the template's arguments that params name.

    The template is made self-contained: date and arguments are written into it. So a tokenizer that is saved, published
    or embedded in a GGUF renders the same prompts anywhere.

    Args:
        path: a model folder; fetch has put a template file of the user's own in the place of the model's.
        chat_template: `model`, a path of the user's own (both: the folder's), or `<name>`, a file `<name>.jinja` next to
            this module.
        template_args: variables of the template, as {"enable_thinking": False}.

    Raises:
        UserError: no tokenizer in the folder, no template, or no token that could serve as padding.
    """
    if not (path / FILE).exists():
        raise UserError(f"{path}/{FILE} not found; `dvc repro fetch-model` makes it, or `dvc pull` brings it")
    tokenizer = _as_written(path)
    if chat_template != "model" and "/" not in chat_template:
        tokenizer.chat_template = own_template(chat_template)
    if isinstance(tokenizer.chat_template, dict):  # several named ones, as Hermes 2 and Command-R publish
        tokenizer.chat_template = _one_template(tokenizer.chat_template, path)
    if not tokenizer.chat_template:
        raise UserError(
            f"{path} has no chat template; name one with profiles.*.model.chat_template in params.yaml"
        )
    tokenizer.chat_template = self_contained(tokenizer.chat_template, template_args or {})
    pad = tokenizer.pad_token_id
    # Padding with eos makes collators mask the real eos, and the model never learns to stop. One that was added behind
    # the model's embeddings has none.
    if pad is None or pad in named_stops(tokenizer) or pad >= _embeddings(path):
        tokenizer.pad_token = _pad_token(tokenizer, path)
    return tokenizer


def own_template(name: str) -> str:
    """The source of a chat template of this project's, `<name>.jinja` next to this module."""
    return (Path(__file__).parent / f"{name}.jinja").read_text(encoding="utf-8")


def _as_written(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that tokenizer.json describes.

    transformers builds the class that tokenizer_config.json names, and for some (LlamaTokenizerFast over a byte-level
    vocabulary, as DeepSeek publishes) rebuilds its parts from the class's defaults: every space is lost.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        written = Tokenizer.from_file(str(path / FILE))
    except Exception as error:  # it raises nothing more special
        raise UserError(
            f"{path}/{FILE} is no tokenizer ({error}); take another revision of the model"
        ) from None
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    expected = [written.encode(probe, add_special_tokens=False).ids for probe in PROBES]

    def differs() -> bool:
        """Whether any probe becomes other ids than by tokenizer.json."""
        return [tokenizer.encode(probe, add_special_tokens=False) for probe in PROBES] != expected

    if differs():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    if differs():
        raise UserError(
            f"{path}: transformers reads another tokenizer than tokenizer.json describes; check tokenizer_config.json"
        )
    return tokenizer


def _one_template(named: Mapping[str, str], path: Path) -> str:
    """A model's named templates as one: `tool_use` for conversations with tools, `default` for the others.

    The empty expressions keep Jinja from trimming a line break at which a template begins.

    Raises:
        UserError: none is called `default`.
    """
    if "default" not in named:
        raise UserError(
            f"{path} has chat templates named {', '.join(named)} and none named default; write the one to use to"
            " models/own/NAME.jinja and name that with profiles.*.model.chat_template in params.yaml"
        )
    default, with_tools = named["default"].removesuffix("\n"), named.get("tool_use", "").removesuffix("\n")
    if not with_tools:
        return default
    return f"{{% if tools %}}{{{{ '' }}}}{with_tools}{{{{ '' }}}}{{% else %}}{{{{ '' }}}}{default}{{{{ '' }}}}{{% endif %}}"


def self_contained(template: str, template_args: Mapping[str, Any]) -> str:
    """A chat template with its arguments and the pinned date written into it; unchanged where it needs neither."""
    literals = {
        name: str(value).lower() if isinstance(value, bool) else json.dumps(value)
        for name, value in template_args.items()
    }
    head = "".join(f"{{%- set {name} = {literal} -%}}" for name, literal in literals.items())
    if "date_string" in template and "date_string" not in template_args:
        default = f"{{%- if date_string is not defined -%}}{{%- set date_string = '{DATE_STRING}' -%}}{{%- endif -%}}"
        head += "" if default in template else default
    return head + re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: f"'{DATE.strftime(call[2])}'", template
    )


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of the chat template's source and the pinned date."""
    return hashlib.sha256(f"{DATE_STRING}\n{tokenizer.chat_template}".encode()).hexdigest()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """{text: id} of the special tokens."""
    return {
        token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }


def _pad_token(tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """A special token that no conversation holds: one named for padding, else unk, else a reserved or unused one.

    Nothing is learned from or about it: labels and masks do not come from its id.
    """
    stops = named_stops(tokenizer)
    free = [
        token
        for token, number in special_tokens(tokenizer).items()
        if number not in stops
        and number < _embeddings(path)
        and token not in tokenizer.chat_template
        and token != tokenizer.bos_token
    ]
    ranks = (
        partial(re.search, r"(?i)\bpad\b|right_pad|▁pad▁"),
        lambda token: token == tokenizer.unk_token,
        partial(re.search, "(?i)reserved|unused|pad"),
        lambda token: True,
    )
    for fits in ranks:
        for token in free:
            if fits(token):
                return token
    raise UserError(
        f"{path}: no special token can serve as padding (eos cannot: {tokenizer.eos_token!r} would be masked as padding "
        "and never be learned); add one to the tokenizer as pad_token"
    )


def named_stops(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that the model's files name as a reply's end: eos of the tokenizer and of generation_config.json, END_OF_TURN.

    Special tokens only: text that merely spells one ends nothing. See also abctune.llm.stops.
    """
    special = special_tokens(tokenizer)
    named = {special[token] for token in END_OF_TURN if token in special}
    configured = _configured_stops(Path(tokenizer.name_or_path)) & set(special.values())
    return frozenset(({tokenizer.eos_token_id} | named | configured) - {None, tokenizer.unk_token_id})


def _configured_stops(folder: Path) -> set[int]:
    file = folder / "generation_config.json"
    # A tokenizer made in memory has no name, which would mean the working folder.
    came_from_it = folder.name != "" and (folder / FILE).is_file()
    if not came_from_it or not file.is_file():
        return set()
    eos: Any = _json(file).get("eos_token_id")
    return set(eos) if isinstance(eos, list) else {eos} - {None}


def _embeddings(folder: Path) -> float:
    """How many tokens the model in a folder knows; inf where there is only a tokenizer."""
    file = folder / "config.json"
    config = _json(file) if file.is_file() else {}
    size: float | None = (config.get("text_config") or config).get("vocab_size")
    return math.inf if size is None else size


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}); mend it where the model comes from") from None
    return found


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Every string that the tokenizer would turn into a token of the chat format, wherever it stands in a text.

    All special tokens, and the other added ones that the template prints (DeepSeek's `<｜User｜>` is not special).
    """
    template = tokenizer.chat_template or ""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(sorted(token.content for token in added if token.special or token.content in template))
