"""Batches of items of similar lengths."""

from hypothesis import given
from hypothesis import strategies as st

from zipper.data.batches import spans


@given(st.lists(st.integers(1, 500), max_size=60).map(sorted), st.integers(1, 20), st.integers(1, 2000))
def test_batches_cover_all_rows_in_order_and_are_as_large_as_count_and_limit_allow(lengths, count, limit):
    found = [*spans(lengths, count, limit)]
    assert [i for start, end in found for i in range(start, end)] == [*range(len(lengths))]
    for start, end in found:
        size = end - start
        assert size == 1 or (size <= count and size * lengths[end - 1] <= limit)
        if end < len(lengths):  # one more would be too many
            assert size == count or (size + 1) * lengths[end] > limit
