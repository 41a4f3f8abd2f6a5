"""Many callers at once: nobody gets another adapter's answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.request import Refused, read_request, read_sampling
from app.service import BUSY, FAILED, Service, Waiting
from tests.app.conftest import serving
from tests.app.planted import LETTERS

NAMES = list(LETTERS)


def body(model: str, n: int = 24) -> dict:
    return {
        "model": model,
        "max_tokens": n,
        "stream": True,
        "temperature": 1.0,
        "messages": [{"role": "user", "content": f"to {model}"}],
    }


async def call(client: httpx.AsyncClient, address: str, model: str, cancel: bool) -> str:
    """The text of one streamed answer, cut off after its first piece if `cancel`."""
    import json

    text = ""
    async with client.stream("POST", f"{address}/v1/chat/completions", json=body(model)) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                if cancel and text:
                    break
    return text


async def storm(address: str, calls: int) -> list[tuple[str, bool, str]]:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        asked = [(NAMES[i % 4], i % 8 >= 4) for i in range(calls)]
        texts = await asyncio.gather(*(call(client, address, *one) for one in asked))
    return [(*one, text) for one, text in zip(asked, texts, strict=True)]


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_a_hundred_callers_at_once_and_fifty_who_leave_get_no_wrong_answer_and_no_memory_grows(address):
    asyncio.run(storm(address, 100))  # what is allocated once
    before = resident_mib()
    answers = asyncio.run(storm(address, 100))
    assert sum(cancelled for _, cancelled, _ in answers) >= 48
    wrong = [(model, text) for model, _, text in answers if set(text) != {LETTERS[model]}]
    assert wrong == []
    assert all(len(text) == 24 for _, cancelled, text in answers if not cancelled)
    assert resident_mib() < before * 1.05


class SlowEngine:
    """Says `text` again and again, with a pause (seconds) before each, and tells how often it has been entered at once."""

    name, context, n_parallel, grammars = "slow", 512, 1, False

    def __init__(self, text: str = "x", pause: float = 0.005) -> None:
        self.text, self.pause = text, pause
        self.inside = self.most = self.ended = self.said = 0

    def stream(self, jobs):
        from app.engines import Piece

        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            for n in range(10_000):
                time.sleep(self.pause)
                self.said += 1
                yield Piece(0, self.text, n)
        finally:
            self.inside -= 1
            self.ended += 1


class BrokenEngine(SlowEngine):
    def stream(self, jobs):
        raise RuntimeError("secret path /etc/shadow")
        yield


A_SECOND = 200  # of SlowEngine's pieces take a second at least; on a busy machine the same steps take longer


def says_until_it_ends(engine: SlowEngine) -> int:
    """How many pieces come until nobody is in the engine any more, or about a second's too many have come."""
    before = engine.said
    while engine.inside and engine.said - before < 2 * A_SECOND:
        time.sleep(0.005)
    return engine.said - before


def request(service: Service, model: str = "A", **sampling):
    return read_request(
        service.models.names, model, [{"role": "user", "content": "hi"}], read_sampling(**sampling)
    )


def first_text(answer):
    return next(progress for progress in answer if not isinstance(progress, Waiting))


def test_one_answer_at_a_time_and_the_next_begins_when_it_is_stopped(models, tokenizer):
    engine = SlowEngine()
    service = Service(models, engine, tokenizer, waiting=4)
    first = service.answer([request(service)])
    first_text(first)
    second = service.answer([request(service)])
    assert next(second) == Waiting(1)
    said = engine.said
    first.close()
    first_text(second)
    assert engine.said - said < A_SECOND
    second.close()
    assert engine.most == 1 and engine.ended == 2


def test_someone_who_leaves_the_line_does_not_block_it(models, tokenizer):
    service = Service(models, SlowEngine(), tokenizer, waiting=4)
    first, second, third = (service.answer([request(service)]) for _ in range(3))
    first_text(first)
    assert next(second) == Waiting(1)
    assert next(third) == Waiting(2)
    second.close()
    assert next(third) == Waiting(1)
    first.close()
    first_text(third)
    third.close()


def test_a_full_line_says_so_and_serves_again_when_it_is_shorter(models, tokenizer):
    service = Service(models, SlowEngine(), tokenizer, waiting=0)
    first = service.answer([request(service)])
    first_text(first)
    with pytest.raises(Refused, match="Too many people"):
        next(service.answer([request(service)]))
    first.close()
    last = service.answer([request(service)])
    first_text(last)
    last.close()


def test_a_full_line_is_http_429_and_a_reader_who_leaves_frees_the_model_within_a_second(models, tokenizer):
    engine = SlowEngine()
    with serving(Service(models, engine, tokenizer, waiting=0)) as url:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body("A", 1024)) as response:
            lines = response.iter_lines()  # kept: a generator that nobody holds closes the connection
            next(lines)
            refused = httpx.post(f"{url}/v1/chat/completions", json=body("B"))
            assert (refused.status_code, refused.json()["error"]["message"]) == (429, BUSY)
            assert int(refused.headers["retry-after"]) > 0
        assert says_until_it_ends(engine) < A_SECOND


def test_a_failing_engine_gives_a_plain_message_and_frees_the_line(models, tokenizer):
    service = Service(models, BrokenEngine(), tokenizer, waiting=0)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            list(service.answer([request(service)]))
        assert str(refused.value) == FAILED


def test_an_answer_that_takes_too_long_is_cut_and_says_so(models, tokenizer, monkeypatch):
    monkeypatch.setattr("app.service.ANSWER_SECONDS", 0.1)
    service = Service(models, SlowEngine(), tokenizer)
    *_, replies = service.answer([request(service)])
    assert replies[0].finish == "time" and set(replies[0].text) == {"x"}


def test_callers_in_other_threads_are_served_in_the_order_they_came(models, engines, tokenizer):
    service = Service(models, engines["transformers"], tokenizer, waiting=50)
    wrong: list[str] = []
    answered: list[str] = []

    def ask(model: str) -> None:
        *_, replies = service.answer([request(service, model, max_new_tokens=60)])
        answered.append(model)
        if set(replies[0].text) != {LETTERS[model]}:
            wrong.append(model)

    threads = [threading.Thread(target=ask, args=(NAMES[i % 4],)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answered) == len(threads) and wrong == []


class Says(SlowEngine):
    """Says the given pieces."""

    def __init__(self, pieces) -> None:
        super().__init__()
        self.pieces, self.asked = pieces, []

    def stream(self, jobs):
        from app.engines import Piece

        self.asked.append(jobs)
        for n, text in enumerate(self.pieces, 1):
            yield Piece(0, text, n)
        yield Piece(0, "", len(self.pieces), "stop")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.text(alphabet=" \n\tab.", max_size=4), max_size=12))
def test_what_streams_is_what_is_there_in_the_end(models, tokenizer, monkeypatch, pieces):
    monkeypatch.setattr("app.service.SHOW_SECONDS", 0)
    service = Service(models, Says(pieces), tokenizer)
    shown = [replies[0].text for replies in service.answer([request(service)])]
    assert shown[-1] == "".join(pieces).strip()
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


def test_an_answer_with_stop_strings_is_asked_for_token_by_token(models, tokenizer):
    """What follows a stop string, and its tokens' scores and number, are told apart by pieces."""
    engine = Says(["x"])
    service = Service(models, engine, tokenizer)
    for stop in ((), ("x",)):
        for _ in service.answer([replace(request(service), stop=stop)]):
            pass
    assert [job.by_token for (job,) in engine.asked] == [False, True]


def test_first_words_are_shown_before_the_next_piece_comes(models, tokenizer):
    """It may take seconds, while other adapters have their turns."""
    asked = []

    class Pauses(Says):
        def stream(self, jobs):
            for piece in super().stream(jobs):
                asked.append(piece.text)
                yield piece

    service = Service(models, Pauses(["\n", "first", " second", " third"]), tokenizer)
    answer = service.answer([request(service)])
    shown = next(reply for (reply,) in answer if reply.text)
    assert shown.text == "first" and asked == ["\n", "first"]
    answer.close()


def test_a_white_space_beginning_costs_a_streaming_client_nothing(models, tokenizer, monkeypatch):
    monkeypatch.setattr("app.service.SHOW_SECONDS", 0)
    with serving(Service(models, Says([" \n\n", "unf", "olders", " ", "lie"]), tokenizer)) as url:
        streamed = asyncio.run(storm_of_one(url))
        whole = httpx.post(f"{url}/v1/chat/completions", json=body("A") | {"stream": False}).json()
    assert streamed == whole["choices"][0]["message"]["content"] == "unfolders lie"


async def storm_of_one(url: str) -> str:
    async with httpx.AsyncClient(timeout=60) as client:
        return await call(client, url, "A", cancel=False)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_whose_client_has_gone_ends_within_a_second(models, tokenizer, stream):
    engine = SlowEngine()
    with serving(Service(models, engine, tokenizer, waiting=0)) as url:
        asked = body("A", 1024) | {"stream": stream}
        if stream:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
                lines = response.iter_lines()
                next(lines)
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=0.5)
        assert says_until_it_ends(engine) < A_SECOND


def test_a_seed_is_drawn_for_each_answer_unless_one_is_set_and_is_told(models, tokenizer):
    service = Service(models, Says(["x"]), tokenizer)

    def seed_of(**settings):
        asked = read_request(["A"], "A", [{"role": "user", "content": "hi"}], read_sampling(**settings))
        *_, replies = service.answer([asked])
        return replies[0].request.sampling.seed

    assert len({seed_of() for _ in range(5)}) == 5
    assert seed_of(seed=7) == seed_of(seed=7) == 7


def test_the_service_scores_an_answer_that_it_gave_and_refuses_what_does_not_fit(service):
    *_, replies = service.answer([request(service)])
    *_, scores = service.token_scores(replies[0].request, replies[0].raw, likeliest=2)
    assert "".join(score.text for score in scores) == replies[0].text != ""
    assert all(score.logprob > -0.1 and score.likeliest[0].text == "a" for score in scores)
    with pytest.raises(Refused, match="too long"):
        next(service.token_scores(replies[0].request, "a " * 3000))
    with pytest.raises(Refused, match="at most 20"):
        next(service.token_scores(replies[0].request, "a", likeliest=21))
