from hypothesis import given
from hypothesis import strategies as st

from abctune.core.params import SplitParams
from stages.split.buckets import bucket, subset_of

SPLIT = SplitParams(val=0.025, test=0.025)
GROUPS = [f"group {number}" for number in range(40_000)]


@given(
    st.lists(st.sampled_from(GROUPS[:500]), unique=True), st.lists(st.sampled_from(GROUPS[:500]), unique=True)
)
def test_a_row_held_out_for_one_variant_is_held_out_for_all(one_mix, other_mix):
    sides = [{group: subset_of(group, SPLIT) for group in mix} for mix in (one_mix, other_mix)]
    assert all(sides[0][group] == sides[1][group] for group in sides[0].keys() & sides[1].keys())


def test_the_shares_are_those_of_the_params():
    counts = {
        side: sum(subset_of(group, SPLIT) == side for group in GROUPS) for side in ("train", "val", "test")
    }
    assert abs(counts["test"] / len(GROUPS) - 0.025) < 0.003
    assert abs(counts["val"] / len(GROUPS) - 0.025) < 0.003


def test_a_larger_validation_share_moves_no_row_out_of_the_test_set():
    larger = SplitParams(val=0.2, test=0.025)
    assert all(subset_of(group, larger) == "test" for group in GROUPS if subset_of(group, SPLIT) == "test")


def test_the_hash_is_the_documented_one():
    import hashlib

    assert bucket("abc") == int(hashlib.blake2b(b"abc").hexdigest()[:8], 16) / 2**32
