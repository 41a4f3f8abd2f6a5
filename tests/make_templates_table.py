"""Write the table of published templates in docs/models.md: `python -m tests.make_templates_table FOLDER`.

FOLDER is models/templates of llama.cpp; the source archive of llama-cpp-python has it
(`pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36`, in vendor/llama.cpp). Each template gets a
tokenizer of bytes with its control tokens, and is asked for conversations of several kinds as `format` asks. What is
accepted is compared with the prompt that inference makes of the same turns.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from abctune.core.errors import UserError
from abctune.core.files import write_json
from abctune.llm.chat import prompt_ids
from abctune.llm.conversation import IGNORE
from abctune.llm.tokenizer import load_tokenizer
from stages.format.render import Renderer
from stages.format.repairs import Conversation
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


class Remedy(NamedTuple):
    """What makes a template's refused kinds usable: in words, as settings that are tried here, or neither."""

    says: str
    args: Mapping[str, Any] | None = None
    template: str | None = None


THINK = Remedy("`template_args: {enable_thinking: true}`", {"enable_thinking": True})
NO_THINK = Remedy("`template_args: {enable_thinking: false}`", {"enable_thinking": False})
CHATML = Remedy("`chat_template: chatml-tools`", {}, "chatml-tools")
OWN = Remedy("a template of one's own")
# {template: (tokens that end a reply, what helps)}, for the families that people fine-tune.
TEMPLATES: dict[str, tuple[tuple[str, ...], Remedy | None]] = {
    "Apriel-1.6-15b-Thinker-fixed": (("<|end|>",), OWN),
    "Bielik-11B-v3.0-Instruct": (("<|im_end|>",), CHATML),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (("<|END_OF_TURN_TOKEN|>",), THINK),
    "GLM-4.6": (BEHIND_A_CALL, None),
    "GLM-4.7-Flash": (BEHIND_A_CALL, NO_THINK),
    "HuggingFaceTB-SmolLM3-3B": (("<|im_end|>",), CHATML),
    "Kimi-K2-Instruct": (("<|im_end|>",), Remedy("moonshotai-Kimi-K2's template", {}, "moonshotai-Kimi-K2")),
    "LFM2-8B-A1B": (("<|im_end|>",), CHATML),
    "Mistral-Small-3.2-24B-Instruct-2506": (("</s>",), OWN),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (("<|im_end|>",), None),
    "NVIDIA-Nemotron-Nano-v2": (("<SPECIAL_12>",), OWN),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": (("<|im_end|>",), CHATML),
    "Qwen-QwQ-32B": (("<|im_end|>",), THINK),
    "Qwen-Qwen2.5-7B-Instruct": (("<|im_end|>",), CHATML),
    "Qwen-Qwen3-0.6B": (("<|im_end|>",), None),
    "Qwen3-Coder": (("<|im_end|>",), CHATML),
    "Qwen3.5-4B": (("<|im_end|>",), None),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (("<｜end▁of▁sentence｜>",), OWN),
    "deepseek-ai-DeepSeek-V3.1": (("<｜end▁of▁sentence｜>",), OWN),
    "deepseek-ai-DeepSeek-V3.2": (("<｜end▁of▁sentence｜>",), THINK),
    "google-gemma-2-2b-it": (("<end_of_turn>",), OWN),
    "google-gemma-4-31B-it": (("<turn|>",), OWN),
    "ibm-granite-granite-3.3-2B-Instruct": (("<|end_of_text|>",), OWN),
    "ibm-granite-granite-4.0": (("<|end_of_text|>",), OWN),
    "meetkai-functionary-medium-v3.2": (("<|eot_id|>",), OWN),
    "meta-llama-Llama-3.2-3B-Instruct": (("<|eot_id|>",), OWN),
    "microsoft-Phi-3.5-mini-instruct": (("<|end|>",), OWN),
    "mistralai-Ministral-3-14B-Reasoning-2512": (("</s>",), OWN),
    "mistralai-Mistral-Nemo-Instruct-2407": (("</s>",), Remedy("with calls, the system message in the first question")),
    "moonshotai-Kimi-K2": (("<|im_end|>",), CHATML),
    "openai-gpt-oss-120b": (("<|return|>", "<|call|>"), None),
    "unsloth-Apriel-1.5": (("<|end|>",), OWN),
}  # fmt: skip
WITH_A_DEFAULT = (
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
)  # published beside a `default` that is ChatML
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


def outcomes(folder: Path, name: str, remedy: Remedy | None) -> dict[str, str]:
    """What becomes of each kind of conversation with one template, or with what helps where it is refused."""
    template: str | dict[str, str] = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    named, args = "model", dict(remedy.args or {}) if remedy else {}
    with TemporaryDirectory() as made:
        if remedy and remedy.template == "chatml-tools":
            named = remedy.template
        elif name in WITH_A_DEFAULT:
            template = {"default": small.CHATML, "tool_use": template}
        elif remedy and remedy.template:
            template = (folder / f"{remedy.template}.jinja").read_text(encoding="utf-8")
        write_tokenizer(Path(made), template, TEMPLATES[name][0])
        tokenizer = load_tokenizer(Path(made), named, args)
        return {kind: outcome(tokenizer, kind) for kind in KINDS}


def rows(folder: Path) -> Iterator[str]:
    """A line per template, by the alphabet.

    Raises:
        AssertionError: what is said to help does not.
    """
    yield f"| template | {' | '.join(KINDS)} | for what is refused |\n|{'---|' * (len(KINDS) + 2)}"
    for name, (_, remedy) in TEMPLATES.items():
        found = outcomes(folder, name, None)
        refused = [kind for kind in KINDS if found[kind] != "yes"]
        says = remedy.says if remedy and refused else ""
        if refused and remedy and remedy.args is not None:
            helped = outcomes(folder, name, remedy)
            mended = [kind for kind in refused if helped[kind] == "yes"]
            assert mended, f"{name}: {remedy.says} does not help: {helped}"
            says += "" if mended == refused else f" ({', '.join(mended)})"
        yield f"| {name} | {' | '.join(found.values())} | {says} |"


def filled(page: str, folder: Path) -> str:
    """The page with its table made anew."""
    return with_part(page, START, END, "\n".join(rows(folder)))


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), Path(sys.argv[1])), encoding="utf-8")
