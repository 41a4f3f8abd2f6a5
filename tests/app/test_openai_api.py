"""The API, through the official client."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.app.conftest import serving
from tests.app.planted import LETTERS

HELLO = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_models_are_listed_by_the_names_that_can_be_asked(client):
    assert [model.id for model in client.models.list()] == ["base", "A", "B", "C"]


@pytest.mark.parametrize("model", list(LETTERS))
def test_a_model_answers_by_name(client, model):
    done = client.chat.completions.create(model=model, messages=HELLO, max_tokens=5)
    assert done.choices[0].message.content == LETTERS[model] * 5
    assert (done.model, done.choices[0].finish_reason, done.usage.completion_tokens) == (model, "length", 5)


def test_an_answer_streams_and_ends_with_its_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="B", messages=HELLO, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "b" * 30
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 30


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "D"}, "no such model here; there is base, A, B, C"),
        ({"model": "../../etc/passwd"}, "no such model"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 100_000}, "max_new_tokens"),
        ({"n": 2}, "n is not supported"),
        ({"stop": ["x"]}, "stop is not supported"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty message"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "200,000 characters is too long"),
        ({"messages": [{"role": "user", "content": "y " * 7_000}]}, "your message is too long"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "each message needs a role"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(**{"model": "A", "messages": HELLO} | wrong)


@pytest.mark.parametrize(
    "raw",
    [
        '{"model": "A", "temperature": NaN, "messages": [{"role": "user", "content": "hi"}]}',
        '{"model": "A", "temperature": 1e400, "messages": [{"role": "user", "content": "hi"}]}',
        '{"model": "A", "max_tokens": 1e400, "messages": [{"role": "user", "content": "hi"}]}',
        '{"model": null, "messages": null}',
        '{"model": "A", "messages": [null]}',
        '{"model": ["A"], "messages": "hi"}',
        '{"model": "A", "stream": true, "stream_options": 7, "messages": [{"role": "user", "content": 7}]}',
        "[]",
        "{",
        "[" * 100_000,
        "",
    ],
)
def test_what_is_no_request_is_answered_400_without_exception_text(address, raw):
    response = httpx.post(
        f"{address}/v1/chat/completions", content=raw, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in response.text and ".py" not in response.text


def test_a_lone_surrogate_is_no_reason_to_fail(address):
    raw = '{"model": "A", "max_tokens": 2, "messages": [{"role": "user", "content": "a\\ud800b"}]}'
    assert (
        httpx.post(f"{address}/v1/chat/completions", content=raw).json()["choices"][0]["message"]["content"]
        == "aa"
    )


def test_a_password_guards_page_and_api(service):
    with serving(service, auth=("me", "pass:word")) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/config").status_code == 401
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="pass:word") as client:
            assert len(list(client.models.list())) == 4
