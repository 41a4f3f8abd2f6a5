import json

import pytest

from abctune.core.params import SourceParams
from stages.format.schemas import Reader
from stages.format.turns import Rejected


def to_messages(record, schema):
    return Reader(SourceParams(schema=schema)).read(record).messages


HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def sharegpt(*turns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("schema", "record"),
    [
        ("sharegpt", sharegpt(("human", "Hi"), ("gpt", "Hello."))),
        ("sharegpt", sharegpt((" user", "Hi"), ("Assistant ", "Hello."))),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello."}),
        ("alpaca", {"instruction": "Hi", "output": "Hello."}),
        ("messages", {"messages": HELLO}),
    ],
)
def test_each_schema_gives_the_same_messages_named_or_detected(schema, record):
    assert to_messages(json.dumps(record), schema) == HELLO
    assert to_messages(json.dumps(record), "auto") == HELLO


def test_alpacas_input_follows_its_instruction():
    record = {"instruction": "Sum up.", "input": "A text.", "output": "Short."}
    assert to_messages(json.dumps(record), "alpaca")[0]["content"] == "Sum up.\n\nA text."


def test_a_system_message_is_kept_in_front():
    record = sharegpt(("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello."))
    assert [message["role"] for message in to_messages(json.dumps(record), "sharegpt")] == [
        "system",
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        ("not JSON", '{"conversations": ['),
        ("not JSON", "9" * 5000),
        ("nested too deep", "[" * 100_000),
        ("too long", "x" * 1_000_001),
        ("not a JSON object", "[1, 2]"),
        ("the same key twice: output", '{"instruction": "Hi", "output": "Hello.", "output": "Hi!"}'),
        ("the same key twice: content", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}'),
        ("schema not recognised", '{"text": "Hi"}'),
        ("no list of turns under 'conversations'", '{"conversations": "Hi"}'),
        ("no list of turns under 'conversations'", '{"conversations": [null]}'),
        ("empty conversation", '{"conversations": []}'),
        ("unknown role: narrator", sharegpt(("narrator", "Hi"), ("gpt", "Hello."))),
        ("unknown role: none given", {"messages": [{"role": None, "content": "Hi"}]}),
        ("empty message", sharegpt(("human", "Hi"), ("gpt", " \n"))),
        ("content is not text", sharegpt(("human", "Hi"), ("gpt", None))),
        ("content is not text, but a number or true or false", sharegpt(("human", 7), ("gpt", "Hello."))),
        ("no reply is marked to be learned", sharegpt(("gpt", "Hello."), ("human", "Hi"))),
        ("wrong turn order", sharegpt(("human", "Hi"), ("system", "Be brief."), ("gpt", "Hello."))),
        ("no assistant turn", sharegpt(("human", "Hi"))),
        ("not UTF-8", '{"instruction": "\\ud800", "output": "Hello."}'),
        ("no 'instruction' or no 'output'", {"instruction": "Hi"}),
        ("too many messages", sharegpt(*[("human", "Hi"), ("gpt", "Hello.")] * 300)),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(reason, record):
    record = record if isinstance(record, str) else json.dumps(record)
    with pytest.raises(Rejected, match=f"^{reason}$"):
        to_messages(record, "auto")


def test_a_row_of_another_schema_than_the_one_named_is_rejected():
    with pytest.raises(Rejected, match="no 'instruction' or no 'output'"):
        to_messages(json.dumps({"messages": HELLO}), "alpaca")
