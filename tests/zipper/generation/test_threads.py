"""Threads of generation: one for a few rows of a small model, and afterwards as many as before."""

import pytest
import torch

from conftest import tiny_model
from zipper.generation import threads
from zipper.generation.threads import few_threads


@pytest.fixture
def two() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
def test_a_few_rows_of_a_small_model_get_one_thread(monkeypatch):
    model = tiny_model()
    for rows, expected in ((1, 1), (threads.ROWS, 1), (threads.ROWS + 1, 2)):
        with few_threads(model, rows):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "PARAMETERS", 10)
    with few_threads(model, 1):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
def test_an_error_leaves_as_many_as_before():
    with pytest.raises(ZeroDivisionError), few_threads(tiny_model(), 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
