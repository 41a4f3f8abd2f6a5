"""What the page's buttons do to a conversation. (How it looks: docs/app.md.)"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from app.page import chat, compare
from app.page.conversation import Conversation, Turn, messages
from app.service import FAILED, Service
from tests.app.test_load import BrokenEngine, SlowEngine
from tools.votes import votes_of

SETTINGS = (0.7, 0.9, 16, 1.1, 1)
ALL = compare.Setup(("base", "A", "B", "C"))


def talk(service, turns, text, model="B", settings=SETTINGS):
    turns, *_ = chat._ask(turns, text)
    *_, (turns, display, box) = chat._answer(service, turns, model, "", settings)
    return turns, display, box


def test_an_answer_shows_its_model_speed_and_time_to_first_token(service):
    _, display, _ = talk(service, Conversation(), "hello")
    assert display[0] == {"role": "user", "content": "hello"}
    assert display[1]["content"].startswith("b" * 16)
    for part in ("B · 16 tokens", "tokens/s", "first after", "cut at the token limit"):
        assert part in display[1]["figures"]


def test_retry_undo_and_edit_change_the_conversation_as_they_say(service):
    turns, *_ = talk(service, Conversation(), "one")
    turns, *_ = talk(service, turns, "two")
    turns, _, _ = chat._retry(turns)
    assert [turn.text for turn in turns] == ["one", "b" * 16, "two"]
    *_, (turns, _, _) = chat._answer(service, turns, "A", "", SETTINGS)
    assert turns[-1].text == "a" * 16
    turns, _, box = chat._undo(turns)
    assert [turn.text for turn in turns] == ["one", "b" * 16] and box["value"] == "two"
    turns, _, _ = chat._edit(turns, SimpleNamespace(index=0, value="ONE"))
    assert [turn.text for turn in turns] == ["ONE"]


def test_the_box_is_free_again_after_every_kind_of_failure(models, tokenizer, service):
    broken = Service(models, BrokenEngine(), tokenizer)
    for served, model, settings, says in (
        (broken, "B", SETTINGS, FAILED),
        (service, "nobody", SETTINGS, "no such model"),
        (service, None, SETTINGS, "no such model"),
        (service, "B", (float("nan"), *SETTINGS[1:]), "temperature"),
        (service, "B", (None,) * 5, "temperature"),
    ):
        _, display, box = talk(served, Conversation(), "hello", model, settings)
        assert says in display[-1]["content"] and "shadow" not in display[-1]["content"]
        assert box["submit_btn"] is True and box["stop_btn"] is False


def test_a_full_line_is_a_message_in_the_chat(models, tokenizer):
    service = Service(models, SlowEngine(), tokenizer, waiting=0)
    holding = chat._answer(service, [Turn("user", "hi")], "A", "", SETTINGS)
    next(holding)
    _, display, box = talk(service, Conversation(), "hello")
    assert "Too many people" in display[-1]["content"] and box["submit_btn"] is True
    holding.close()


def test_what_was_written_before_a_stop_stays_and_is_marked(models, tokenizer):
    service = Service(models, SlowEngine(), tokenizer)
    turns = Conversation([Turn("user", "hi")])
    answer = chat._answer(service, turns, "A", "", SETTINGS)
    for _ in range(3):
        next(answer)
    answer.close()
    turns, display, _ = chat._settle(turns)
    assert display[-1]["content"].startswith("x") and "stopped" in display[-1]["figures"]


def test_a_stopped_answer_ends_by_itself_with_the_box_free_and_frees_the_model(models, tokenizer):
    engine = SlowEngine()
    turns = Conversation([Turn("user", "hi")])
    answer = chat._answer(Service(models, engine, tokenizer), turns, "A", "", SETTINGS)
    for _ in range(3):
        next(answer)
    chat._settle(turns)
    *_, (_, display, box) = answer
    assert "stopped" in display[-1]["figures"] and box["submit_btn"] is True
    assert engine.inside == 0


def test_an_answer_that_is_cleared_or_retried_while_it_grows_does_not_come_back(models, tokenizer):
    service = Service(models, SlowEngine(), tokenizer)
    for leave, left in ((chat._clear, []), (chat._undo, []), (chat._retry, ["hi"])):
        turns = Conversation([Turn("user", "hi")])
        answer = chat._answer(service, turns, "A", "", SETTINGS)
        next(answer)
        leave(turns)
        *_, (_, display, _) = answer
        assert [message["content"] for message in display] == left


def test_a_stopped_comparison_keeps_what_is_there_and_asks_for_no_vote(models, tokenizer):
    round_ = compare._run(Service(models, SlowEngine(), tokenizer), None, "hello", ALL, SETTINGS)
    for _ in range(3):
        now, *_ = next(round_)
    compare._stop(now)
    *_, (now, ballot, _, *answers) = round_
    assert ballot["visible"] is False and any("x" in text and "stopped" in text for text in answers)
    assert all(
        text.startswith(f"<strong>{name}</strong>") for text, name in zip(answers, now.order, strict=True)
    )


def test_a_question_that_got_an_error_is_not_read_by_the_model_again():
    turns = [Turn("user", "one"), Turn("assistant", "", note="busy"), Turn("user", "two")]
    assert messages(turns, "be kind") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "two"},
    ]


def test_old_turns_left_out_are_mentioned_under_the_answer(service):
    turns = Conversation()
    for place in range(4):
        turns, display, _ = talk(service, turns, f"{place} " * 60)
    assert "were left out" in display[-1]["figures"] and "were left out" not in display[1]["figures"]


def test_a_blind_comparison_hides_names_and_speed_until_the_vote_and_then_counts_it(
    service, monkeypatch, tmp_path
):
    monkeypatch.setattr(compare, "VOTES", tmp_path / "votes.jsonl")
    *_, last = compare._run(service, None, "hello", ALL, SETTINGS)
    now, answers = last[0], last[3:]
    assert sorted(now.order) == ["A", "B", "C", "base"]
    for place, text in enumerate(answers):
        assert text.startswith(f"<strong>Answer {place + 1}</strong>") and "tokens/s" not in text
    choice = f"Answer {now.order.index('C') + 1}"
    *shown, standing = compare._vote(service, now, choice)
    assert "| C | 1 of 1 |" in standing and "| base | 0 of 1 |" in standing
    assert any(str(text).startswith("<strong>C</strong>") for text in shown[3:])
    *_, again = compare._vote(service, now, choice)
    assert "| C | 1 of 1 |" in again, "a second vote in one round must not count"
    [vote] = votes_of(tmp_path / "votes.jsonl", {name: (service.models.sha256(name), "t") for name in "ABC"})
    assert vote.preferred == "C" and vote.shown == tuple(now.order) and set(vote.trained) == set("ABC")


def test_a_comparison_that_fails_says_so_in_place_of_the_answers(models, tokenizer, service):
    *_, last = compare._run(Service(models, BrokenEngine(), tokenizer), None, "hello", ALL, SETTINGS)
    assert FAILED in last[3]
    *_, last = compare._run(service, None, "", ALL, SETTINGS)
    assert "empty message" in last[3]


def test_a_refused_question_keeps_the_answers_before_it(service):
    *_, first = compare._run(service, None, "hello", ALL, SETTINGS)
    with pytest.warns(UserWarning, match="empty message"):
        *_, after = compare._run(service, first[0], " ", ALL, SETTINGS)
    assert after[0] is first[0] and after[3:] == first[3:] and len(after[0].turns) == 1


@pytest.mark.parametrize("text", [None, "", "   ", 7, "x" * 200_000])
def test_what_is_no_message_starts_nothing(text):
    turns, display, _ = chat._ask(Conversation(), text)
    assert turns == [] and display == []


@pytest.mark.parametrize("text", ["", "  ", "x" * 200_000])
def test_an_edit_that_is_refused_takes_nothing_away(text):
    turns = Conversation([Turn("user", "first"), Turn("assistant", "one"), Turn("user", "second")])
    with pytest.warns(UserWarning):
        shown, *_ = chat._edit(turns, SimpleNamespace(index=0, value=text))
    assert [turn.text for turn in shown] == ["first", "one", "second"]
