"""The layouts of families whose own templates no other test renders, each through one turn, three turns, a system message and a call.

The templates are this project's, in the layout and with the control tokens of each family's published one. Those were
rendered by hand, with tokens of their own in the place of the real tokenizers'.
"""

from __future__ import annotations

import pytest

from abctune.llm.chat import prompt_ids, render
from abctune.llm.conversation import IGNORE
from abctune.llm.tokenizer import self_contained
from stages.format.render import Renderer
from stages.format.repairs import Conversation
from stages.format.turns import Rejected
from tests import small

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the weather."}}]


def said(*texts):
    """Turns of the user and the assistant."""
    return [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]


RULES = {"role": "system", "content": "Be brief."}
CALLED = [
    {"role": "user", "content": "Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "name": "weather"},
    {"role": "assistant", "content": "It rains."},
]
CONVERSATIONS = {
    "one turn": said("Hi", "Yo"),
    "three turns": said("Hi", "Yo", "And?", "So.", "Bye", "See you"),
    "system": [RULES, *said("Hi", "Yo", "And?", "So.")],
    "call": CALLED,
}
LISTED = "{% if tools %}{{ '<tools>' + (tools | tojson) + '</tools>' }}{% endif %}"
CALLS = "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"


def headed(before: str, behind: str, end: str, inside: str = "", head: str = "") -> str:
    """A template whose turns are all `<before>role<behind>text<inside><end>`."""
    turn = f"{{{{ '{before}' + message.role + '{behind}' + message.content }}}}{inside}{{{{ '{end}' }}}}"
    prompt = f"{{% if add_generation_prompt %}}{{{{ '{before}assistant{behind}' }}}}{{% endif %}}"
    return f"{head}{{% for message in messages %}}{turn}{{% endfor %}}{prompt}"


# {family: (template, end of a reply, other control tokens, whether it has a place for calls)}
FAMILIES = {
    "granite 3": (
        headed("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n"),
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
        False,
    ),
    "granite 4": (
        headed("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n", CALLS, LISTED),
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
        True,
    ),
    "smollm2": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
        + headed("<|im_start|>", "\n", "<|im_end|>\n"),
        "<|im_end|>",
        ("<|im_start|>",),
        False,
    ),
    "smollm3": (
        "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}"
        + headed("<|im_start|>", "\n", "<|im_end|>\n"),
        "<|im_end|>",
        ("<|im_start|>",),
        False,
    ),
    # The line break behind a reply's end is printed only where another turn follows.
    "olmo 2": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}"
        "{% if message.role != 'assistant' %}{{ '\n' }}{% else %}{{ eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "<|endoftext|>",
        (),
        False,
    ),
    "olmo 3": (headed("<|im_start|>", "\n", "<|im_end|>\n", CALLS, LISTED), "<|im_end|>", ("<|im_start|>",), True),
    "tinyllama": (headed("<|", "|>\n", "</s>\n"), "</s>", (), False),
    "llama 4": (
        headed("<|header_start|>", "<|header_end|>\n\n", "<|eot|>", CALLS, LISTED),
        "<|eot|>",
        ("<|header_start|>", "<|header_end|>"),
        True,
    ),
    "mistral small": (
        "{% for message in messages %}{% if message.role == 'system' %}"
        "{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}{% elif message.role == 'user' %}"
        "{{ '[INST]' + message.content + '[/INST]' }}{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"),
        False,
    ),
}  # fmt: skip


def tokenizer_of(family: str):
    """The family's template and control tokens over bytes."""
    template, end, others, _ = FAMILIES[family]
    tokenizer = small.byte_tokenizer((end, *others, "<pad>"), eos_token=end, pad_token="<pad>")
    tokenizer.chat_template = self_contained(template, {})
    return tokenizer


def rendered(tokenizer, turns, tools):
    """The only example of a conversation whose replies are all learned."""
    renderer = Renderer(tokenizer, 10_000)
    replies = [turn["role"] == "assistant" for turn in turns]
    [one], _ = renderer.cut(Conversation(turns, replies, tools))
    [example] = renderer.encode([one])
    return one, example


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_reply_is_learned_through_its_end_behind_the_prompt_that_inference_shows(family, kind):
    tokenizer, turns = tokenizer_of(family), CONVERSATIONS[kind]
    tools = TOOLS if kind == "call" else None
    if tools and not FAMILIES[family][3]:
        with pytest.raises(Rejected, match="chat template"):
            rendered(tokenizer, turns, tools)
        return
    one, example = rendered(tokenizer, turns, tools)
    assert one.text == render(tokenizer, turns, add_generation_prompt=False, tools=tools)
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = prompt_ids(tokenizer, turns[:number], tools)
        assert example.input_ids[: len(prompt)] == prompt
        labels = example.labels[len(prompt) :]
        learned = tokenizer.decode(labels[: labels.index(IGNORE)] if IGNORE in labels else labels)
        assert learned.startswith(turn["content"]) and learned.endswith(tokenizer.eos_token)
        assert ("weather" in learned) == ("tool_calls" in turn)


def test_a_template_that_prints_the_day_prints_the_pinned_one():
    assert "Today: 26 July 2024" in rendered(tokenizer_of("smollm3"), said("Hi", "Yo"), None)[0].text
