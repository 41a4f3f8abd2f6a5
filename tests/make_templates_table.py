"""Write the table of published templates in docs/models.md: `python -m tests.make_templates_table FOLDER`.

FOLDER is models/templates of llama.cpp; the source archive of llama-cpp-python has it
(`pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36`, in vendor/llama.cpp). Each template gets a
tokenizer of bytes with its control tokens, and is asked for conversations of several kinds as `format` asks. What is
accepted is compared with the prompt that inference makes of the same turns.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abctune.core.errors import UserError
from abctune.core.files import write_json
from abctune.core.params import SourceParams
from abctune.llm.chat import prompt_ids
from abctune.llm.conversation import IGNORE
from abctune.llm.tokenizer import load_tokenizer
from stages.format.formatter import RecordReader
from stages.format.render import Renderer
from stages.format.repairs import Conversation
from stages.format.trials import helpful_setting
from stages.format.turns import Rejected
from tests import small
from tests.pages import with_part

PAGE = Path(__file__).parent.parent / "docs/models.md"
START, END = "<!-- table: made by tests.make_templates_table -->\n", "<!-- end of templates' table -->"

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}, "id": "abcdefghi"}
CITY = {"type": "string", "description": "Which city."}
TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": TOOL}]
RULES = {"role": "system", "content": "Be brief."}
CALLED = [
    {"role": "user", "content": "Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "It rains."},
]
CHAT = [
    {"role": ("user", "assistant")[turn % 2], "content": text}
    for turn, text in enumerate(("Hi", "Yo", "And?", "So.", "Bye", "See you"))
]


def thoughtful(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation with a thought before each reply."""
    return [
        turn | ({"reasoning_content": "I ponder."} if turn["role"] == "assistant" else {}) for turn in turns
    ]


KINDS = {
    "one turn": CHAT[:2],
    "three turns": CHAT,
    "system": [RULES, *CHAT[:4]],
    "calls": CALLED,
    "system and calls": [RULES, *CALLED],
    "reasoning": thoughtful(CHAT[:4]),
}
BEHIND_A_CALL = (
    "<|endoftext|>",
    "<|user|>",
    "<|observation|>",
)  # eos_token_id of GLM's generation_config.json


# {template: tokens that end a reply}, for the families that people fine-tune.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "Apriel-1.6-15b-Thinker-fixed": ("<|end|>",),
    "Bielik-11B-v3.0-Instruct": ("<|im_end|>",),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ("<|END_OF_TURN_TOKEN|>",),
    "GLM-4.6": BEHIND_A_CALL,
    "GLM-4.7-Flash": BEHIND_A_CALL,
    "HuggingFaceTB-SmolLM3-3B": ("<|im_end|>",),
    "Kimi-K2-Instruct": ("<|im_end|>",),
    "LFM2-8B-A1B": ("<|im_end|>",),
    "Mistral-Small-3.2-24B-Instruct-2506": ("</s>",),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("<|im_end|>",),
    "NVIDIA-Nemotron-Nano-v2": ("<SPECIAL_12>",),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("<|im_end|>",),
    "Qwen-QwQ-32B": ("<|im_end|>",),
    "Qwen-Qwen2.5-7B-Instruct": ("<|im_end|>",),
    "Qwen-Qwen3-0.6B": ("<|im_end|>",),
    "Qwen3-Coder": ("<|im_end|>",),
    "Qwen3.5-4B": ("<|im_end|>",),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("<｜end▁of▁sentence｜>",),
    "deepseek-ai-DeepSeek-V3.1": ("<｜end▁of▁sentence｜>",),
    "deepseek-ai-DeepSeek-V3.2": ("<｜end▁of▁sentence｜>",),
    "google-gemma-2-2b-it": ("<end_of_turn>",),
    "google-gemma-4-31B-it": ("<turn|>",),
    "ibm-granite-granite-3.3-2B-Instruct": ("<|end_of_text|>",),
    "ibm-granite-granite-4.0": ("<|end_of_text|>",),
    "meetkai-functionary-medium-v3.2": ("<|eot_id|>",),
    "meta-llama-Llama-3.2-3B-Instruct": ("<|eot_id|>",),
    "microsoft-Phi-3.5-mini-instruct": ("<|end|>",),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("</s>",),
    "mistralai-Mistral-Nemo-Instruct-2407": ("</s>",),
    "moonshotai-Kimi-K2": ("<|im_end|>",),
    "openai-gpt-oss-120b": ("<|return|>", "<|call|>"),
    "unsloth-Apriel-1.5": ("<|end|>",),
}
OWN = "a template of one's own"
# What helps where no setting does, and is more than a template of one's own.
IN_WORDS = {
    "Kimi-K2-Instruct": "moonshotai-Kimi-K2's template (calls, system and calls)",
    "mistralai-Mistral-Nemo-Instruct-2407": "with calls, the system message in the first question",
}
WITH_A_DEFAULT = (
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
)  # published next to a `default` that is ChatML
CONTROL = re.compile(
    r"<[|｜][^<>{}'\"%+ ]+?[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_turn>|</?s>|<bos>|<SPECIAL_\d+>"
)


def write_tokenizer(folder: Path, template: str | Mapping[str, str], ends: Sequence[str]) -> None:
    """A tokenizer of bytes with the control tokens of a template, and a generation_config.json with the ends of replies."""
    control = tuple(dict.fromkeys([*ends, *CONTROL.findall(str(template)), "<unused>", "<pad>"]))
    bos = next((one for one in control if "begin" in one or one in ("<s>", "<bos>")), "<unused>")
    tokenizer = small.byte_tokenizer(control, bos_token=bos, eos_token=ends[0], pad_token="<pad>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    write_json(
        folder / "generation_config.json", {"eos_token_id": tokenizer.convert_tokens_to_ids(list(ends))}
    )


def outcome(tokenizer: Any, kind: str) -> str:
    """`yes`, or the reason why a conversation of this kind is refused.

    Raises:
        AssertionError: a reply would be learned behind another prompt than inference shows.
    """
    turns, tools = KINDS[kind], TOOLS if "calls" in kind else None
    renderer = Renderer(tokenizer, 10_000)
    supervised = [turn["role"] == "assistant" for turn in turns]
    try:
        rendered, whole = renderer.cut(Conversation(turns, supervised, tools))
        examples = renderer.encode(rendered)
    except (Rejected, UserError) as refused:
        return f"no: {str(refused).removeprefix('chat template ')}"
    for one, example in zip(rendered, examples, strict=True):
        for number in one.supervised:
            prompt = prompt_ids(tokenizer, whole.messages[:number], tools)
            assert example.input_ids[: len(prompt)] == prompt, f"{kind}: another prompt than inference's"
            assert example.labels[len(prompt)] != IGNORE, f"{kind}: the reply's beginning is not learned"
    return "yes"


def load(folder: Path, name: str, made: Path) -> Any:
    """A tokenizer with a published template, as `format` loads it; `made` is a folder for its files, which it reads later too."""
    template: str | dict[str, str] = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    if name in WITH_A_DEFAULT:
        template = {"default": small.CHATML, "tool_use": template}
    write_tokenizer(made, template, TEMPLATES[name])
    return load_tokenizer(made)


def helps(tokenizer: Any, name: str, refused: Sequence[str]) -> str:
    """What makes the refused kinds usable: the settings that `format` names for them, each with its kinds."""
    reader = RecordReader({"own": SourceParams()}, tokenizer, 10_000, {})
    kinds: dict[str, list[str]] = {}
    for kind in refused:
        row = {"messages": KINDS[kind]} | ({"tools": TOOLS} if "calls" in kind else {})
        setting = helpful_setting(reader, [{"source": "own", "record": json.dumps(row), "group": None}])
        kinds.setdefault(f"`{setting[0]}`" if setting else IN_WORDS.get(name, OWN), []).append(kind)
    if len(kinds) == 1:
        return next(iter(kinds))
    return ", ".join(f"{one} ({', '.join(its)})" for one, its in kinds.items())


def rows(folder: Path) -> Iterator[str]:
    """A line per template, by the alphabet."""
    yield f"| template | {' | '.join(KINDS)} | for what is refused |\n|{'---|' * (len(KINDS) + 2)}"
    for name in TEMPLATES:
        with TemporaryDirectory() as made:
            tokenizer = load(folder, name, Path(made))
            found = {kind: outcome(tokenizer, kind) for kind in KINDS}
            refused = [kind for kind in KINDS if found[kind] != "yes"]
            helped = helps(tokenizer, name, refused) if refused else ""
        yield f"| {name} | {' | '.join(found.values())} | {helped} |"


def filled(page: str, folder: Path) -> str:
    """The page with its table made anew."""
    return with_part(page, START, END, "\n".join(rows(folder)))


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), Path(sys.argv[1])), encoding="utf-8")
