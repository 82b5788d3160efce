"""Fitting of semantic units: by k-means of an encoder's states, or of those of a head that learns letters."""

import pytest
import torch
import torch.nn.functional as F

from broken_runs import at_step, terminate
from zipper.codecs.semantic import LetterHead, SemanticEncoder
from zipper.errors import DataError
from zipper.stop import Stopped
from zipper.training import semantic as semantic_module
from zipper.training.semantic import LetterBatches, semantic_units, train_head

pytestmark = pytest.mark.slow


class Sounds(SemanticEncoder):
    """States that are the first samples of a unit, times a scale of each dimension."""

    def __init__(self, scale: torch.Tensor, letters: bool = False) -> None:
        super().__init__(len(scale), 16, letters)
        self.scale = scale
        self.eval().requires_grad_(False)  # as those of Whisper and HuBERT are

    def window_states(self, wave):
        return wave.view(-1, 640)[:, : len(self.scale)] * self.scale


def test_a_dimension_of_large_variance_does_not_decide_the_units():
    waves = [
        (torch.randn(640 * 200, generator=torch.Generator().manual_seed(i)) * 3000).short() for i in (0, 1)
    ]
    units = []
    for scale in (torch.ones(4), torch.tensor([1.0, 256.0, 1.0, 0.25])):
        torch.manual_seed(0)
        units.append(torch.cat(semantic_units(Sounds(scale), waves, ["", ""], 0, seed=0)))
    assert torch.equal(*units)
    assert units[0].unique().numel() == 16


DIMENSIONS, LOUD = 8, 4000  # of the states, of their noise


def spoken_letters(count: int = 60) -> tuple[list[torch.Tensor], list[str], list[str]]:
    """Waves of 40 units each, their transcripts, and the letter of each unit: every 4 units are one of two
    letters, in the sign of the mean of the first dimension; all dimensions are as noisy."""
    draw = torch.Generator().manual_seed(0)
    waves, texts, letters = [], [], []
    for i in range(count):
        said = ("ab" if i % 2 else "ba") * 5
        spelled = [letter for letter in said for _ in range(4)]
        wave = torch.zeros(len(spelled), 640)
        wave[:, :DIMENSIONS] = LOUD * torch.randn(len(spelled), DIMENSIONS, generator=draw)
        wave[:, 0] += torch.tensor([LOUD if letter == "a" else -LOUD for letter in spelled])
        waves.append(wave.flatten().short())
        texts.append(said)
        letters += spelled
    return waves, texts, letters


def readable(units: list[torch.Tensor], letters: list[str]) -> float:
    """Share of letters that a linear map of the units around reads, fitted to half of the recordings."""
    near = F.pad(F.one_hot(torch.stack(units), 16).float(), (0, 0, 6, 6)).unfold(1, 13, 1).flatten(2)
    is_a = torch.tensor([letter == "a" for letter in letters]).view(len(units), -1).float() * 2 - 1
    half = len(units) // 2
    known, rest = near[:half].flatten(0, 1), near[half:].flatten(0, 1)
    ridge = known.T @ known + torch.eye(known.shape[1])
    weights = torch.linalg.solve(ridge, known.T @ is_a[:half].flatten())
    return float(((rest @ weights > 0) == (is_a[half:].flatten() > 0)).float().mean())


def test_units_of_a_head_that_learned_letters_follow_them_and_not_the_noise():
    waves, texts, letters = spoken_letters()
    shares = []
    for steps in (0, 60):
        torch.manual_seed(0)
        encoder = Sounds(torch.ones(DIMENSIONS), letters=steps > 0)
        shares.append(readable(semantic_units(encoder, waves, texts, steps, seed=0), letters))
        wave = waves[0].float() / 32767
        assert torch.equal(encoder(wave), semantic_units(encoder, waves[:1], texts[:1], steps, seed=0)[0])
    assert shares[0] < 0.88
    assert shares[1] > 0.92


def test_a_head_that_is_stopped_goes_on_exactly(tmp_path, monkeypatch):
    """With dropout, whose noise a step draws anew."""
    waves, texts, _ = spoken_letters(6)
    heads = []
    for folder in ("whole", "stopped"):
        torch.manual_seed(len(folder))  # of what was drawn before, which does not matter
        encoder = Sounds(torch.ones(DIMENSIONS), letters=True)
        batches = LetterBatches(encoder, [encoder.states(w.float()) for w in waves], texts, seed=0)
        torch.manual_seed(0)
        head = LetterHead(DIMENSIONS, 16)
        if folder == "stopped":
            with monkeypatch.context() as patch:
                at_step(patch, 3, terminate, semantic_module.HeadModule)
                with pytest.raises(Stopped):
                    train_head(head, batches, 6, tmp_path / folder)
            torch.manual_seed(1)  # another process has drawn otherwise
        train_head(head, batches, 6, tmp_path / folder)
        heads.append(head.state_dict())
    assert all(torch.equal(heads[1][name], weight) for name, weight in heads[0].items())


def test_a_padded_batch_has_the_states_of_single_recordings():
    torch.manual_seed(0)
    head = LetterHead(8, 32).eval()
    states, frames = torch.randn(3, 20, 8), torch.tensor([20, 13, 1])
    together = head(states, torch.arange(20) < frames[:, None])
    for row, count in enumerate(frames.tolist()):
        alone = head(states[row : row + 1, :count], torch.ones(1, count, dtype=torch.bool))
        torch.testing.assert_close(together[row, :count], alone[0])


def test_batches_are_of_similar_length_and_hold_what_was_said(monkeypatch):
    monkeypatch.setattr(semantic_module, "BATCH_FRAMES", 40)
    states = [torch.full((count, 2), float(count)) for count in range(1, 30)]
    texts = ["ab" if len(one) % 2 else "" for one in states]
    batches = LetterBatches(Sounds(torch.ones(2)), states, texts, seed=0)
    for _, (padded, frames, letters, counts) in zip(range(20), batches, strict=False):
        assert padded.shape[0] * padded.shape[1] <= 40
        assert padded.shape[1] == frames.max()
        assert (frames % 2 == 1).all()
        assert letters.tolist() == [1, 2] * len(frames)
        assert counts.tolist() == [2] * len(frames)
    with pytest.raises(DataError, match="no training recording has one"):
        LetterBatches(Sounds(torch.ones(2)), states, [""] * len(states), seed=0)
