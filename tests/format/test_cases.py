"""Records as people have them, each with what is trained on or why it is not; and that no text is lost in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from abctune.core.params import SourceParams
from abctune.core.schemas import UNEVEN_ROW
from stages.format.fields import HARMLESS
from stages.format.formatter import Formatter
from tests import small
from tests.format.make_cases import GIVEN, outcome, read_cases

CASES = read_cases()


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_record_becomes_what_it_means_or_says_why_not(case):
    assert outcome(case) == {key: value for key, value in case.items() if key not in GIVEN}


# --- the property: a piece of a record's text is in what is rendered, or the reason or a repair names its loss ---

WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=6, max_size=12)
ROLE = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool", "Developer", "observation"])
PART = st.fixed_dictionaries({"type": st.just("text"), "text": WORD}, optional={"citations": WORD})
CALL = st.fixed_dictionaries(
    {"function": WORD.map(lambda word: {"name": word, "arguments": {"key": word[::-1]}})},
    optional={"result": WORD},
)
CONTENT = st.one_of(WORD, st.lists(PART, min_size=1, max_size=2))
EXTRAS = {
    "weight": st.sampled_from([0, 1, "0", 0.5]),
    "reasoning_content": WORD,
    "note": WORD,
    "images": st.lists(WORD, max_size=1),
    "tool_calls": st.lists(CALL, min_size=1, max_size=1),
}
TURN = st.fixed_dictionaries({"role": ROLE, "content": CONTENT}, optional=EXTRAS)
# Most lists of such turns are refused for their order; so one turn with at most one more key, in a dialogue, too.
ONE_MORE = st.one_of(*(st.fixed_dictionaries({key: value}) for key, value in EXTRAS.items()))
DIALOGUE = st.tuples(
    WORD.map(lambda word: {"role": "user", "content": word}),
    st.builds(
        lambda turn, more: turn | more,
        st.fixed_dictionaries({"role": st.just("assistant"), "content": CONTENT}),
        ONE_MORE,
    ),
    WORD.map(lambda word: {"role": "user", "content": word}),
    WORD.map(lambda word: {"role": "assistant", "content": word}),
).map(list)
LISTED = st.fixed_dictionaries(
    {"messages": st.lists(TURN, min_size=1, max_size=5)},
    optional={
        "system": WORD,
        "rationale": WORD,
        "tools": WORD.map(lambda word: [{"name": word, "description": word[::-1]}]),
    },
)
FLAT = st.fixed_dictionaries(
    {"instruction": WORD, "output": WORD},
    optional={
        "input": WORD,
        "context": WORD,
        "system": WORD,
        "system_prompt": WORD,
        "question": WORD,
        "answer": WORD,
        "rejected_response": WORD,
        "history": st.lists(st.tuples(WORD, WORD).map(list), max_size=2),
        "prompt": WORD.map(lambda word: [{"role": "user", "content": word}]),
        "thoughts": st.dictionaries(WORD, WORD, min_size=1, max_size=2),
    },
)

# Gemini's and Bedrock's parts, some with a key that nobody reads.
GEMINI_PART = st.one_of(
    st.fixed_dictionaries({"text": WORD}, optional={"thought": st.booleans(), "videoMetadata": WORD}),
    st.fixed_dictionaries(
        {"functionCall": st.fixed_dictionaries({"name": WORD, "args": st.dictionaries(WORD, WORD)})},
        optional={"text": WORD},
    ),
    st.fixed_dictionaries(
        {
            "functionResponse": st.fixed_dictionaries(
                {"response": st.dictionaries(WORD, WORD)}, optional={"note": WORD}
            )
        }
    ),
    st.fixed_dictionaries(
        {"toolUse": st.fixed_dictionaries({"name": WORD, "input": st.dictionaries(WORD, WORD)})}
    ),
    st.fixed_dictionaries(
        {"toolResult": st.fixed_dictionaries({"content": st.lists(WORD.map(lambda w: {"text": w}))})}
    ),
    st.fixed_dictionaries(
        {
            "reasoningContent": st.fixed_dictionaries(
                {"reasoningText": WORD.map(lambda w: {"text": w})}, optional={"x": WORD}
            )
        }
    ),
)
GEMINI = st.builds(
    lambda question, parts, more: {"contents": [question, {"role": "model", "parts": parts}], **more},
    WORD.map(lambda word: {"role": "user", "parts": [{"text": word}]}),
    st.lists(GEMINI_PART, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "systemInstruction": WORD.map(lambda word: {"parts": [{"text": word}]}),
            "tools": WORD.map(
                lambda word: [{"functionDeclarations": [{"name": word, "description": word[::-1]}]}]
            ),
        },
    ),
)


def texts_of(value: Any) -> list[str]:
    """Every text in a record that is content, not a role's name or the mark of what is to be learned."""
    if isinstance(value, dict):
        return [
            text
            for key, inner in value.items()
            if key not in ("role", "type", "weight")
            for text in texts_of(inner)
        ]
    if isinstance(value, list):
        return [text for inner in value for text in texts_of(inner)]
    return [value] if isinstance(value, str) else []


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    record=st.one_of(LISTED, FLAT, GEMINI),
    template=st.sampled_from(["CHATML", "TOOLS_CHATML", "FORGETFUL_CHATML"]),
)
@example(
    record={
        "messages": [
            {"role": "system", "content": "aaaaaa"},
            {"role": "system", "content": "aaaaaa", "weight": "0"},
            {"role": "assistant", "content": "aaaaaa"},
        ]
    },
    template="CHATML",
)
def test_every_piece_of_a_records_text_is_trained_on_or_its_loss_is_named(record, template):
    tokenizer = small.chatml_tokenizer()
    tokenizer.chat_template = getattr(small, template)
    formatter = Formatter({"own": SourceParams()}, tokenizer, 100_000)
    kept, rejected = formatter.batch(
        [{"source": "own", "row": 0, "record": json.dumps(record), "group": None}]
    )
    if rejected:
        assert not kept and rejected[0]["reason"]
        return
    rendered = " ".join(tokenizer.decode(row["input_ids"]) for row in kept)
    allowed = [record["rejected_response"]] if "rejected_response" in record else []
    assert ("rejected answer left out" in formatter.record().sources["own"].repairs) == bool(allowed)
    after_last_reply = len(kept) and "one example per reply" in formatter.record().sources["own"].repairs
    lost = [text for text in texts_of(record) if text not in rendered and text not in allowed]
    assert not lost or after_last_reply, lost


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    record=FLAT,
    name=st.sampled_from(["explanation", "text", "notes"]),
    word=WORD,
    order=st.permutations(range(3)),
)
def test_a_text_that_quotes_the_conversation_and_adds_words_of_its_own_is_not_a_repetition(
    record, name, word, order
):
    assume(not any(word in text for text in texts_of(record)))
    quoted = [record["instruction"], record["output"], word]
    with_text = {**record, name: "\n\n".join(quoted[at] for at in order)}
    assert "reason" in outcome({"record": with_text})


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12), word=WORD)
def test_a_field_that_nobody_reads_is_named_unless_it_is_ignored(name, word):
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    case = {"record": {**record, f"x_{name}": word}}
    assert outcome(case) == {"reason": f"unread field: x_{name}"}
    assert "reason" not in outcome({**case, "options": {"ignore": [f"x_{name}"]}})


def test_the_harmless_fields_hold_no_name_under_which_published_sets_keep_text_to_learn():
    assert not HARMLESS & {
        "content",
        "system",
        "tools",
        "images",
        "thinking",
        "rationale",
        "chosen",
        "history",
    }


def test_a_tables_row_with_too_many_cells_says_so():
    record = {"source": "own", "row": 0, "record": "a,b,c", "group": None, "problem": UNEVEN_ROW}
    _, [refused] = Formatter({"own": SourceParams()}, small.chatml_tokenizer(), 100).batch([record])
    assert refused["reason"] == "not as many cells as columns"
