"""Who is served when: several at once, adapters in turns, and nobody before the models are loaded."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from abctune.llm.chat import prompt_ids
from app.engines import Job, Piece
from app.engines.llama_cpp import WORTH_A_BATCH, _Generation, slice_size
from app.engines.loading import LoadingEngine
from app.engines.scheduler import Canceled, Scheduler
from app.request import Sampling, read_request, read_sampling
from app.service import RequestQueue, Service, Waiting
from tests.app.test_load import Says


def test_groups_take_turns_and_one_groups_slices_run_together():
    turns, log, lock = Scheduler(), [], threading.Lock()
    begun = threading.Barrier(6)

    def work(group: str) -> None:
        begun.wait()
        for _ in range(4):
            with turns.take(group, threading.Event()):
                with lock:
                    log.append(("in", group))
                time.sleep(0.01)
                with lock:
                    log.append(("out", group))

    threads = [threading.Thread(target=work, args=(group,)) for group in "aaabbc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    inside: list[str] = []
    together = 0
    for what, group in log:
        inside.append(group) if what == "in" else inside.remove(group)
        assert len(set(inside)) <= 1, "two adapters at once"
        together = max(together, len(inside))
    assert len(log) == 2 * 4 * 6 and together == 3
    firsts = [next(place for place, (_, one) in enumerate(log) if one == group) for group in "abc"]
    assert max(firsts) < len(log) / 2, "everybody's first turn comes before anybody's last"


def test_who_leaves_while_waiting_is_gone_and_the_others_go_on():
    turns, left, seen = Scheduler(), threading.Event(), []

    def wait() -> None:
        try:
            with turns.take("b", left):
                seen.append("in")
        except Canceled:
            seen.append("left")

    with turns.take("a", threading.Event()):
        thread = threading.Thread(target=wait)
        thread.start()
        while not turns._waiting:
            time.sleep(0.001)
        left.set()
        turns.wake()
        thread.join(5)
    assert seen == ["left"]
    with turns.take("c", threading.Event()):
        pass


def test_a_slice_says_whether_others_were_computed_with_it():
    turns, event = Scheduler(), threading.Event()
    with turns.take("a", event) as first:
        assert not first.shared
        with turns.take("a", event) as second:
            assert first.shared and second.shared
        with turns.take("a", event) as third:
            pass
    with turns.take("a", event) as alone:
        assert third.shared and not alone.shared


def test_slices_end_at_the_same_places_in_every_answer():
    """So that a sampled answer's seeds do not depend on who else was asked."""
    for greedy, wanted in ((True, [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 48, 64]), (False, [2, 48, 94])):
        ends, n = [], 0
        while n < 64:
            n += slice_size(n, greedy)
            ends.append(n)
        assert ends == wanted
        assert all(n + slice_size(n, greedy) in ends for n in range(64))


@pytest.mark.usefixtures("token_by_token")
def test_a_long_greedy_answer_makes_way_for_another_adapter_and_is_the_one_it_is_alone(engines, tokenizer):
    engine, greedy = engines["llama.cpp"], Sampling(temperature=0, repetition_penalty=1)
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "q"}])
    order: list[tuple[int, str]] = []
    long = engine.stream([Job("A", prompt, 300, greedy)])
    while len(order) < 5:
        piece = next(long)
        order += [(0, piece.text)] if piece.text else []
    other = list(engine.stream([Job("B", prompt, 8, greedy)]))
    rest = list(long)
    assert "".join(piece.text for piece in other) == "b" * 8
    assert "".join(text for _, text in order) + "".join(piece.text for piece in rest) == "a" * 300
    assert rest[-1].n_tokens == 300 and rest[-1].finish == "length"


def test_a_line_with_places_serves_as_many_as_fit_and_nobody_overtakes():
    line = RequestQueue(waiting=2, n_parallel=4)
    with line.place() as one, line.place(3) as three:
        assert line.ahead(one, 0) == line.ahead(three, 0) == 0
        with line.place(4) as four, line.place() as last:
            assert (line.ahead(four, 0), line.ahead(last, 0)) == (1, 2)


def test_who_asks_before_the_models_are_loaded_waits_and_is_then_answered(models, tokenizer):
    loaded = threading.Event()

    def load():
        loaded.wait(20)
        return Says(["x"])

    engine = LoadingEngine("slow", 512, 1, False, load, failed=lambda error: None)
    engine.begin()
    answer = Service(models, engine, tokenizer).answer(
        [read_request(["A"], "A", [{"role": "user", "content": "hi"}], read_sampling())]
    )
    waiting = next(answer)
    assert isinstance(waiting, Waiting) and waiting.ahead == 0 and waiting.loading is not None
    loaded.set()
    *_, replies = answer
    assert replies[0].text == "x" and engine.seconds is not None


def test_a_failure_to_load_is_told():
    told: list[BaseException] = []

    def load():
        raise RuntimeError("no memory")

    LoadingEngine("slow", 512, 1, False, load, failed=told.append).begin()
    for _ in range(500):
        if told:
            break
        time.sleep(0.01)
    assert str(told[0]) == "no memory"


def test_answers_that_grow_together_get_slots_that_llama_cpp_computes_as_one_batch(engines):
    engine = engines["llama.cpp"]
    for slot, used in zip(engine._slots, (5, 1, 7, 2, 8, 3, 6, 4), strict=True):
        slot.used = used - 10  # unused for longest are 1, 3, 5 and 7
    with ExitStack() as stack:

        def slots_of(*names: str) -> list[int]:
            jobs = [Job(name, [9_000 + place], 1, Sampling()) for place, name in enumerate(names)]
            return sorted(stack.enter_context(engine._slot(job)).id for job in jobs)

        one = slots_of("B", "B", "B", "B")
        assert one == list(range(one[0], one[0] + 4))
    with ExitStack() as stack:
        pairs = [slots_of(name) for name in ("A", "B", "C")]
        more = [slots_of(name) for name in ("A", "B", "C")]
        assert all(abs(a - b) == 1 for (a,), (b,) in zip(pairs, more, strict=True))


def test_a_short_conversation_does_not_part_a_batch_and_a_long_one_keeps_its_slot(engines):
    engine = engines["llama.cpp"]
    for length, place in ((WORTH_A_BATCH - 2, 3), (WORTH_A_BATCH, 7)):
        for slot in engine._slots:
            slot.group, slot.cached, slot.used = None, [], -slot.id
        held = list(range(10_000, 10_000 + length))
        engine._slots[7].group, engine._slots[7].cached = ("B", 1.0), held
        with ExitStack() as stack:
            for slot in engine._slots[:3]:
                stack.enter_context(busy(slot, ("B", 1.0)))
            goes_on = stack.enter_context(engine._slot(Job("B", [*held, 1, 2], 1, Sampling())))
            assert goes_on.id == place
    for slot in engine._slots:
        slot.group, slot.cached = None, []


@contextmanager
def busy(slot, group):
    slot.busy, slot.group = True, group
    try:
        yield
    finally:
        slot.busy = False


def test_the_first_words_come_at_once_and_later_ones_in_fewer_pieces():
    found: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    answer = _Generation(0, Job("B", [1], 9, Sampling()), found, threading.Event(), compared=False)
    for number in range(9):
        answer.add(str(number), [number], (), shared=False, pause=3600)
    answer.put()
    pieces = [found.get() for _ in range(found.qsize())]
    assert [piece.text for piece in pieces] == ["0", "12345678"] and pieces[-1].n_tokens == 9
    answer.add("9", [9], (), shared=False, pause=0)
    assert found.get().text == "9" and found.empty()


def test_four_by_one_adapter_are_computed_together_and_say_so(engines, tokenizer):
    """Each in a slot of its own, with its own prompt, at its own length."""
    engine, greedy = engines["llama.cpp"], Sampling(temperature=0, repetition_penalty=1)
    texts, shared = [""] * 4, [False] * 4
    jobs = [
        Job("B", prompt_ids(tokenizer, [{"role": "user", "content": "q " * n}]), 40 + n, greedy)
        for n in range(1, 5)
    ]
    for piece in engine.stream(jobs):
        texts[piece.index] += piece.text
        shared[piece.index] |= piece.shared
    assert texts == ["b" * (40 + n) for n in range(1, 5)] and all(shared)
    *_, last = engine.stream(jobs[:1])
    assert not last.shared
