from hypothesis import given
from hypothesis import strategies as st

from stages.mix.draw import draw, training_order

ROWS = list(range(200))


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 200))
def test_a_smaller_draw_is_a_subset_of_a_larger_one(seed, one, other):
    small, large = sorted((one, other))
    assert set(draw(seed, "chat", ROWS, small)) <= set(draw(seed, "chat", ROWS, large))


def test_a_source_with_fewer_rows_gives_all_of_them_once():
    assert sorted(draw(3407, "chat", ROWS, 1000)) == ROWS


def test_another_seed_draws_other_rows():
    assert set(draw(1, "chat", ROWS, 50)) != set(draw(2, "chat", ROWS, 50))


def test_the_training_order_is_a_shuffle_that_mixes_the_sources():
    # 20 of 200 chat rows but 100 of 100 instruct rows: neither source may stand in front of the other.
    drawn = [("chat", row) for row in draw(3407, "chat", ROWS, 20)] + [
        ("instruct", row) for row in range(100)
    ]
    order = training_order(3407, drawn)
    assert sorted(order) == sorted(drawn)
    places = [place for place, (source, _) in enumerate(order) if source == "chat"]
    assert places[0] < 30 and places[-1] > 90 and 40 < sum(places) / len(places) < 80
    assert order == training_order(3407, list(reversed(drawn)))
    assert order != training_order(3408, drawn)
