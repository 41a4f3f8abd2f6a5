"""What the page's buttons do to a conversation. (How it looks: docs/app.md.)"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from app.engines import Piece
from app.page import chat, compare
from app.page.conversation import Conversation, Turn, messages
from app.service import FAILED, Service
from tests.app.test_load import BrokenEngine, SlowEngine
from tools.votes import votes_of

SETTINGS = (0.7, 0.9, 16, 1.1, 1)
ALL = compare.Setup(("base", "A", "B", "C"))


def talk(service, turns, text, model="B", settings=SETTINGS):
    turns, *_ = chat._ask(turns, text)
    *_, (turns, drawing, box) = chat._answer(service, turns, model, "", settings)
    return turns, drawing.rows, box


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
    holding = chat._answer(service, Conversation([Turn("user", "hi")]), "A", "", SETTINGS)
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
    turns, drawing, _ = chat._settle(turns)
    assert drawing.rows[-1]["content"].startswith("x") and "stopped" in drawing.rows[-1]["figures"]


def test_a_stopped_answer_ends_by_itself_with_the_box_free_and_frees_the_model(models, tokenizer):
    engine = SlowEngine()
    turns = Conversation([Turn("user", "hi")])
    answer = chat._answer(Service(models, engine, tokenizer), turns, "A", "", SETTINGS)
    for _ in range(3):
        next(answer)
    chat._settle(turns)
    *_, (_, drawing, box) = answer
    assert "stopped" in drawing.rows[-1]["figures"] and box["submit_btn"] is True
    assert engine.inside == 0


def test_an_answer_that_is_cleared_or_retried_while_it_grows_does_not_come_back(models, tokenizer):
    service = Service(models, SlowEngine(), tokenizer)
    for leave, left in ((chat._clear, []), (chat._undo, []), (chat._retry, ["hi"])):
        turns = Conversation([Turn("user", "hi")])
        answer = chat._answer(service, turns, "A", "", SETTINGS)
        next(answer)
        leave(turns)
        *_, (_, drawing, _) = answer
        assert [message["content"] for message in drawing.rows] == left


def test_a_stopped_comparison_keeps_what_is_there_and_asks_for_no_vote(models, tokenizer):
    service, state = Service(models, SlowEngine(), tokenizer), compare.CompareState()
    run = compare._run(service, state, "hello", ALL, SETTINGS)
    for _ in range(3):
        next(run)
    compare._stop(state)
    list(run)
    ballot, answers = shown(service, state)
    assert not ballot and any("x" in text and "stopped" in text for text in answers)
    for text, name in zip(answers, state.comparison.order, strict=True):
        assert f"<strong>{name}</strong>" in text


def shown(service, state):
    """Whether the ballot is there, and the HTML of each of the last answers."""
    ballot, _, html, _ = compare._view(service, state)
    return ballot["visible"], html.rsplit('<div class="columns">', 1)[-1].split("</article>")[:-1]


def ask(service, state, text="hello"):
    for _ in compare._run(service, state, text, ALL, SETTINGS):
        pass
    return shown(service, state)


def test_a_question_while_answers_are_written_is_refused_and_after_a_stop_begins_a_new_comparison(
    models, tokenizer
):
    service, state = Service(models, SlowEngine(), tokenizer), compare.CompareState()
    first = compare._run(service, state, "one", ALL, SETTINGS)
    next(first)
    assert list(compare._run(service, state, "one", ALL, SETTINGS)) == []  # Enter was pressed twice
    with pytest.warns(UserWarning, match="still answering"):
        assert list(compare._run(service, state, "two", ALL, SETTINGS)) == []
    old = state.comparison
    assert [turn.prompt for turn in old.turns] == ["one"]
    compare._stop(state)
    second = compare._run(service, state, "two", ALL, SETTINGS)
    next(second)  # in line behind the first, which has not ended yet
    list(first)  # what it does at its end touches the new one not
    assert state.comparison is not old and [turn.prompt for turn in state.comparison.turns] == ["two"]
    assert state.comparison.running
    compare._stop(state)
    list(second)


def test_a_comparison_that_is_stopped_before_its_turn_leaves_nothing_behind(models, tokenizer):
    service, state = Service(models, SlowEngine(), tokenizer), compare.CompareState()
    holding = compare._run(service, compare.CompareState(), "one", ALL, SETTINGS)
    next(holding)
    waiting = compare._run(service, state, "two", ALL, SETTINGS)
    next(waiting)
    assert "before yours" in compare._view(service, state)[2]
    compare._stop(state)
    list(waiting)
    holding.close()
    assert state.comparison is None and compare.STOPPED in compare._view(service, state)[2]


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
    state = compare.CompareState()
    ballot, answers = ask(service, state)
    now = state.comparison
    assert ballot and sorted(now.order) == ["A", "B", "C", "base"]
    for place, text in enumerate(answers):
        assert f"<strong>Answer {place + 1}</strong>" in text and "tokens/s" not in text
    choice = f"Answer {now.order.index('C') + 1}"
    with pytest.warns(UserWarning, match="Choose an answer first"):
        compare._vote(service, state, None)
    compare._vote(service, state, choice)
    standing = compare.standings()
    assert "| C | 1 of 1 |" in standing and "| base | 0 of 1 |" in standing
    ballot, answers = shown(service, state)
    assert not ballot and any("<strong>C</strong>" in text for text in answers)
    compare._vote(service, state, choice)  # without a warning: the button was pressed twice
    assert compare.standings() == standing, "a second vote in one comparison must not count"
    [vote] = votes_of(tmp_path / "votes.jsonl", {name: (service.models.sha256(name), "t") for name in "ABC"})
    assert vote.preferred == "C" and vote.shown == tuple(now.order) and set(vote.trained) == set("ABC")


def test_a_comparison_that_fails_says_so_in_place_of_the_answers(models, tokenizer, service):
    for served, text, says in (
        (Service(models, BrokenEngine(), tokenizer), "hello", FAILED),
        (service, "", "empty message"),
    ):
        state = compare.CompareState()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ask(served, state, text)
        assert state.comparison is None and says in compare._view(served, state)[2]


def test_a_comparison_that_fails_halfway_keeps_what_is_there_and_asks_for_no_vote(models, tokenizer):
    class Breaks(SlowEngine):
        def stream(self, jobs):
            yield Piece(0, "half", 1)
            raise RuntimeError("broken")

    service, state = Service(models, Breaks(), tokenizer), compare.CompareState()
    with pytest.warns(UserWarning, match="could not answer"):
        ballot, answers = ask(service, state)
    assert not ballot and "half" in answers[0]


def test_a_refused_question_keeps_the_answers_before_it(service):
    state = compare.CompareState()
    before = ask(service, state)
    with pytest.warns(UserWarning, match="empty message"):
        after = ask(service, state, " ")
    assert after == before and len(state.comparison.turns) == 1


def test_a_question_is_answered_once_and_a_stop_before_its_answer_begins_counts(service):
    turns = Conversation()
    chat._ask(turns, "hello")
    first, second = (chat._answer(service, turns, "B", "", SETTINGS) for _ in range(2))
    next(first)
    list(second)
    list(first)
    assert [turn.role for turn in turns] == ["user", "assistant"]
    chat._ask(turns, "and now?")
    chat._settle(turns)
    list(chat._answer(service, turns, "B", "", SETTINGS))
    assert "Stopped" in turns[-1].note and len(turns) == 4


def test_of_two_conversations_that_are_opened_the_later_one_stays(monkeypatch):
    kept = {key: f'{{"key": "{key}", "messages": [{{"role": "user", "content": "{key}"}}]}}' for key in "ab"}
    turns, read = Conversation(), chat.read_stored

    def slowly(text):  # while the first one is read, the second one is opened
        monkeypatch.setattr(chat, "read_stored", read)
        chat._open(turns, kept["b"])
        return read(text)

    monkeypatch.setattr(chat, "read_stored", slowly)
    (_, drawing, _), _ = chat._open(turns, kept["a"])
    assert turns.key == "b" and drawing.rows[0]["content"] == "b"


def test_retry_of_a_cleared_conversation_leaves_the_box_free(service):
    turns, _, box = chat._retry(Conversation())
    assert box["submit_btn"] is True and box["stop_btn"] is False
    *_, (_, drawing, box) = chat._answer(service, turns, "B", "", SETTINGS)
    assert drawing.rows == [] and box["submit_btn"] is True


@pytest.mark.parametrize("text", [None, "", "   ", 7, "x" * 200_000])
def test_what_is_no_message_starts_nothing(text):
    turns, drawing, _ = chat._ask(Conversation(), text)
    assert turns == [] and drawing.rows == []


@pytest.mark.parametrize("text", ["", "  ", "x" * 200_000])
def test_an_edit_that_is_refused_takes_nothing_away(text):
    turns = Conversation([Turn("user", "first"), Turn("assistant", "one"), Turn("user", "second")])
    with pytest.warns(UserWarning):
        shown, *_ = chat._edit(turns, SimpleNamespace(index=0, value=text))
    assert [turn.text for turn in shown] == ["first", "one", "second"]
