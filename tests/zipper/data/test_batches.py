"""Batches of items of similar lengths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import as_batch, tiny_model
from zipper.data.batches import spans
from zipper.data.documents import Document, Segment
from zipper.data.schedule import BatchSchedule, MicroBatches

BOOKS = {"text": 1, "speech": 3}


@given(st.lists(st.integers(1, 500), max_size=60).map(sorted), st.integers(1, 20), st.integers(1, 2000))
def test_batches_cover_all_rows_in_order_and_are_as_large_as_count_and_limit_allow(lengths, count, limit):
    found = [*spans(lengths, count, limit)]
    assert [i for start, end in found for i in range(start, end)] == [*range(len(lengths))]
    for start, end in found:
        size = end - start
        assert size == 1 or (size <= count and size * lengths[end - 1] <= limit)
        if end < len(lengths):  # one more would be too many
            assert size == count or (size + 1) * lengths[end] > limit


def test_padding_is_the_share_of_places_without_a_token():
    model = tiny_model()
    parts = [Segment("text", t := torch.zeros(n, 1, dtype=torch.int64), t >= 0, 1.0) for n in (2, 6, 4)]
    batch = as_batch(model, [Document(str(n), [part], False) for n, part in enumerate(parts)])
    assert (batch.tokens, batch.length) == (12, 6)
    assert batch.padding == pytest.approx(1 - 12 / 18)  # a tower without tokens has no places


def test_a_share_below_one_takes_other_rows_in_every_epoch(dataset):
    few = BatchSchedule(dataset, "train", {"asr": 0.25}, 200, 1, 0, 0.0)
    epochs = [[r for s in range(few.epoch_length(e)) for r, _ in few._epoch(e).examples(s)] for e in range(8)]
    assert all(len(rows) == len({*rows}) == 6 for rows in epochs)
    assert len({row for rows in epochs for row in rows}) > 12


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 3), (3, 1), (2, 2)])
def test_ranks_and_micro_batches_have_every_example_of_a_step_once(dataset, ranks, accumulate):
    steps = BatchSchedule(dataset, "train", {"asr": 1.0}, 400, ranks * accumulate, 0, 0.0)
    parts = [MicroBatches(steps, BOOKS, rank, ranks, accumulate) for rank in range(ranks)]
    for step in range(steps.epoch_length(0)):
        expected = sorted(dataset.splits["train"][row]["id"] for row, _ in steps.examples(step))
        items = range(step * accumulate, (step + 1) * accumulate)
        assert sorted(id for part in parts for item in items for id in part[item].ids) == expected
