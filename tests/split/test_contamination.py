import random

from stages.split.contamination import HeldOut
from tests import small


def row(identity, text, group=None):
    return {"id": identity, "group": group or identity, "messages": [{"role": "user", "content": text}]}


def text(seed, words=120):
    return small.sentence(random.Random(seed), words)


HELD_OUT = HeldOut.of([row(f"held {seed}", text(seed)) for seed in range(20)])


def test_the_same_conversation_and_the_same_group_are_found():
    assert HELD_OUT.near(row("held 3", "anything else")) == "exact"
    assert HELD_OUT.near(row("new", "anything else", group="held 3")) == "group"


def test_a_copy_with_other_layout_or_a_few_changed_words_is_found():
    words = text(3).split()
    assert HELD_OUT.near(row("new", text(3).upper().replace(" ", "\n  "))) == "near"
    assert HELD_OUT.near(row("new", " ".join([*words[:60], "changed", *words[61:]]))) == "near"
    assert HELD_OUT.near(row("new", f"Please answer this: {text(3)}")) == "near"


def test_every_near_copy_among_many_is_found():
    found = 0
    for seed in range(200):
        held_out = HeldOut.of([row("held", text(seed))])
        words = text(seed).split()
        words[seed % 100] = "changed"  # 5 of 116 5-grams: Jaccard 0.92
        found += held_out.near(row("new", " ".join(words))) == "near"
    assert found == 200


def test_another_text_from_the_same_words_is_kept():
    assert all(HELD_OUT.near(row("new", text(seed))) is None for seed in range(100, 200))


def test_half_a_copy_is_no_copy():
    words = text(3).split()
    assert HELD_OUT.near(row("new", " ".join([*words[:60], *text(500).split()]))) is None


def test_short_texts_are_compared_whole():
    held_out = HeldOut.of([row("held", "Hi there")])
    assert held_out.near(row("new", "hi  THERE")) == "near"
    assert held_out.near(row("new", "hi here")) is None
