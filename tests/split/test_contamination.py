import random

from datasketch import MinHashLSH

from stages.split.contamination import NUM_PERM, Bands, HeldOut, _sketch, ngrams
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


def test_the_candidates_are_those_of_datasketchs_own_index():
    texts = [
        " ".join([*text(seed // 3).split()[: 120 - 15 * (seed % 3)], f"end {seed}"]) for seed in range(90)
    ]
    sketches = [_sketch(ngrams(one)) for one in texts]
    theirs, ours = MinHashLSH(threshold=0.6, num_perm=NUM_PERM), Bands(sketches, 0.6)
    for number, sketch in enumerate(sketches):
        theirs.insert(number, sketch)
    found = [ours.near(sketch) for sketch in sketches]
    assert found == [set(theirs.query(sketch)) for sketch in sketches]
    assert max(map(len, found)) > 1


def test_another_text_from_the_same_words_is_kept():
    assert all(HELD_OUT.near(row("new", text(seed))) is None for seed in range(100, 200))


def test_half_a_copy_is_no_copy():
    words = text(3).split()
    assert HELD_OUT.near(row("new", " ".join([*words[:60], *text(500).split()]))) is None


def test_short_texts_are_compared_whole():
    held_out = HeldOut.of([row("held", "Hi there")])
    assert held_out.near(row("new", "hi  THERE")) == "near"
    assert held_out.near(row("new", "hi here")) is None


def chat_row(identity, *texts):
    roles = ("system", "user", "assistant")
    messages = [{"role": role, "content": content} for role, content in zip(roles, texts, strict=True)]
    return {"id": identity, "group": identity, "messages": messages}


def test_a_system_prompt_that_all_rows_share_makes_none_of_them_near():
    prompt = text(999, 300)
    rows = [chat_row(f"row {n}", prompt, text(n, 10), text(1000 + n, 12)) for n in range(120)]
    held_out = HeldOut.of(rows[:60])
    assert [held_out.near(row) for row in rows[60:]] == [None] * 60
    copy = chat_row("copy", prompt, text(3, 10).upper(), text(1003, 12))
    assert held_out.near(copy) == "near"


def test_a_prompt_that_a_few_rows_share_is_no_boilerplate():
    """Copies come in small numbers: what ten held-out rows have in common still counts."""
    rows = [chat_row(f"row {n}", text(999, 300), text(n, 10), "yes") for n in range(10)]
    assert HeldOut.of(rows).near(chat_row("new", text(999, 300), text(500, 10), "yes")) == "near"


def test_the_thresholds_are_the_params():
    rows = [chat_row(f"row {n}", text(999, 300), text(n, 10), "yes") for n in range(40)]
    new = chat_row("new", text(999, 300), text(500, 10), "yes")
    assert HeldOut.of(rows, common=1.0).near(new) == "near"
    assert HeldOut.of(rows, common=0.1).near(new) is None
    half = row("new", " ".join([*text(3).split()[:60], *text(500).split()[:30]]))
    assert HELD_OUT.near(half) is None
    assert HeldOut.of([row("held", text(3))], near=0.3).near(half) == "near"


def test_a_script_without_spaces_is_compared_by_characters():
    letters = [chr(0x4E00 + n) for n in random.Random(1).sample(range(5000), 120)]
    held_out = HeldOut.of([row("held", "".join(letters))])
    changed = "".join([*letters[:60], "字", *letters[61:]])
    other = "".join(random.Random(2).sample(letters, 120))
    assert held_out.near(row("new", changed)) == "near"
    assert held_out.near(row("new", other)) is None


def test_what_a_small_sources_rows_share_does_not_make_them_near():
    # 30 rows with one long instruction, 4 of them held out, between held-out rows of another source.
    small_source = [
        row(f"own {seed}", f"{text(900)} {text(seed, 12)}") | {"source": "own"} for seed in range(30)
    ]
    others = [row(f"chat {seed}", text(1000 + seed)) | {"source": "chat"} for seed in range(100)]
    held = {one["id"] for one in small_source[:4] + others}
    held_out = HeldOut.of([*others, *small_source], is_held_out=lambda one: one["id"] in held)
    assert held_out.ids == held
    assert [held_out.near(one) for one in small_source[4:]] == [None] * 26
    assert held_out.near(small_source[0] | {"id": "new", "group": "new"}) == "near"
