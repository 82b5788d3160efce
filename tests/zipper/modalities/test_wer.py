"""Word errors: known counts, and corpus figures that are ratios of sums."""

from hypothesis import given, settings
from hypothesis import strategies as st

from zipper.modalities.scoring import WordErrors, word_errors

LINES = st.lists(st.sampled_from(["a", "b", "c"]), max_size=7)


@given(LINES, LINES)
@settings(max_examples=200)
def test_equal_to_a_slow_edit_distance(a, b):
    grid = [[i + j if not i * j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            swap = grid[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            grid[i][j] = min(swap, grid[i - 1][j] + 1, grid[i][j - 1] + 1)
    assert word_errors(" ".join(a), " ".join(b)) == WordErrors(grid[-1][-1], len(a))


def test_a_corpus_figure_is_a_ratio_of_sums():
    assert (WordErrors(0, 9) + WordErrors(1, 1)).rate == 0.1
    assert WordErrors().rate == 0
